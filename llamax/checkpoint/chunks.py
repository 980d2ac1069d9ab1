"""How the array of a checkpoint that is written piece by piece is cut into files, one for each chunk.

Zarr version 2 without a compressor: the file of chunk (i, j) is `i.j`, its bytes the numbers of that part of
the array, slowest dim first. Weights hardly compress; as they are, any part can be written at its place.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

MOST = 64 << 20  # bytes of a file: what a reader holds at least
LEAST = 4 << 20  # ... below which neighbours share a file: there would be too many


@dataclasses.dataclass(frozen=True)
class Part:
  """What one write puts into one chunk. file: of the chunk. block: of the array that is written.

  inside: (start, stop) of each dim within the chunk.
  """

  file: str
  block: tuple[slice, ...]
  inside: tuple[tuple[int, int], ...]


def chunk_shape(shape: Sequence[int], itemsize: int, parts: Sequence[int], stacked: bool) -> tuple[int, ...]:
  """The shape of one chunk: a mesh shard of one layer, if that is neither too big nor too small for a file.

  Args:
    parts: how often the mesh cuts each dim; must divide it.
    stacked: whether the first dim is that of the layers.
  """
  assert all(n % p == 0 for n, p in zip(shape, parts, strict=True)), f'{parts} does not cut {shape}'
  chunk = [1 if stacked and not dim else n // p for dim, (n, p) in enumerate(zip(shape, parts, strict=True))]

  def size() -> int:
    return math.prod(chunk) * itemsize

  for dim in range(len(chunk)):  # From the slowest dim on: rows that follow each other stay together.
    while size() > MOST and chunk[dim] > 1:
      chunk[dim] //= _smallest_factor(chunk[dim])
  # The dims of the layer first, so that a small model is not read layer by layer from all over the file.
  for dim in (*range(1, len(chunk)), 0) if stacked else range(len(chunk)):
    while chunk[dim] < shape[dim]:
      factor = _smallest_factor(shape[dim] // chunk[dim])
      if size() * factor > LEAST:
        break
      chunk[dim] *= factor
  return tuple(chunk)


def parts_of(start: Sequence[int], stop: Sequence[int], chunk: Sequence[int]) -> Iterator[Part]:
  """The chunks that the region [start, stop) of an array lies in, in the order of its numbers."""
  touched = [range(a // c, -(-b // c)) for a, b, c in zip(start, stop, chunk, strict=True)]
  for index in itertools.product(*touched):
    block, inside = [], []
    for i, a, b, c in zip(index, start, stop, chunk, strict=True):
      first, last = max(a, i * c), min(b, (i + 1) * c)
      block.append(slice(first - a, last - a))
      inside.append((first - i * c, last - i * c))
    yield Part('.'.join(map(str, index)), tuple(block), tuple(inside))


def files(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[str]:
  """The names of all chunks of an array."""
  for index in itertools.product(*(range(n // c) for n, c in zip(shape, chunk, strict=True))):
    yield '.'.join(map(str, index))


def runs(inside: Sequence[tuple[int, int]], chunk: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
  """A part of a chunk as runs of numbers that lie one after another, in that order.

  Each is (index of the run in the part, place of its first number in the chunk).
  """
  dim = len(chunk) - 1
  while dim > 0 and inside[dim] == (0, chunk[dim]):
    dim -= 1
  strides = [math.prod(chunk[d + 1 :]) for d in range(len(chunk))]
  base = sum(start * stride for (start, _), stride in zip(inside, strides, strict=True))
  for index in itertools.product(*(range(stop - start) for start, stop in inside[:dim])):
    yield index, base + sum(i * stride for i, stride in zip(index, strides[:dim], strict=True))


def _smallest_factor(n: int) -> int:
  return next((f for f in range(2, math.isqrt(n) + 1) if n % f == 0), n)
