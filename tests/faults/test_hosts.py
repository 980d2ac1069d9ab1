"""Runs of several processes: one dies, one is stuck, one is asked to stop, another number of them goes on."""

import random
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from llamax.checkpoint.steps import steps
from llamax.core import exits
from llamax.observe.batchlog import read_batches
from tests.faults import processes

FOREVER = {'train.num_steps': 1_000_000, 'checkpoint.every': 3}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Of all runs here: they share compiled programs."""
  return tmp_path_factory.mktemp('hosts')


@pytest.fixture
def launch(server, tiny_data, folder, request):
  """(processes, name of the workdir, ...) -> the run; ended with the test."""
  runs = []

  def start(count, name, faults=None, others=None, **changes):
    runs.append(processes.start(server, count, tiny_data, folder / name, faults, others, **changes))
    return runs[-1]

  yield start
  for run in runs:
    run.kill()


def newest(folder, name):
  return max(steps(folder / name / 'checkpoints'), default=0)


def whole(launch, folder, last):
  """The rows, the losses of an undisturbed run in one process."""
  name = f'whole-{last}'
  if not (folder / name).exists():
    run = launch(1, name, **{'train.num_steps': last, 'checkpoint.every': 'none'})
    assert run.codes(600) == [0], run.screens()
  return read_batches(folder / name)


def assert_undisturbed(launch, folder, name):
  """`name` goes on to its end, then all of it is what one process alone would have done, to the bit."""
  rows, losses = read_batches(folder / name)  # raises when a step that was done again differs
  last = max(losses)
  assert sorted(losses) == list(range(1, last + 1)), 'a step is missing'
  assert (rows, losses) == whole(launch, folder, last)
  return last


def test_processes_come_and_go_between_kills(launch, folder, scale):
  kills = scale(quick=1, ci=25, soak=100)
  rng = random.Random(kills)
  counts = [2, 4][: min(kills, 2)] + [rng.choice((1, 2, 4)) for _ in range(kills - 2)]
  for kill, count in enumerate(counts):
    before = newest(folder, 'switching')
    run = launch(count, 'switching', **FOREVER)
    run.wait_for('step ', 60 + 30 * count)
    if kill % 3 == 0:  # At least sometimes there is something new to go on from.
      end = time.monotonic() + 60
      while newest(folder, 'switching') == before and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 1))
    run.kill()
    assert run.codes(60) == [-signal.SIGKILL] * count, run.screens()
    assert newest(folder, 'switching') >= before
  last = assert_undisturbed(launch, folder, 'switching')
  print(f'\n{kills} kills over {counts} processes, {last} steps')


@pytest.mark.parametrize('rank', [1, 0])
def test_a_dead_host_is_named_by_the_others(launch, rank):
  run = launch(2, f'dead-{rank}', **FOREVER)
  run.wait_for('step ', 120)
  dead, began = run[rank].pid, time.monotonic()
  run[rank].kill(signal.SIGKILL)
  other = run[1 - rank]
  assert other.wait(15) == exits.LOST, run.screens()
  print(f'\nprocess {rank} dead: the other ended after {time.monotonic() - began:.1f} s')
  assert f'process {rank} (host {socket.gethostname()}, pid {dead})' in other.screen()


# (where, at which call, what): one host dies there.
DEATHS = {
  'compile': 'jax.stages.Lowered.compile:1:die',
  'barrier': 'llamax.train.opening.by_first:2:die',
  'save': 'orbax.checkpoint.AsyncCheckpointer.save:2:die',
  'commit': 'llamax.checkpoint.manager.Checkpoints._finish:2:die',
  'restore': 'llamax.checkpoint.reading.read_step:1:die',
}


@pytest.mark.parametrize('rank', [1, 0, 3])
@pytest.mark.parametrize('where', DEATHS)
def test_a_host_dies_anywhere(launch, folder, scale, where, rank):
  if not scale(quick=(where, rank) == ('save', 1), ci=rank < 2, soak=True):
    pytest.skip('in make faults, make soak')
  count = 4 if rank == 3 else 2
  name = f'dies-{where}-{rank}'
  if where == 'restore':
    assert launch(count, name, **FOREVER | {'train.num_steps': 5}).codes(240) == [0] * count
  run = launch(count, name, {rank: DEATHS[where]}, **FOREVER)
  assert run[rank].ended.wait(180), run.screens()
  began, dead = time.monotonic(), run[rank].pid
  codes = run.codes(15)
  print(f'\nprocess {rank} dead in {where}: {codes} after {time.monotonic() - began:.1f} s')
  for other, code in enumerate(codes):
    if other != rank:
      assert code == exits.LOST, run.screens()
      assert f'process {rank} (host {socket.gethostname()}, pid {dead})' in run[other].screen()


def test_a_host_that_stands_still_is_named(launch, scale):
  for rank in scale(quick=(), ci=(0, 1), soak=(0, 1)):
    run = launch(2, f'stopped-{rank}', **FOREVER)
    run.wait_for('step ', 120)
    run[rank].kill(signal.SIGSTOP)
    assert run[1 - rank].wait(15) == exits.LOST, run.screens()
    assert f'pid {run[rank].pid}' in run[1 - rank].screen()


# What hangs -> (rank, fault, the phase that is to be named).
HANGS = {
  'data': (1, 'llamax.train.loop.global_batch:5:hang', 'data'),
  'first batch': (0, 'llamax.train.loop.global_batch:1:hang', 'first_batch'),
  'callback': (0, 'llamax.observe.writer.Writer.write:5:hang', 'log'),
  'save': (1, 'orbax.checkpoint.AsyncCheckpointer.save:2:hang', 'save'),
  'save thread': (1, 'llamax.checkpoint.manager.Checkpoints._finish:2:hang', 'write'),
  'lock kept': (1, 'llamax.train.loop.global_batch:8:hold', ''),
  'lock kept, process 0': (0, 'llamax.train.loop.global_batch:8:hold', ''),
}


@pytest.mark.parametrize('what', HANGS)
def test_a_stuck_host_is_named_with_its_phase(launch, folder, scale, what):
  if not scale(quick=what == 'data', ci=True, soak=True):
    pytest.skip('in make faults, make soak')
  rank, fault, phase = HANGS[what]
  budgets = {f'watchdog.{name}_seconds': 8 for name in ('step', 'first_step', 'save')}
  name = f'stuck-{what}'
  run = launch(2, name, {rank: fault}, **FOREVER, **budgets, **{'watchdog.step_factor': 1.0})
  assert run[1 - rank].ended.wait(240), run.screens()
  codes = run.codes(40)
  for child, code in zip(run.children, codes, strict=True):
    # Who keeps Python's lock cannot say anything: it is ended from C.
    assert code == (exits.BUG if phase == '' and child is run[rank] else exits.LOST), run.screens()
  told = f'process {rank} (host {socket.gethostname()}, pid {run[rank].pid})'
  if phase:
    found = re.search(rf"{re.escape(told)} is stuck in phase '{phase}'.* for (\d+) s", run[1 - rank].screen())
    assert found and int(found[1]) < 30, run.screens()
    assert 'act' in (folder / name / f'stacks-{rank}.txt').read_text(), 'the stack of the fault'
  else:
    assert f'{told} no longer answers' in run[1 - rank].screen(), run.screens()


def test_a_sigterm_to_any_host_stops_all_at_one_step(launch, folder, scale):
  rng, tries = random.Random(1), scale(quick=1, ci=10, soak=50)
  for attempt in range(tries):
    run = launch(2, 'asked', **FOREVER)
    run.wait_for('step ', 120)
    time.sleep(rng.uniform(0, 1.5))
    rank = rng.randrange(2)
    run[rank].kill(signal.SIGTERM)
    if attempt % 2:  # Another one while the state is being saved tears nothing.
      time.sleep(rng.uniform(0, 0.3))
      run[rank].kill(signal.SIGTERM)
    assert run.codes(60) == [exits.RESUME] * 2, run.screens()
    found = re.search(r'stopped after step ([\d,]+), saved', run[0].screen())
    assert found, run.screens()
    assert newest(folder, 'asked') == int(found[1].replace(',', ''))
  print(f'\n{tries} times: all at one step, the last is {assert_undisturbed(launch, folder, "asked")}')


def test_no_time_to_save_is_no_save(launch, folder):
  """The last save took longer than checkpoint.grace_seconds leaves."""
  slow = dict.fromkeys((0, 1), 'llamax.checkpoint.digests.write:1:3')
  run = launch(2, 'grace', slow, **FOREVER, **{'checkpoint.grace_seconds': 2, 'checkpoint.keep_last': 100})
  end = time.monotonic() + 120
  while not newest(folder, 'grace'):
    assert time.monotonic() < end, run.screens()
    time.sleep(0.1)
  time.sleep(1)
  run[1].kill(signal.SIGTERM)
  assert run.codes(60) == [exits.RESUME] * 2, run.screens()
  assert 'left no time to save' in run[0].screen()


def test_the_error_of_one_host_is_told_by_all(launch):
  run = launch(2, 'error', {1: 'llamax.train.loop.open_data:1:error'}, **FOREVER)
  assert run.codes(90) == [exits.LOST, exits.BUG], run.screens()
  assert f'pid {run[1].pid}) ended: RuntimeError: a fault of this host alone' in run[0].screen()
  assert 'Traceback' not in run[0].screen()


def test_hosts_that_were_started_otherwise_are_refused(launch, folder):
  run = launch(2, 'unlike', others=['--config.optim.learning_rate=0.5'], **FOREVER)
  assert run.codes(60) == [exits.MISTAKE] * 2, run.screens()
  for child in run.children:
    assert re.search(r'process 1 \(host .*\) has optim.learning_rate=0.5, process 0 has \S+: ', child.screen())
  assert not (folder / 'unlike').exists()


def test_a_host_with_another_disk_is_refused(launch, folder):
  began = time.monotonic()
  run = launch(2, 'mine', others=[f'--workdir={folder}/yours'], **FOREVER)
  assert run.codes(60) == [exits.MISTAKE] * 2, run.screens()
  assert time.monotonic() - began < 30
  for child in run.children:
    assert f'there is no {folder}/yours/lease/1.json' in child.screen(), run.screens()
    assert f', {folder}/mine)' in child.screen() and 'one workdir, on a shared disk' in child.screen()
  assert not (folder / 'yours').exists()


def listening(pid: int) -> set[str]:
  """ADDRESS:PORT of the sockets that a process listens on."""
  inodes = set()
  for handle in Path(f'/proc/{pid}/fd').iterdir():
    try:
      inodes.add(str(handle.readlink()))
    except FileNotFoundError:
      continue
  found = set()
  for table in ('tcp', 'tcp6'):
    for line in Path(f'/proc/{pid}/net/{table}').read_text().splitlines()[1:]:
      part = line.split()
      if part[3] == '0A' and f'socket:[{part[9]}]' in inodes:
        address, port = part[1].split(':')
        # In words of four bytes, each with the lowest first.
        raw = b''.join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
        family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
        found.add(f'{socket.inet_ntop(family, raw)}:{int(port, 16)}')
  return found


def test_what_listens_is_what_is_declared(launch):
  """hosts.PORTS: the coordinator on process 0, gloo on each, on the address of the coordinator alone."""
  run = launch(2, 'ports', **FOREVER)
  run.wait_for('step ', 120)
  coordinator = run.address
  first, second = (listening(child.pid) for child in run.children)
  assert f'::ffff:{coordinator}' in first or coordinator in first
  first -= {coordinator, f'::ffff:{coordinator}'}
  for rest in (first, second):
    assert len(rest) == 1, (first, second)
    assert rest.pop().startswith('127.0.0.1:')
  alone = launch(1, 'ports-alone', **FOREVER)
  alone.wait_for('step ', 120)
  assert listening(alone[0].pid) == set()


def test_slow_or_fast_progress_is_no_alarm(launch, folder, scale):
  if not scale(quick=False, ci=True, soak=True):
    pytest.skip('in make faults, make soak')
  fast = launch(2, 'fast', **FOREVER | {'train.num_steps': scale(quick=0, ci=300, soak=10_000)})
  assert fast.codes(scale(quick=0, ci=1200, soak=7200)) == [0, 0], fast.screens()
  # Each step takes 3 s, one 15 s; without progress for 8 s, or 10 median steps, is stuck.
  fault = {1: 'llamax.train.loop.global_batch:20:15'}
  budgets = {'watchdog.step_seconds': 8, 'train.num_steps': 30, 'log.every': 1}
  slow = launch(2, 'slow', fault | {0: 'llamax.train.loop.global_batch:0:3'}, **FOREVER | budgets)
  assert slow.codes(600) == [0, 0], slow.screens()


def test_waiting_for_the_last_save_is_no_stuck_step(launch, scale):
  if not scale(quick=False, ci=True, soak=True):
    pytest.skip('in make faults, make soak')
  slow = {0: 'llamax.checkpoint.digests.write:1:12'}
  short = {'train.num_steps': 5, 'checkpoint.every': 'none'}
  run = launch(2, 'last', slow, **short, **{'watchdog.step_seconds': 4, 'watchdog.step_factor': 1.0})
  assert run.codes(120) == [0, 0], run.screens()
