"""An array as a folder of files that hold the plain numbers of one chunk each: written, read at any place.

That is zarr, version 2, without a compressor: what tensorstore, orbax take for one of theirs.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts

from llamax.checkpoint import chunks
from llamax.checkpoint.steps import ARRAY
from llamax.core import storage

# What makes the file of a chunk its numbers.
_PLAIN = {'zarr_format': 2, 'compressor': None, 'filters': None, 'order': 'C', 'dimension_separator': '.'}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# By name: np.dtype would take any text of a file for a small program.
_DTYPES = {text: np.dtype(text) for text in ('<f2', '<f4', '<f8', '>f2', '>f4', '>f8')} | {
  'bfloat16': _BFLOAT16
}

# (file, byte that it begins at, bytes) of what was just written
Follow = Callable[[Path, int, memoryview], None]
# (file, all its bytes, or None where it is about to be read in parts); raises ValueError: it is damaged
Check = Callable[[Path, memoryview | None], None]


class PlainArray:
  """shape, dtype: of the array. chunk: the shape of the part in one file, which divides `shape`."""

  def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype, chunk: Sequence[int]):
    self.path, self.shape, self.dtype, self.chunk = path, tuple(shape), np.dtype(dtype), tuple(chunk)
    self.check: Check = lambda file, content: None

  @classmethod
  def opened(cls, path: Path) -> 'PlainArray | None':
    """The array in a folder; None where its files are not plain. Raises OSError, ValueError."""
    found = json.loads((path / ARRAY).read_bytes())
    if not isinstance(found, dict):
      raise ValueError(f'"{path / ARRAY}" holds no object')
    if any(found.get(key) != value for key, value in _PLAIN.items()):
      return None
    dtype = _DTYPES.get(str(found['dtype']))
    shape, chunk = found['shape'], found['chunks']
    if dtype is None:
      return None
    if len(shape) != len(chunk) or not all(c > 0 and n % c == 0 for n, c in zip(shape, chunk, strict=True)):
      return None
    found = cls(path, shape, dtype, chunk)
    found._require_whole()
    return found

  def _require_whole(self) -> None:
    """ValueError unless there is a file for each chunk, of its size: sizes that a file tells can be lies."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.path)}
    count = math.prod(n // c for n, c in zip(self.shape, self.chunk, strict=True))
    # Counted first: so many names may be told of that listing them never ends.
    if count >= len(sizes) or any(sizes.get(file.name) != self.file_bytes for file in self.files()):
      raise ValueError(
        f'"{self.path / ARRAY}" tells of {count} chunks of {self.file_bytes:,} bytes; not what there is'
      )

  def create(self) -> None:
    """Makes the folder, or takes up the one that is there; ValueError when that is of another array."""
    metadata = {
      'shape': self.shape,
      'chunks': self.chunk,
      'dtype': 'bfloat16' if self.dtype == _BFLOAT16 else self.dtype.str,
      'fill_value': None,
    }
    spec: dict[str, Any] = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{self.path}/'}}
    self.path.mkdir(parents=True, exist_ok=True)
    ts.open(spec | {'metadata': _PLAIN | metadata}, create=True, open=True).result()

  @property
  def file_bytes(self) -> int:
    return math.prod(self.chunk) * self.dtype.itemsize

  def files(self) -> Iterator[Path]:
    return (self.path / name for name in chunks.files(self.shape, self.chunk))

  def write(self, index: tuple[slice | int, ...], array: np.ndarray, follow: Follow) -> None:
    """Makes array[index] what `array` is. Any thread may call this. Raises OSError."""
    assert array.dtype == self.dtype, f'{self.path.name} is {self.dtype}, not {array.dtype}'
    start, stop = self._region(index)
    block = array.reshape([b - a for a, b in zip(start, stop, strict=True)])
    for part in chunks.parts_of(start, stop, self.chunk):
      file = self.path / part.file
      handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
      try:
        for at, place in chunks.runs(part.inside, self.chunk):
          run = np.ascontiguousarray(block[part.block][at]).reshape(-1).view(np.uint8).data
          storage.write_at(handle, run, place * self.dtype.itemsize)
          follow(file, place * self.dtype.itemsize, run)
      finally:
        os.close(handle)

  def read(self, index: tuple[slice | int, ...]) -> np.ndarray:
    """array[index], C-contiguous. Any thread may call this. Raises OSError, ValueError: a file is cut."""
    start, stop = self._region(index)
    out = np.empty([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
    for part in chunks.parts_of(start, stop, self.chunk):
      file, block = self.path / part.file, out[part.block]
      straight = block if block.flags.c_contiguous else np.empty(block.shape, self.dtype)
      handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
      try:
        for at, place in chunks.runs(part.inside, self.chunk):
          run = straight[at].reshape(-1).view(np.uint8).data
          start_byte = place * self.dtype.itemsize
          whole = len(run) == self.file_bytes
          if not whole:
            self.check(file, None)
          if (count := storage.read_at(handle, run, start_byte)) < len(run):
            raise ValueError(f'"{file}" ends after {start_byte + count} bytes')
          if whole:
            self.check(file, run)
      finally:
        os.close(handle)
      if straight is not block:
        block[...] = straight
    # A dim that an index names is none of the result's.
    named = [dim for dim, at in enumerate(index) if not isinstance(at, slice)]
    return out.reshape([n for dim, n in enumerate(out.shape) if dim not in named])

  def _region(self, index: tuple[slice | int, ...]) -> tuple[list[int], list[int]]:
    start, stop = [0] * len(self.shape), list(self.shape)
    for dim, at in enumerate(index):
      if isinstance(at, slice):
        start[dim], stop[dim], step = at.indices(self.shape[dim])
        assert step == 1
      else:
        start[dim], stop[dim] = at, at + 1
      assert 0 <= start[dim] < stop[dim] <= self.shape[dim], f'{index} of {self.shape}'
    return start, stop
