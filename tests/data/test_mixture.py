"""The stream of rows is endless, reshuffled, in proportion; hosts share it without knowing of each other."""

import numpy as np
import pytest

from llamax.data.mixture import HostRows, Places, batch_of_step, row_stream
from llamax.data.packing import PackedRows


class Numbered:
  """Documents of one pair: the token is `base` + the document's number."""

  def __init__(self, count, base):
    self.lengths, self.base = np.full(count, 2, np.int64), base

  def read(self, document, start, stop):
    return np.full(stop - start, self.base + document, np.int32)


def rows_of(count, base=0):
  return PackedRows(Numbered(count, base), 1, None)


def tokens(stream, start, stop):
  return [int(stream[i]['tokens'][0]) for i in range(start, stop)]


def test_each_epoch_has_every_row_once_in_another_order():
  stream = row_stream([rows_of(30)], (1.0,), seed=4)
  epochs = [tokens(stream, 30 * e, 30 * e + 30) for e in range(3)]
  assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3 and epochs[0] != list(range(30))


def test_seed_decides_the_order():
  a, b, c = (tokens(row_stream([rows_of(30)], (1.0,), seed), 0, 30) for seed in (1, 1, 2))
  assert a == b != c


@pytest.mark.parametrize('weights', [(3.0, 1.0), (0.75, 0.25), (30, 10)])
def test_weights_are_kept_in_every_stretch(weights):
  stream = row_stream([rows_of(70), rows_of(90, base=100)], weights, seed=0)
  found = np.array(tokens(stream, 0, 400))
  for start in range(0, 400, 40):
    assert (found[start : start + 40] < 100).sum() == 30
  # The small source is read four times and some, the other once and some.
  assert set(np.bincount(found[found < 100]).tolist()) == {4, 5}
  assert sorted(found[found >= 100][:90]) == list(range(100, 190))


def test_weight_zero_is_never_read():
  stream = row_stream([rows_of(90), rows_of(90, base=100)], (0.0, 2.0), seed=0)
  assert min(tokens(stream, 0, 100)) >= 100


def test_sources_of_one_size_are_not_shuffled_alike():
  stream = row_stream([rows_of(20), rows_of(20, base=100)], (1, 1), seed=0)
  found = np.array(tokens(stream, 0, 40))
  assert (found[found < 100] != found[found >= 100] - 100).any()


@pytest.mark.parametrize('rows', [range(6), (0, 1), (1, 4), (5,), (0, 2, 3, 5)], ids=str)
def test_a_host_reads_its_rows_of_each_batch(rows):
  stream = row_stream([rows_of(50)], (1.0,), seed=0)
  host = HostRows(stream, batch_size=6, start_step=5, rows=rows)
  for step in range(3):
    whole = tokens(stream, 6 * (5 + step), 6 * (6 + step))
    found = [int(host[step * len(rows) + place]['tokens'][0]) for place in range(len(rows))]
    assert found == [whole[row] for row in rows]


def test_skips_move_the_steps_from_theirs_on():
  skips = ((2, 3), (4, 1))
  assert [batch_of_step(step, ()) for step in range(4)] == [0, 1, 2, 3]
  assert [batch_of_step(step, skips) for step in range(6)] == [0, 1, 5, 6, 8, 9]


@pytest.mark.parametrize('start_step', [0, 3])
def test_a_host_leaves_out_what_is_skipped(start_step):
  stream = row_stream([rows_of(50)], (1.0,), seed=0)
  host = HostRows(stream, batch_size=6, start_step=start_step, rows=(3, 4, 5), skips=((2, 3),))
  for step in range(start_step, 6):
    first = 6 * (step + 3 * (step >= 2)) + 3
    assert [int(host[3 * (step - start_step) + row]['tokens'][0]) for row in range(3)] == tokens(
      stream, first, first + 3
    )


def test_places_are_where_the_rows_of_the_stream_come_from():
  epochs = [rows_of(7), rows_of(5, base=100)]
  rows = row_stream(epochs, (2.0, 1.0), seed=1)
  places = row_stream([Places(i, epoch) for i, epoch in enumerate(epochs)], (2.0, 1.0), seed=1)
  for i in range(40):
    source, row = places[i]
    assert int(rows[i]['tokens'][0]) == 100 * source + row
