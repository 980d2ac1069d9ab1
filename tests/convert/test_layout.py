"""Layouts against index arithmetic that one can check by hand."""

import numpy as np

from llamax.convert import layout
from llamax.convert.layout import Layout

SIZES = {'D': 5, 'N': 3, 'H': 8, 'p': 2, 'h': 4, 'F': 7, 'V': 11}
OURS = Layout('D N (p h)', SIZES)
HALVES = Layout('(N H) D', SIZES)
PAIRS = Layout('(N h p) D', SIZES)


def rows(source, theirs, wanted):
  out = np.zeros(wanted.shape, source.dtype)
  for start, block in layout.blocks(source, theirs, wanted):
    assert block.flags.c_contiguous
    out[start : start + len(block)] = block
  return out


def test_shapes_are_products_of_groups():
  assert OURS.shape == (5, 3, 8)
  assert HALVES.shape == PAIRS.shape == (24, 5)
  assert Layout('V D', SIZES).shape == (11, 5)


def test_a_pair_of_halves_becomes_a_pair_of_neighbours():
  ours = np.arange(5 * 3 * 8).reshape(5, 3, 8)
  theirs = rows(ours, OURS, PAIRS)
  for d, n, i in np.ndindex(5, 3, 4):
    assert theirs[n * 8 + 2 * i, d] == ours[d, n, i]
    assert theirs[n * 8 + 2 * i + 1, d] == ours[d, n, i + 4]


def test_one_head_width_when_neither_side_takes_it_apart():
  ours = np.arange(5 * 3 * 8).reshape(5, 3, 8)
  np.testing.assert_array_equal(rows(ours, OURS, HALVES), ours.reshape(5, 24).T)


def test_back_again(monkeypatch):
  monkeypatch.setattr(layout, 'BLOCK_BYTES', 64)  # many blocks
  source = np.random.default_rng(0).integers(0, 1 << 16, (24, 5)).astype(np.uint16)
  for other in (OURS, PAIRS, Layout('D (N H)', SIZES)):
    np.testing.assert_array_equal(rows(rows(source, HALVES, other), other, HALVES), source)


def test_tiles_are_the_same_numbers():
  rng = np.random.default_rng(0)
  for _ in range(60):
    sizes = rng.choice([1, 2, 3, 40, 129], rng.integers(1, 5))
    while np.prod(sizes) > 200_000:
      sizes = sizes[1:]
    source = rng.integers(0, 1 << 16, sizes).astype(np.uint16)
    view = source.transpose(rng.permutation(len(sizes)))[..., :: rng.choice([1, 1, 2])]
    out = np.zeros(view.shape, rng.choice([np.uint16, np.uint32]))
    layout.fill(out, view)
    assert (out == view).all()
  layout.fill(out := np.zeros((), np.uint16), np.full((), 7, np.uint16))
  assert out == 7


def test_what_streams():
  assert layout.streams(Layout('V D', SIZES), Layout('V D', SIZES))
  assert layout.streams(HALVES, PAIRS)  # both by head
  assert not layout.streams(HALVES, OURS)
