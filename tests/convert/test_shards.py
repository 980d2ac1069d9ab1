"""Parts of a tensor: every row, every column goes to where numpy's split puts it."""

import numpy as np
import pytest

from llamax.convert.errors import FormatError
from llamax.convert.shards import Cut, Joined
from llamax.convert.target import Wanted

WHOLE = np.arange(24 * 10, dtype=np.float32).reshape(24, 10)
CUTS = [Cut(0, 4, 1), Cut(1, 5, 1), Cut(0, 1, 3), Cut(0, 2, 3), Cut(0, 1, 1), Cut(1, 1, 1)]


class Array:
  """An entry in memory."""

  def __init__(self, array):
    self.array, self.dtype, self.shape = array, array.dtype, array.shape

  def read(self, start, stop):
    return np.ascontiguousarray(self.array[start:stop])


def parts(cut):
  """Of each file, by numpy."""
  return [part for part in np.split(WHOLE, cut.parts, cut.dim) for _ in range(cut.copies)]


def joined(cut, arrays):
  entries = [Array(array) for array in arrays]
  groups = [tuple(entries[at : at + cut.copies]) for at in range(0, len(entries), cut.copies)]
  return Joined('file', 'name', cut, tuple(groups))


@pytest.mark.parametrize('cut', CUTS, ids=str)
@pytest.mark.parametrize('rows', [1, 5, 6, 7, 24])
def test_pieces_land_where_they_belong(cut, rows):
  wanted = Wanted('w', WHOLE.shape, WHOLE.dtype)
  files = [np.full(cut.shape(WHOLE.shape), np.nan, np.float32) for _ in range(cut.parts * cut.copies)]
  for start in range(0, 24, rows):
    for file, at, piece in cut.pieces(wanted, start, WHOLE[start : start + rows]):
      assert piece.flags.c_contiguous and at % 4 == 0
      files[file].reshape(-1)[at // 4 : at // 4 + piece.size] = piece.reshape(-1)
  for found, part in zip(files, parts(cut), strict=True):
    np.testing.assert_array_equal(found, part)


@pytest.mark.parametrize('cut', CUTS, ids=str)
def test_joined_again(cut):
  entry = joined(cut, parts(cut))
  assert entry.shape == WHOLE.shape and entry.dtype == WHOLE.dtype
  for start in range(25):
    for stop in range(start, 25):
      found = entry.read(start, stop)
      assert found.flags.c_contiguous and found.shape == (stop - start, 10)
      np.testing.assert_array_equal(found, WHOLE[start:stop])


@pytest.mark.parametrize('cut', [cut for cut in CUTS if cut.copies > 1], ids=str)
def test_copies_that_differ(cut):
  arrays = [part.copy() for part in parts(cut)]
  arrays[-1][-1, -1] += 1
  entry = joined(cut, arrays)
  np.testing.assert_array_equal(entry.read(0, 5), WHOLE[:5])
  with pytest.raises(FormatError, match='name: differs between files'):
    entry.read(0, 24)


def test_a_vector():
  cut = Cut(0, 2, 1)
  wanted = Wanted('w', (6,), np.dtype(np.float16))
  pieces = [
    (file, at, piece.tolist()) for file, at, piece in cut.pieces(wanted, 2, np.arange(3, dtype=np.float16))
  ]
  assert pieces == [(0, 4, [0]), (1, 0, [1, 2])]
