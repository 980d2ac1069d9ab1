"""The order of a tensor's numbers in a format, as a line of letters.

'(N p h) D' is a matrix whose rows run over N heads, in each head over the 2 halves (p) of half-split RoPE, in
each half over its h = H / 2 numbers; its columns run over D. Meta's interleaved RoPE keeps the two numbers of a
pair side by side: '(N h p) D'. Two layouts of one tensor differ by a permutation of letters, either way.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

BLOCK_BYTES = 1 << 26  # of one tensor that are being rearranged at a time
_TILE = 128  # numbers
_SMALL = 1024  # ... below which a tile is not worth a turn of Python's loop
_GROUP = re.compile(r'\(([A-Za-z ]+)\)|([A-Za-z])')


@dataclasses.dataclass(frozen=True)
class Layout:
  """text: the dims of an array, slowest first. sizes: letter -> size, with p = 2, h = H / 2."""

  text: str
  sizes: Mapping[str, int]

  @functools.cached_property
  def groups(self) -> tuple[tuple[str, ...], ...]:
    """The letters of each dim."""
    found = tuple(tuple((group or letter).split()) for group, letter in _GROUP.findall(self.text))
    assert ''.join(_GROUP.sub('', self.text).split()) == '', f'{self.text!r} is no layout'
    return found

  @functools.cached_property
  def letters(self) -> tuple[str, ...]:
    return tuple(letter for group in self.groups for letter in group)

  @functools.cached_property
  def shape(self) -> tuple[int, ...]:
    return tuple(math.prod(self.sizes[letter] for letter in group) for group in self.groups)

  @property
  def row_unit(self) -> int:
    """Rows of the first dim that one value of the first letter stands for."""
    return math.prod(self.sizes[letter] for letter in self.groups[0][1:])


def halved(dims: str) -> str:
  """'DNH' -> 'D N (p h)': our own layout with the letters that formats permute."""
  return ' '.join('(p h)' if letter == 'H' else letter for letter in dims)


def _split(layout: Layout, letters: frozenset[str]) -> tuple[str, ...]:
  """The letters of `layout`, with H taken apart where the other side does."""
  parts = {'H': ('p', 'h')} if 'p' in letters else {}
  return tuple(part for letter in layout.letters for part in parts.get(letter, (letter,)))


def rearranged(source: np.ndarray, theirs: Layout, wanted: Layout) -> np.ndarray:
  """`source`, an array in layout `theirs`, as a view with one dim for each letter, in the order of `wanted`."""
  both = frozenset(theirs.letters + wanted.letters)
  have, want = _split(theirs, both), _split(wanted, both)
  assert sorted(have) == sorted(want), f'{theirs.text!r} and {wanted.text!r} are not of one tensor'
  view = source.reshape([theirs.sizes[letter] for letter in have])
  return view.transpose([have.index(letter) for letter in want])


def blocks(source: np.ndarray, theirs: Layout, wanted: Layout) -> Iterator[tuple[int, np.ndarray]]:
  """`source` in the layout `wanted`, cut along its first dim: (first row, C-contiguous rows)."""
  view = rearranged(source, theirs, wanted)
  rows_per_value = wanted.shape[0] // view.shape[0]
  row_bytes = max(1, source.nbytes // max(1, view.shape[0]))
  step = max(1, BLOCK_BYTES // row_bytes)
  for at in range(0, view.shape[0], step):
    block = _contiguous(view[at : at + step])
    yield at * rows_per_value, block.reshape(-1, *wanted.shape[1:])


def _contiguous(view: np.ndarray) -> np.ndarray:
  if view.flags.c_contiguous:
    return view
  out = np.empty(view.shape, view.dtype)
  fill(out, view)
  return out


def fill(out: np.ndarray, view: np.ndarray) -> None:
  """`out[...] = view`, in tiles that stay in a core's cache: several times faster for a transpose."""
  last = view.ndim - 1
  fast = min(
    range(view.ndim), key=lambda dim: view.strides[dim] if view.shape[dim] > 1 else math.inf, default=0
  )
  if fast >= last or view.shape[fast] * min(_TILE, view.shape[last]) < _SMALL:
    out[...] = view
    return
  # A tile runs over the dim that is fast in `view`, over a piece of the one that is fast in `out`.
  others: list[Iterable[int | slice]] = [
    (slice(None),) if dim == fast else range(size) for dim, size in enumerate(view.shape[:-1])
  ]
  for index in itertools.product(*others):
    into, numbers = out[index], view[index]
    for at in range(0, view.shape[last], _TILE):
      into[..., at : at + _TILE] = numbers[..., at : at + _TILE]


def streams(theirs: Layout, wanted: Layout) -> bool:
  """Whether rows of one are rows of the other, so that a tensor need not be read whole."""
  both = frozenset(theirs.letters + wanted.letters)
  return _split(theirs, both)[:1] == _split(wanted, both)[:1]
