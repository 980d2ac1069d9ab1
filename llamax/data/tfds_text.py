"""Text of existing TFDS datasets, by random access."""

import functools
import os
from typing import Any

from llamax.core.errors import UserError, nearest
from llamax.data.files import File

TFDS_PREFIX = 'tfds:'


@functools.lru_cache(maxsize=8)
def open_builder(name: str, data_dir: str | None) -> Any:
  """The builder of `tfds:NAME[/CONFIG][:VERSION]`, or of a dataset's folder `tfds:PATH`. Nothing is downloaded.

  UserError: unknown, not prepared, or not stored as ArrayRecord, all that tfds reads without TensorFlow.
  """
  import tensorflow_datasets as tfds

  plain = os.path.expanduser(name.removeprefix(TFDS_PREFIX))
  data_dir = data_dir and os.path.expanduser(data_dir)
  where = f' in {data_dir}' if data_dir else ''
  try:
    if os.path.isdir(plain):
      builder = tfds.builder_from_directory(plain)
    else:
      builder = tfds.builder(plain, data_dir=data_dir, try_gcs=False)
  except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
    reason = (str(error).strip().splitlines() or ['unknown'])[0]
    raise UserError(f'{name!r} is no TFDS dataset{where}: {reason}') from None
  if not builder.info.splits:
    raise UserError(
      f'{name!r} is not prepared{where}: nothing under {builder.data_dir}; make it with '
      f'`tfds build {plain} --file_format=array_record`, or name its folder with --tfds_data_dir '
      '(data.tfds_data_dir in a config)'
    )
  stored = getattr(builder.info.file_format, 'value', None)
  if stored != 'array_record':
    raise UserError(
      f'{name!r} is stored as {stored}, which tfds reads only with TensorFlow; want array_record: '
      '`tfds convert_format --out_file_format=array_record` rewrites it'
    )
  return builder


def tfds_files(name: str, data_dir: str | None) -> list[File]:
  """One File per split that holds records; train comes last, so that it is train that loses a duplicate.

  A dataset keeps its own splits; where none is named validation, that one is cut from train.
  """
  builder = open_builder(name, data_dir)
  splits = builder.info.splits
  files = []
  for split in sorted(splits, key=lambda s: (s == 'train', s)):
    info = splits[split]
    kept = None if split == 'train' and 'validation' not in splits else split
    if info.num_examples:
      # A version of a dataset never changes, so it stands for the content.
      label = f'{TFDS_PREFIX}{builder.info.full_name}:{split}'
      files.append(File(label, name, 'tfds', 'tfds', info.num_bytes, 0, info.num_examples, kept))
  return files


def tfds_records(file: File, data_dir: str | None, feature: str) -> Any:
  """Random access to the records of a split; UserError when the text feature is not among theirs."""
  builder = open_builder(file.path, data_dir)
  if feature not in builder.info.features:
    raise UserError(
      f'{file.path!r} has no feature {feature!r}.{nearest(feature, builder.info.features)} Name its text with '
      '--text_key (data.text_feature in a config)'
    )
  return builder.as_data_source(split=file.name.rsplit(':', 1)[1])
