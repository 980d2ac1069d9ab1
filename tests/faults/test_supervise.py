"""A supervised training run whose process is killed again and again ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time

from llamax.checkpoint import digests, lease_folder
from llamax.checkpoint.steps import steps
from llamax.observe.batchlog import read_batches
from llamax.observe.ledger import read_ledger
from tests.faults.forked import QUIET, ROOT, with_devices, words

ENV = os.environ | QUIET | with_devices(1) | {'PYTHONPATH': str(ROOT)}
LLAMAX = [sys.executable, '-m', 'llamax.cli.main']


def wait_until(true, process, log, seconds=120):
  end = time.monotonic() + seconds
  while not true():
    assert process.poll() is None and time.monotonic() < end, log.read_text()
    time.sleep(0.01)


def test_the_child_killed_again_and_again(server, tiny_data, tmp_path, scale):
  kills = scale(quick=1, ci=6, soak=30)
  run, whole, log = tmp_path / 'run', tmp_path / 'whole', tmp_path / 'screen'
  changes = {'train.num_steps': 12 * (kills + 1), 'train.seed': 5}
  command = [*LLAMAX, *map(str, words(tiny_data, run, **changes))]
  with open(log, 'w') as screen:
    process = subprocess.Popen(
      [*LLAMAX, 'supervise', '--max_failures=2', '--', *command], env=ENV, stdout=screen, stderr=screen
    )
  try:
    killed = []
    for kill in range(kills):
      wait_until(
        lambda wanted=6 * (kill + 1): max(steps(run / 'checkpoints'), default=0) >= wanted, process, log
      )
      wait_until(lambda: _holder(run) not in (None, *killed), process, log)
      killed.append(_holder(run))
      os.kill(killed[-1], signal.SIGKILL)
    assert process.wait(300) == 0, log.read_text()
  finally:
    process.kill()
    process.wait()
  ends = [event for event in read_ledger(run, 'supervise.jsonl') if event['event'] == 'ended']
  assert [end['code'] for end in ends] == [-signal.SIGKILL] * kills + [0], log.read_text()
  assert ends[-1]['step'] == changes['train.num_steps']
  assert log.read_text().count('killed by SIGKILL') == kills
  for step in steps(run / 'checkpoints'):
    assert digests.verify(run / 'checkpoints' / str(step)) == []
  undisturbed = server.start(words(tiny_data, whole, **changes), tmp_path / 'whole-screen')
  assert undisturbed.wait(300) == 0, undisturbed.screen()
  assert read_batches(run) == read_batches(whole)
  assert len(read_batches(run)[1]) == changes['train.num_steps']


def _holder(run):
  """The process that holds the workdir."""
  token = lease_folder.newest(run / 'lease')
  found = token and lease_folder.read(run / 'lease', token)
  return found.process.pid if found and not found.released else None
