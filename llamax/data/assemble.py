"""Finished parts -> the folder that tfds reads, with its manifest."""

import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamax.data.format import (
  DATASET,
  FORMAT,
  MANIFEST,
  RECORD_PAIRS,
  TRAIN,
  describe,
  features,
  lengths_name,
  shard_name,
  sync,
  write_json,
  write_whole,
)

_SUMMED = ('records', 'example_bytes', 'bytes', 'unknown')


def assemble(
  folder: str,
  parts: Sequence[tuple[str, dict[str, Any]]],
  splits: Sequence[str],
  tokenizer: Sequence[str],
  about: dict[str, Any],
) -> dict[str, Any]:
  """Builds `folder` anew from the parts, (path prefix, facts) in order; returns the manifest.

  tokenizer: paths of its files, the one to open first. `about` is added to the manifest. The parts stay where
  they are, so that a kill here costs nothing.
  """
  shutil.rmtree(folder, ignore_errors=True)
  os.mkdir(folder)
  copies = [os.path.join(folder, os.path.basename(path)) for path in tokenizer]
  for path, copy in zip(tokenizer, copies, strict=True):
    _link(path, copy)
  manifest: dict[str, Any] = {'format': FORMAT, 'record_pairs': RECORD_PAIRS, **about, 'splits': {}}
  manifest['tokenizer'], *beside = map(describe, copies)
  if beside:
    manifest['tokenizer_beside'] = beside
  train_size = sum(facts['splits'][TRAIN]['example_bytes'] for _, facts in parts if TRAIN in facts['splits'])
  for split in splits:
    mine = [(f'{path}-{split}', facts['splits'][split]) for path, facts in parts if split in facts['splits']]
    if mine:
      manifest['splits'][split] = _assemble_split(folder, split, mine, train_size / max(1, len(parts)))
  facts_of = manifest['splits'].values()
  manifest['max_token_id'] = max(facts['max_token_id'] for facts in facts_of)
  manifest['types'] = _sum_types([facts['types'] for _, facts in parts])
  _write_tfds_metadata(folder, manifest)
  write_json(os.path.join(folder, MANIFEST), manifest)
  sync(folder)
  return manifest


def _assemble_split(
  folder: str, split: str, parts: list[tuple[str, dict]], shard_size: float
) -> dict[str, Any]:
  """Parts as large as those of train become shards as they are; smaller ones are joined to about that size."""
  total = sum(facts['example_bytes'] for _, facts in parts)
  count = len(parts) if split == TRAIN else min(len(parts), max(1, round(total / max(shard_size, 1))))
  files, lengths = [], []
  for index in range(count):
    group = parts[len(parts) * index // count : len(parts) * (index + 1) // count]
    target = os.path.join(folder, shard_name(split, index, count))
    records = sum(facts['records'] for _, facts in group)
    if len(group) == 1:
      path, facts = group[0]
      _link(path, target)
      described = {'name': os.path.basename(target), 'size': facts['size'], 'sha256': facts['sha256']}
    else:
      _join([path for path, _ in group], target)
      described = describe(target)
    files.append(described | {'records': records})
    lengths += [np.load(f'{path}.npy', allow_pickle=False) for path, _ in group]
  all_lengths = np.concatenate(lengths)
  path = os.path.join(folder, lengths_name(split))
  write_whole(path, lambda f: np.save(f, all_lengths, allow_pickle=False))
  return {
    'documents': len(all_lengths),
    'tokens': int(all_lengths.sum()),
    **{key: sum(facts[key] for _, facts in parts) for key in _SUMMED},
    'max_token_id': max(facts['max_token_id'] for _, facts in parts),
    'lengths': describe(path),
    'files': files,
  }


def _link(source: str, target: str) -> None:
  """A second name for a file; a copy where the file system has no such thing."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copyfile(source, target)
    sync(target)


def _join(sources: Sequence[str], target: str) -> None:
  from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

  writer = ArrayRecordWriter(target, 'group_size:1')
  for source in sources:
    reader = ArrayRecordReader(source)
    for record in reader.read_all():
      writer.write(record)
    reader.close()
  writer.close()
  sync(target)


def _sum_types(tables: Sequence[dict[str, list[int]]]) -> dict[str, dict[str, int]]:
  """Per file type: documents, bytes, tokens; most bytes first."""
  sums: dict[str, np.ndarray] = {}
  for table in tables:
    for name, row in table.items():
      sums[name] = sums.get(name, np.zeros(3, np.int64)) + np.array(row, np.int64)
  ordered = sorted(sums.items(), key=lambda item: (-int(item[1][1]), item[0]))
  return {name: dict(zip(('documents', 'bytes', 'tokens'), row.tolist(), strict=True)) for name, row in ordered}


def _write_tfds_metadata(folder: str, manifest: dict[str, Any]) -> None:
  import tensorflow_datasets as tfds

  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=DATASET, filetype_suffix='array_record'
  )
  infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[file['records'] for file in facts['files']],
      num_bytes=facts['example_bytes'],
      filename_template=template.replace(split=split),
    )
    for split, facts in manifest['splits'].items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=folder, features=features(), split_infos=infos, version='1.0.0', check_data=False
  )
