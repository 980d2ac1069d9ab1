"""The prepared folder on disk: names, features, how its files are written whole, how they are verified."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from llamax.core.errors import UserError
from llamax.data.retry import retried

# Goes up when folders written before can no longer be read, or would hold other tokens.
FORMAT = 1
DATASET = 'llamax_tokens'  # the name of the dataset to tfds
MANIFEST = 'prepare.json'
TOKENIZER = 'tokenizer.model'
TRAIN, VALIDATION = 'train', 'validation'
# A record holds this many (input, target) pairs of one document, or what is left of it, as one token more: the
# last token of a record is the first of the next. A row that needs the middle of a book reads a page of it.
RECORD_PAIRS = 2048


def features() -> Any:
  """Of a record, for tfds: `tokens` int32 [n]; `num_bytes` int64, what the tokens after the first spell."""
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {'tokens': tfds.features.Tensor(shape=(None,), dtype=np.int32), 'num_bytes': np.int64}
  )


def shard_name(split: str, index: int, count: int) -> str:
  return f'{DATASET}-{split}.array_record-{index:05d}-of-{count:05d}'


def lengths_name(split: str) -> str:
  return f'lengths-{split}.npy'


def write_whole(path: str, write: Callable[[BinaryIO], object]) -> None:
  """Writes a file that is there complete or not at all."""
  temporary = f'{path}.tmp-{os.getpid()}'
  with open(temporary, 'wb') as f:
    write(f)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def write_bytes(path: str, content: bytes) -> None:
  write_whole(path, lambda f: f.write(content))


def write_json(path: str, value: Any) -> None:
  write_bytes(path, (json.dumps(value, indent=1) + '\n').encode())


def read_json(path: str) -> Any:
  with open(path, 'rb') as f:
    return json.loads(f.read())


def sync(path: str) -> None:
  """Asks the disk to keep a file that someone else wrote, or the names in a folder."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def describe(path: str) -> dict[str, Any]:
  """What the manifest records of a file: its name, bytes, sha256."""
  with open(path, 'rb') as f:
    digest = hashlib.file_digest(f, 'sha256').hexdigest()
  return {'name': os.path.basename(path), 'size': os.path.getsize(path), 'sha256': digest}


def read_manifest(folder: str) -> dict[str, Any]:
  """prepare.json of a folder; UserError when it is not there, cannot be read, or is of another format."""
  path = os.path.join(folder, MANIFEST)
  again = f'`llamax prepare ... --out={folder}` makes it'
  if not os.path.isdir(folder):
    raise UserError(f'data source {folder!r} does not exist; {again}')
  try:
    manifest = read_json(path)
  except FileNotFoundError:
    raise UserError(f'{folder!r} holds no {MANIFEST}, so it is no prepared dataset; {again}') from None
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}; prepare again with --overwrite') from None
  if not isinstance(manifest, Mapping) or manifest.get('format') != FORMAT:
    found = manifest.get('format') if isinstance(manifest, Mapping) else None
    raise UserError(f'{path} has format {found}, want {FORMAT}; prepare again with --overwrite')
  try:
    _check(manifest)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f'{path} is damaged ({error!r}); restore it, or prepare again with --overwrite') from None
  return dict(manifest)


def _check(manifest: Mapping[str, Any]) -> None:
  """What reading relies on is there, of its type."""
  numbers = [manifest[key] for key in ('vocab_size', 'max_token_id', 'record_pairs')]
  for facts in manifest['splits'].values():
    numbers += [facts['bytes'], facts['documents'], facts['tokens'], *(f['records'] for f in facts['files'])]
  for file in files_of(manifest):
    numbers.append(file['size'])
    if file['name'] != os.path.basename(file['name']) or len(file['sha256']) != 64:
      raise ValueError(f'no file of this folder: {file["name"]!r}')
  for number in numbers:
    # JSON knows NaN, which is neither above nor below any bound.
    if type(number) is not int or number < 0:
      raise ValueError(f'{number!r} where a count is wanted')
  if not isinstance(manifest['fingerprint'], str) or not manifest['record_pairs']:
    raise ValueError('no fingerprint, or records without tokens')


def files_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Every file that the manifest records."""
  files = [manifest['tokenizer'], *manifest.get('tokenizer_beside', ())]
  for split in manifest['splits'].values():
    files += [split['lengths'], *split['files']]
  return files


def check_files(folder: str, manifest: Mapping[str, Any]) -> None:
  """UserError naming the first recorded file that is missing or has not its recorded size.

  Stop(STORAGE) when the storage does not answer.
  """
  for file in files_of(manifest):
    path = os.path.join(folder, file['name'])
    size = retried(partial(_size, path), path)
    if size is None:
      raise UserError(f'{path} is missing, {MANIFEST} records it; prepare again with --overwrite') from None
    if size != file['size']:
      raise UserError(
        f'{path} has {size} bytes, {MANIFEST} records {file["size"]}; prepare again with --overwrite'
      )


def _size(path: str) -> int | None:
  try:
    return os.path.getsize(path)
  except (FileNotFoundError, NotADirectoryError):
    return None


def serialize(tokens: np.ndarray, num_bytes: int) -> bytes:
  """A record of `features`; unlike tfds's own writer, always the same bytes for the same tokens."""
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example()
  example.features.feature['tokens'].int64_list.value.extend(tokens.tolist())
  example.features.feature['num_bytes'].int64_list.value.append(num_bytes)
  return example.SerializeToString(deterministic=True)
