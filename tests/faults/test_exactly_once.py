"""Runs killed at random, resumed with other threads, on failing storage: each row once, each bit the same."""

import errno
import random
import signal
import sys
import time

from llamax.checkpoint.steps import steps
from llamax.observe.batchlog import read_batches
from tests.faults.forked import words


def on_failing_storage(*arguments):
  """`llamax ARGUMENTS` where one read of records in ten fails; called in the forked process."""
  from llamax.cli.main import main
  from llamax.data import records

  opened, rng = records.open_reader, random.Random()

  class Failing:
    def __init__(self, path):
      self._inner = opened(path)
      self.num_records = self._inner.num_records

    def read(self, indices):
      if rng.random() < 0.1:
        raise OSError(errno.EIO, 'Input/output error')
      return self._inner.read(indices)

  records.open_reader = Failing
  return main(list(arguments))


def test_every_row_once_whatever_happens(server, tiny_data, tmp_path, scale):
  kills = scale(quick=2, ci=20, soak=400)
  rng = random.Random(kills)
  run, log = tmp_path / 'run', tmp_path / 'screen'

  def start(workdir, call=None, **config):
    log.unlink(missing_ok=True)
    return server.start(words(tiny_data, workdir, **config), log, call)

  for kill in range(kills):
    ways = {'data.read_threads': rng.choice([1, 2, 8]), 'data.prefetch_rows': rng.choice([8, 64, 300])}
    child = start(run, f'{__file__}:on_failing_storage' if kill % 2 else None, **ways)
    newest, end = max(steps(run / 'checkpoints'), default=0), time.monotonic() + 120
    while max(steps(run / 'checkpoints'), default=0) < newest + 2:
      assert not child.ended.wait(0.01) and time.monotonic() < end, child.screen()
    child.ended.wait(rng.uniform(0, 0.5))
    child.kill()
    assert child.wait(30) == -signal.SIGKILL, child.screen()
  rows, losses = read_batches(run)  # raises when a step that was done again differs
  last = max(losses)
  assert sorted(rows) == sorted(losses) == list(range(1, last + 1)), 'a step is missing'
  lines = len((run / 'batches-0.jsonl').read_text().splitlines())
  assert lines > last or kills < 10, 'no step was done again: nothing was proved'
  child = start(tmp_path / 'whole', **{'train.num_steps': last, 'checkpoint.every': 'none'})
  assert child.wait(600) == 0, child.screen()
  assert read_batches(tmp_path / 'whole') == (rows, losses)
  print(f'\n{kills} kills, {last} steps, {lines - last} of them done again', file=sys.stderr)


def test_no_row_twice_in_an_epoch(tiny_data, run_config):
  """The log could agree with itself and still leave rows out: here it is the documents that are counted."""
  from llamax.data.pipeline import open_training

  data = open_training(run_config(**{'data.sources': (str(tiny_data),)}).data)
  source, epoch = data.sources[0], data.num_rows_per_epoch
  batches = data.batches(batch_size=1, start_step=0)
  found = {}
  for _, batch in zip(range(epoch), batches, strict=False):
    for name in ('tokens', 'targets'):
      for token in batch[name][batch['segment_ids'] > 0].tolist():
        found[name, token] = found.get((name, token), 0) + 1
  wanted = {}
  for i, length in enumerate(source.lengths):
    tokens = source.read(i, 0, int(length)).tolist()
    for name, half in (('tokens', tokens[:-1]), ('targets', tokens[1:])):
      for token in half:
        wanted[name, token] = wanted.get((name, token), 0) + 1
  assert found == wanted
