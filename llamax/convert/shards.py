"""Tensors that model-parallel files hold in parts: joined for reading, cut for writing."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from llamax.convert.errors import FormatError
from llamax.convert.source import Entry
from llamax.convert.target import Wanted


@dataclasses.dataclass(frozen=True)
class Cut:
  """dim: along which a tensor is cut. parts: how many; each is in so many files one after another."""

  dim: int
  parts: int
  copies: int

  def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
    """Of one part."""
    part = list(whole)
    part[self.dim] //= self.parts
    return tuple(part)

  def whole(self, part: Sequence[int]) -> tuple[int, ...]:
    shape = list(part)
    shape[self.dim] *= self.parts
    return tuple(shape)

  def pieces(self, wanted: Wanted, start: int, block: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(file, byte of its part, numbers) of rows [start : start + len(block)] of the whole tensor."""
    shape = self.shape(wanted.shape)
    row_bytes = wanted.dtype.itemsize * int(np.prod(shape[1:]))
    for part in range(self.parts):
      first, piece = start, block
      if self.dim:
        width = shape[1]
        piece = np.ascontiguousarray(block[:, part * width : (part + 1) * width])
      elif self.parts > 1:
        first = max(start, part * shape[0])
        last = min(start + len(block), (part + 1) * shape[0])
        if first >= last:
          continue
        piece = block[first - start : last - start]
        first -= part * shape[0]
      for copy in range(self.copies):
        yield part * self.copies + copy, first * row_bytes, piece


@dataclasses.dataclass(frozen=True)
class Joined:
  """An `Entry` whose parts are entries of several files. parts: the copies of each, which must be equal.

  file: for messages.
  """

  file: str
  name: str
  cut: Cut
  parts: tuple[tuple[Entry, ...], ...]

  @property
  def dtype(self) -> np.dtype:
    return self.parts[0][0].dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.cut.whole(self.parts[0][0].shape)

  def read(self, start: int, stop: int) -> np.ndarray:
    """Rows [start:stop]. Raises FormatError: files that should have the same numbers do not."""
    if self.cut.dim:
      return np.concatenate([self._one(part, start, stop) for part in range(self.cut.parts)], axis=self.cut.dim)
    rows = self.parts[0][0].shape[0]
    inside = range(start // rows, -(-stop // rows)) if stop > start else range(1)
    found = [self._one(part, max(start - part * rows, 0), min(stop - part * rows, rows)) for part in inside]
    return found[0] if len(found) == 1 else np.concatenate(found)

  def _one(self, part: int, start: int, stop: int) -> np.ndarray:
    first, *others = (entry.read(start, stop) for entry in self.parts[part])
    for other in others:
      if other.tobytes() != first.tobytes():
        raise FormatError(
          self.file, self.name, 'differs between files that should hold the same: of one model?'
        )
    return first
