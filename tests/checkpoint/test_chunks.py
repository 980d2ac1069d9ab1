"""How the arrays of a streamed checkpoint are cut into files."""

import math

import numpy as np
import pytest

from llamax.checkpoint import chunks


@pytest.fixture
def small_files(monkeypatch):
  monkeypatch.setattr(chunks, 'MOST', 4096)
  monkeypatch.setattr(chunks, 'LEAST', 256)


@pytest.mark.parametrize(
  ('shape', 'itemsize', 'parts', 'stacked', 'wanted'),
  [
    # 8B in bfloat16, a layer's gate of 117 MB: in two; over 8 devices one file each.
    ((32, 4096, 14336), 2, (1, 1, 1), True, (1, 2048, 14336)),
    ((32, 4096, 14336), 2, (1, 8, 1), True, (1, 512, 14336)),
    ((32, 4096, 14336), 2, (1, 8, 4), True, (1, 512, 3584)),
    # Over 256 devices neighbours share a file.
    ((32, 4096, 14336), 2, (1, 256, 1), True, (1, 128, 14336)),
    ((32, 4096), 2, (1, 8), True, (32, 4096)),
    ((128256, 4096), 2, (8, 1), False, (8016, 4096)),
    ((4096,), 4, (1,), False, (4096,)),
  ],
)
def test_a_chunk_is_a_shard_of_a_layer_of_a_size_that_suits_a_file(shape, itemsize, parts, stacked, wanted):
  chunk = chunks.chunk_shape(shape, itemsize, parts, stacked)
  assert chunk == wanted
  assert all(n % c == 0 for n, c in zip(shape, chunk, strict=True))


def test_every_number_has_one_place(small_files):
  rng = np.random.default_rng(0)
  for _ in range(200):
    shape = tuple(int(n) for n in rng.choice([1, 2, 3, 6, 8, 20, 64], rng.integers(1, 5)))
    parts = tuple(int(rng.choice([p for p in (1, 2, 4) if n % p == 0])) for n in shape)
    stacked = len(shape) > 1 and bool(rng.integers(2))
    chunk = chunks.chunk_shape(shape, 4, parts, stacked)
    assert all(n % c == 0 for n, c in zip(shape, chunk, strict=True))
    assert math.prod(chunk) * 4 <= chunks.MOST
    full = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    found = {file: np.full(math.prod(chunk), -1, np.int32) for file in chunks.files(shape, chunk)}
    # The array in two pieces, cut anywhere along any dim.
    dim = int(rng.integers(len(shape)))
    at = int(rng.integers(shape[dim] + 1))
    for first, last in ((0, at), (at, shape[dim])):
      if first == last:
        continue
      start, stop = [0] * len(shape), list(shape)
      start[dim], stop[dim] = first, last
      piece = full[tuple(map(slice, start, stop))]
      for part in chunks.parts_of(start, stop, chunk):
        block = piece[part.block]
        for index, place in chunks.runs(part.inside, chunk):
          run = block[index].reshape(-1)
          assert (found[part.file][place : place + run.size] == -1).all()
          found[part.file][place : place + run.size] = run
    for file, numbers in found.items():
      index = tuple(map(int, file.split('.')))
      region = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))
      assert (full[region].reshape(-1) == numbers).all()


def test_rows_that_fill_a_chunk_are_one_run():
  assert list(chunks.runs(((2, 5), (0, 4), (0, 6)), (8, 4, 6))) == [((), 48)]
  assert list(chunks.runs(((2, 4), (1, 3), (0, 6)), (8, 4, 6))) == [((0,), 54), ((1,), 78)]
