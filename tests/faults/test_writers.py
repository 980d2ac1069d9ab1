"""Two writers on one workdir: the second is refused with the holder's name, or the first is fenced."""

import contextlib
import random
import re
import signal
import time

from llamax.checkpoint import digests, lease_folder
from llamax.checkpoint.holder import here
from llamax.checkpoint.steps import meta, steps
from llamax.core import exits
from llamax.observe.jsonl import read_lines
from tests.faults.forked import words

# Who wrote a checkpoint: it holds its run's config, and this key may change from start to start.
MARK = 'train.num_steps'


class Writers:
  """Starts runs on one workdir, each with a mark of its own."""

  def __init__(self, server, tiny_data, tmp_path):
    self.run, self.folder = tmp_path / 'run', tmp_path / 'run/checkpoints'
    self._server, self._data, self._tmp = server, tiny_data, tmp_path
    self._count = 0

  def start(self, lease_seconds):
    self._count += 1
    log = self._tmp / f'screen-{self._count}'
    changes = {MARK: 1_000_000 + self._count, 'checkpoint.lease_seconds': lease_seconds, 'log.batches': 'false'}
    child = self._server.start(words(self._data, self.run, **changes), log)
    child.mark = 1_000_000 + self._count
    return child

  def newest(self):
    return max(steps(self.folder), default=0)

  def holder(self):
    """The process that holds the workdir, with when it started."""
    token = lease_folder.newest(self.run / 'lease')
    with contextlib.suppress(FileNotFoundError):
      found = token and lease_folder.read(self.run / 'lease', token)
      return (found.process.pid, found.started) if found and not found.released else (None, None)
    return None, None

  def author(self, step):
    return meta(self.folder / str(step))['config']['train']['num_steps']

  def until(self, true, *children, seconds=90):
    end = time.monotonic() + seconds
    while not true():
      assert time.monotonic() < end and not any(child.ended.is_set() for child in children), self.screens(
        *children
      )
      time.sleep(0.01)

  def trains(self, child):
    """Until it has put two more checkpoints in place."""
    self.until(lambda: self.holder()[0] == child.pid, child)
    before = self.newest()
    self.until(lambda: self.newest() >= before + 4, child)
    with contextlib.suppress(FileNotFoundError):  # It trains on: retention may have come.
      assert self.author(self.newest()) == child.mark

  def refused(self, child, pid, started, seconds=30):
    begun = time.monotonic()
    assert child.wait(seconds) == exits.MISTAKE, child.screen()
    for told in (
      'in use by another run',
      f'host {here().host}',
      f'process {pid}',
      f'started {started}',
      'kill',
    ):
      assert told in child.screen(), (told, child.screen())
    assert 'Traceback' not in child.screen()
    return time.monotonic() - begun

  def screens(self, *children):
    return '\n----\n'.join(child.screen() for child in children)


def together(writers, rng):
  """Which of two that start in the same instant gets it is open; the other is told."""
  both = [writers.start(10), writers.start(10)]
  writers.until(lambda: any(child.ended.is_set() for child in both))
  second, first = sorted(both, key=lambda child: not child.ended.is_set())
  pid, started = writers.holder()
  assert pid == first.pid, writers.screens(*both)
  writers.refused(second, pid, started)
  writers.trains(first)
  return first


def later(writers, rng):
  first = writers.start(10)
  writers.trains(first)
  pid, started = writers.holder()
  assert pid == first.pid
  time.sleep(rng.uniform(0, 0.3))
  seconds = writers.refused(writers.start(10), pid, started)
  print(f'refused {seconds:.1f} s after its start')
  writers.trains(first)
  return first


def stopped(writers, rng, early=False):
  """The holder sleeps past its lease anywhere in its work, and awakes while the second one trains."""
  first = writers.start(2)
  if early:  # Between taking the workdir and its first checkpoint.
    writers.until(lambda: writers.holder()[0] == first.pid, first)
  else:
    writers.trains(first)
  time.sleep(rng.uniform(0, 1.0 if early else 0.3))
  first.kill(signal.SIGSTOP)
  frozen = writers.newest()
  time.sleep(2.1)
  second = writers.start(10)
  writers.trains(second)
  assert f'taking over {writers.run}' in second.screen() and f'process {first.pid}' in second.screen()
  logged = read_lines(writers.run / 'metrics.jsonl')
  first.kill(signal.SIGCONT)
  assert first.wait(30) == exits.FENCED, first.screen()
  assert re.search(rf'taken over by host \S+, process {second.pid}, started', first.screen()), first.screen()
  assert 'Traceback' not in first.screen(), first.screen()
  writers.trains(second)
  assert 'was not written' not in second.screen(), second.screen()
  for step in steps(writers.folder):
    with contextlib.suppress(FileNotFoundError):  # Retention of the second one, which trains on.
      assert step <= frozen or writers.author(step) == second.mark, f'step {step} is of the fenced run'
  # The one that was fenced has not cut anything off.
  assert read_lines(writers.run / 'metrics.jsonl')[: len(logged)] == logged
  return second


def stopped_early(writers, rng):
  return stopped(writers, rng, early=True)


def test_pairs(server, tiny_data, tmp_path, scale):
  kinds = [stopped, together, later, stopped_early]
  pairs = scale(quick=1, ci=10, soak=100)
  rng = random.Random(pairs)
  writers = Writers(server, tiny_data, tmp_path)
  for pair in range(pairs):
    survivor = kinds[pair % len(kinds)](writers, rng)
    survivor.kill(signal.SIGKILL if rng.random() < 0.7 else signal.SIGTERM)
    assert survivor.wait(60) in (-signal.SIGKILL, exits.RESUME), survivor.screen()
    for step in steps(writers.folder):
      assert digests.verify(writers.folder / str(step)) == [], f'pair {pair}: step {step}'
    # Who was fenced before its first save may leave an empty one.
    assert sum(any(left.iterdir()) for left in writers.folder.glob('writer-*')) <= 1
    assert not list(writers.folder.glob('damaged-*'))
  print(f'{pairs} pairs, {writers.newest()} steps')
