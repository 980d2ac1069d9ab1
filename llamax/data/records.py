"""The records of one split by number, each checked before it is used."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llamax.core.errors import UserError
from llamax.data.format import MANIFEST
from llamax.data.retry import retried

_INT32 = 2**31 - 1


class Records:
  """Tokens of record 0, 1, ... over all shards in the order of prepare.json. Any thread may read."""

  def __init__(self, folder: str, files: Sequence[Mapping[str, Any]], max_token_id: int):
    """
    Args:
      files: name, records of each shard, as prepare.json has them.
      max_token_id: the highest id that a record may hold.
    """
    self._paths = [os.path.join(folder, file['name']) for file in files]
    _libraries()
    self._counts = [file['records'] for file in files]
    self._ends = np.cumsum(self._counts, dtype=np.int64)
    self._readers: list[Any] = [None] * len(files)
    self.max_token_id = max_token_id

  def __len__(self) -> int:
    return int(self._ends[-1])

  def place_of(self, index: int) -> tuple[str, int]:
    """(path of the shard, number of the record in it)."""
    shard, record = self._locate(index)
    return self._paths[shard], record

  def read(self, index: int, length: int) -> np.ndarray:
    """Tokens of a record, int32 [length].

    Raises:
      UserError: the record is damaged, has another length, or holds ids that it may not. Stop(STORAGE): the
        storage fails again and again. Both name the file, the record.
    """
    shard, record = self._locate(index)
    what = f'record {record} of {self._paths[shard]}'
    tokens = retried(lambda: self._tokens(shard, record), what)
    if len(tokens) != length:
      raise UserError(
        f'{what} holds {len(tokens)} tokens, the lengths of the documents tell of {length}: the files do not '
        'belong together; restore them, or prepare the data again with --overwrite'
      )
    # Smallest and largest at once: as unsigned numbers, negative ones are the largest.
    highest = int(tokens.view(np.uint64).max())
    if highest > self.max_token_id:
      bad = tokens[(tokens < 0) | (tokens > self.max_token_id)][0]
      raise UserError(
        f'{what} holds id {bad}; want 0 to {self.max_token_id}, the highest that {MANIFEST} records: the files '
        'are damaged; restore them, or prepare the data again with --overwrite'
      )
    return tokens.astype(np.int32)

  def _locate(self, index: int) -> tuple[int, int]:
    shard = int(np.searchsorted(self._ends, index, side='right'))
    return shard, index - (int(self._ends[shard - 1]) if shard else 0)

  def _tokens(self, shard: int, record: int) -> np.ndarray:
    """int64: what does not fit in 32 bits must not look as if it did."""
    data = self._read(shard, record)
    try:
      example = _libraries()[1].FromString(data)
    except Exception as error:  # protobuf's own, whose place has moved between its releases
      raise ValueError(str(error)) from None
    return np.array(example.features.feature['tokens'].int64_list.value, np.int64)

  def _read(self, shard: int, record: int) -> bytes:
    reader = self._readers[shard]
    try:
      if reader is None:
        # Two threads may both open it: one reader is kept, the other one works as well.
        reader = self._readers[shard] = open_reader(self._paths[shard])
      (data,) = reader.read([record])
      # Not before: a reader that could not read has no records.
      if (count := reader.num_records()) != self._counts[shard]:
        raise ValueError(f'the file has {count} records, {MANIFEST} records {self._counts[shard]}')
    except BaseException:
      self._readers[shard] = None  # One that has failed may go on failing: the next try opens the file anew.
      raise
    return data


def open_reader(path: str) -> Any:
  """Of single records at random; raises RuntimeError."""
  return _libraries()[0](path, options='readahead_buffer_size:0', file_reader_buffer_size=32768)


@functools.cache
def _libraries() -> tuple[Any, Any]:
  """Before there are threads: while tfds imports, whatever any thread imports is one of its lazy modules."""
  from array_record.python.array_record_module import ArrayRecordReader
  from tensorflow_datasets.proto import tf_example_pb2

  return ArrayRecordReader, tf_example_pb2.Example
