"""The batch log tells each row's hash, each loss's bits, joins processes, refuses what contradicts itself."""

import json

import numpy as np
import pytest
import xxhash

from llamax.observe.batchlog import BatchLog, read_batches

FIELDS = ('tokens', 'targets', 'segment_ids', 'positions')


def batch_of(first, rows=2, length=3):
  count = rows * length
  return {
    name: (100 * i + first + np.arange(count, dtype=np.int32)).reshape(rows, length)
    for i, name in enumerate(FIELDS)
  }


def batches_of(*firsts):
  yield from map(batch_of, firsts)


def log(workdir, firsts, *, process=0, start=0, rows=(0, 1), losses=None, skips=()):
  """Steps start + 1, ... on the batches batch_of(first), all of them or as many as there are losses."""
  with_log = BatchLog(workdir, process)
  followed = with_log.follow(batches_of(*firsts), start, rows, skips)
  for step, (_, loss) in enumerate(zip(followed, losses or [0.5] * len(firsts), strict=False), start + 1):
    with_log.write(step, loss)
  with_log.close()


def test_a_line_is_one_step(tmp_path):
  log(tmp_path, [7, 8], start=4, losses=[1.5, np.float32(0.1)])
  lines = [json.loads(line) for line in (tmp_path / 'batches-0.jsonl').read_text().splitlines()]
  row = batch_of(7)
  want = xxhash.xxh3_64(b''.join(row[name][1].tobytes() for name in FIELDS)).hexdigest()
  assert lines[0]['step'] == 5 and lines[0]['skipped'] == 0
  assert lines[0]['rows'][1] == [1, want]
  assert lines[0]['loss'] == '0000c03f'  # 1.5 is 0x3fc00000
  rows, losses = read_batches(tmp_path)
  assert rows[5] == dict(lines[0]['rows']) and losses == {5: '0000c03f', 6: np.float32(0.1).tobytes().hex()}


@pytest.mark.parametrize('name', FIELDS)
def test_each_array_of_a_row_counts(tmp_path, name):
  one, other = batch_of(1), batch_of(1)
  other[name][1, 2] += 1
  for process, batch in enumerate((one, other)):
    log_ = BatchLog(tmp_path, process)
    next(log_.follow((b for b in [batch]), 0, [4 * process, 4 * process + 1]))
    log_.write(1, 1.0)
    log_.close()
  rows = read_batches(tmp_path)[0][1]
  assert rows[0] == rows[4] and rows[1] != rows[5]


def test_processes_are_joined(tmp_path):
  log(tmp_path, [1, 2], process=0, rows=(0, 3))
  log(tmp_path, [5, 6], process=1, rows=(1, 2))
  rows, losses = read_batches(tmp_path)
  assert [sorted(rows[step]) for step in (1, 2)] == [[0, 1, 2, 3]] * 2 and len(losses) == 2


def test_a_step_done_again_alike_is_fine(tmp_path):
  log(tmp_path, [1, 2, 3])
  log(tmp_path, [2, 3, 4], start=1)
  rows, losses = read_batches(tmp_path)
  assert sorted(rows) == sorted(losses) == [1, 2, 3, 4]
  assert len((tmp_path / 'batches-0.jsonl').read_text().splitlines()) == 6


def test_another_row_or_loss_the_second_time_is_refused(tmp_path):
  log(tmp_path / 'row', [1, 2])
  log(tmp_path / 'row', [3], start=1)
  with pytest.raises(ValueError, match='step 2 row 0 was read twice'):
    read_batches(tmp_path / 'row')
  log(tmp_path / 'loss', [1, 2])
  log(tmp_path / 'loss', [2], start=1, losses=[np.nextafter(np.float32(0.5), np.float32(1))])
  with pytest.raises(ValueError, match='step 2 was computed twice'):
    read_batches(tmp_path / 'loss')


def test_a_row_read_by_two_processes_must_be_the_same(tmp_path):
  log(tmp_path, [1], process=0, rows=(0, 1))
  log(tmp_path, [9], process=1, rows=(1, 2))
  with pytest.raises(ValueError, match='step 1 row 1 was read twice'):
    read_batches(tmp_path)


def test_after_a_roll_back_the_last_way_counts(tmp_path):
  log(tmp_path, [1, 2, 3])
  log(tmp_path, [6, 7], start=1, skips=((1, 4),), losses=[0.25, 0.75])
  rows, losses = read_batches(tmp_path)
  log(tmp_path / 'other', [1, 6, 7], losses=[0.5, 0.25, 0.75])
  assert (rows, losses) == read_batches(tmp_path / 'other')
  log(tmp_path, [8], start=2, skips=((1, 4),))
  with pytest.raises(ValueError, match='step 3 row 0'):
    read_batches(tmp_path)


def test_a_torn_line_is_a_step_that_is_missing(tmp_path):
  log(tmp_path, [1, 2])
  path = tmp_path / 'batches-0.jsonl'
  path.write_bytes(path.read_bytes()[:-20])
  assert sorted(read_batches(tmp_path)[0]) == [1]
  log(tmp_path, [2, 3], start=1)
  assert sorted(read_batches(tmp_path)[0]) == [1, 2, 3]


def test_closing_closes_the_batches(tmp_path):
  inner = batches_of(1, 2)
  followed = BatchLog(tmp_path, 0).follow(inner, 0, (0, 1))
  next(followed)
  followed.close()
  assert next(inner, None) is None


def test_no_log_has_no_steps(tmp_path):
  assert read_batches(tmp_path) == ({}, {})
