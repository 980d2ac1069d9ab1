"""A command with all that it starts ends when whoever started it does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from llamax.core.errors import UserError
from llamax.train import child as module
from llamax.train.child import STOPPING, Child

# A command that starts another in a group of its own, says both numbers, then both sleep.
OTHER = 'import os, time; os.setpgrp(); print(os.getppid(), os.getpid(), flush=True); time.sleep(60)'
FAMILY = f"{sys.executable} -S -c '{OTHER}' & wait"


def running(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] not in 'ZX'
  except FileNotFoundError:
    return False


def gone(pids, seconds=5.0):
  end = time.monotonic() + seconds
  while any(map(running, pids)) and time.monotonic() < end:
    time.sleep(0.01)
  return not any(map(running, pids))


@pytest.fixture
def parent():
  """(how it waits) -> (a process with a Child of FAMILY, the numbers of the two in it)."""
  started = []

  def start(then):
    code = (
      'import os, signal, time\nfrom llamax.train.child import Child\n'
      'signal.signal(signal.SIGHUP, signal.SIG_DFL)\n'  # nohup, and so whoever runs the tests, may ignore it.
      f'child = Child(["sh", "-c", {FAMILY!r}])\n'
    )
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    process = subprocess.Popen(
      [sys.executable, '-c', code + then], env=environment, text=True, stdout=subprocess.PIPE
    )
    started.append(process)
    return process, [int(word) for word in process.stdout.readline().split()]

  yield start
  for process in started:
    process.kill()
    process.stdout.close()
    process.wait()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_all_of_it_ends_with_a_killed_parent(parent, number):
  process, family = parent('child.wait()')
  assert len(family) == 2 and all(map(running, family))
  process.send_signal(number)
  assert gone(family)


def test_the_command_ends_with_its_parent_even_without_the_guard(parent):
  process, family = parent('os.kill(child._guard, 9); os.waitpid(child._guard, 0); time.sleep(60)')
  time.sleep(0.3)
  process.kill()
  assert gone(family[:1])
  os.kill(family[1], signal.SIGKILL)


def test_leftovers_are_killed_or_let_go():
  for kill in (True, False):
    out, into = os.pipe()
    script = f"{sys.executable} -S -c '{OTHER}' > /proc/{os.getpid()}/fd/{into} & sleep 0.5; exit 3"
    child = Child(['sh', '-c', script])
    with os.fdopen(out) as lines:
      left = int(lines.readline().split()[1])
    os.close(into)
    assert child.wait() == 3
    start = time.monotonic()
    child.close(kill_leftovers=kill)
    assert time.monotonic() - start < 1
    assert running(left) != kill
    if not kill:
      os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize(
  ('script', 'code'), [('exit 0', 0), ('exit 77', 77), ('kill -9 $$', -9), ('kill $$', -15)]
)
def test_how_it_ended(script, code):
  child = Child(['sh', '-c', script])
  assert child.wait() == code
  child.close(kill_leftovers=True)


def test_a_command_that_is_not_there():
  with pytest.raises(UserError, match="'no-such-command' cannot be started"):
    Child(['no-such-command'])


def test_the_command_hears_signals_though_its_parent_did_not_when_it_started():
  heard = 'import signal, sys; sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))'
  before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
  try:
    child = Child([sys.executable, '-S', '-c', heard])
    assert child.wait() == 0
    child.close(kill_leftovers=True)
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_guard_that_was_killed_is_not_missed():
  child = Child(['sh', '-c', 'sleep 0.1; exit 3'])
  os.kill(child._guard, signal.SIGKILL)
  assert child.wait() == 3
  child.close(kill_leftovers=True)


def test_a_command_starts_though_its_guard_was_killed(monkeypatch):
  start = module._start_guard

  def killed():
    guard, pipe = start()
    os.kill(guard, signal.SIGKILL)
    os.waitid(os.P_PID, guard, os.WEXITED | os.WNOWAIT)
    return guard, pipe

  monkeypatch.setattr(module, '_start_guard', killed)
  child = Child(['sh', '-c', 'exit 3'])
  assert child.wait() == 3
  child.close(kill_leftovers=True)


def test_two_commands_beside_each_other_end_with_their_parent(parent):
  process, family = parent(f'other = Child(["sh", "-c", {FAMILY!r}])\nchild.wait()')
  family += [int(word) for word in process.stdout.readline().split()]
  assert len(family) == 4 and all(map(running, family))
  process.kill()
  assert gone(family)


def test_its_environment_its_output_and_an_end_that_is_looked_for(tmp_path):
  with open(tmp_path / 'log', 'wb') as log:
    child = Child(
      ['sh', '-c', 'echo $LETTER; echo said >&2; sleep 0.5; exit 75'],
      environment={'LETTER': 'x', 'PATH': os.environ['PATH']},
      output=log.fileno(),
    )
  assert child.poll() is None
  assert child.wait() == child.poll() == 75
  child.close(kill_leftovers=True)
  assert (tmp_path / 'log').read_text() == 'x\nsaid\n'
