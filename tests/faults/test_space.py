"""A disk that fills up under a real run: said at once, the newest checkpoint stays, room brings it back."""

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest

from llamax.checkpoint import digests
from llamax.checkpoint.steps import steps
from llamax.observe.batchlog import read_batches
from llamax.observe.ledger import read_ledger
from tests.faults.forked import words


@pytest.fixture
def small_disk(tmp_path):
  """A folder on a disk of its own, of 4 MB."""
  folder = tmp_path / 'small'
  folder.mkdir()
  made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', folder], capture_output=True)
  if made.returncode:
    pytest.skip('only root can mount a small disk; the shim of test_disk.py fills every disk')
  yield folder
  subprocess.run(['umount', '-l', folder], check=True)


def until(condition, child, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert not child.ended.is_set() and time.monotonic() < end, child.screen()
    time.sleep(0.02)


def room(folder):
  found = os.statvfs(folder)
  return found.f_bavail * found.f_frsize


def test_full_disk(server, small_disk, tiny_data, tmp_path, scale):
  run, log = small_disk / 'run', tmp_path / 'screen'
  rng = random.Random(0)
  times = scale(quick=1, ci=20, soak=200)
  child = server.start(words(tiny_data, run, **{'checkpoint.keep_every': 'none'}), log)
  folder, filler = run / 'checkpoints', small_disk / 'filler'
  until(lambda: len(steps(folder)) >= 2, child)
  needed = digests.size(folder / str(steps(folder)[-1]))
  for _ in range(times):
    before = child.screen().count('was not written')
    left = rng.randrange(1 << 14, needed)  # Runs out anywhere in a save; the logs still have room.
    with open(filler, 'wb', buffering=0) as file:

      def failed(before=before, left=left, file=file):
        # Again and again: what retention deletes meanwhile would be room for the next save.
        with contextlib.suppress(OSError):  # The run took the last of it.
          while (more := room(small_disk) - left) > 0:
            file.write(bytes(min(1 << 16, more)))
        return child.screen().count('was not written') > before

      until(failed, child)
    listed = steps(folder)
    assert listed and not any(digests.verify(folder / str(step)) for step in listed[-1:]), child.screen()
    filler.unlink()
    until(lambda listed=listed: steps(folder)[-1] > listed[-1], child)
  child.kill(signal.SIGTERM)
  assert child.wait(60) in (75, 130), child.screen()
  assert 'Traceback' not in child.screen()
  last = max(steps(folder))
  assert all(digests.verify(folder / str(step)) == [] for step in steps(folder))
  told = [line for line in read_ledger(run) if line['event'] == 'save_failed']
  assert len(told) >= times and all('No space left' in line['problem'] for line in told)
  assert not list(folder.glob('writer-*')) and not list((folder / 'trash').iterdir())
  # What the disk could not hold was the checkpoints, never a step.
  whole = tmp_path / 'whole'
  ending = words(tiny_data, whole, **{'train.num_steps': last, 'checkpoint.every': 'none'})
  assert server.start(ending, tmp_path / 'whole-screen').wait(600) == 0
  lost = {step: loss for step, loss in read_batches(run)[1].items() if loss != read_batches(whole)[1][step]}
  assert not lost
  print(f'\nfull {times} times: {len(told)} saves failed, {last} steps')
