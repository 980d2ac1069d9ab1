"""A sweep is killed, stopped, shared, fails in part: each run ends once, with the numbers it would have had."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llamax.observe.jsonl import read_metrics
from llamax.observe.ledger import read_ledger
from llamax.sweep.state import FAILED, FINISHED, PRUNED, STOPPED, WAITING, SweepLedger, run_states

HERE = Path(__file__).parent
STEPS = 30


@pytest.fixture
def sweep():
  """(folder, *words) -> the started process of fake_sweep.py; its standard output is a pipe."""
  started = []

  def start(folder, *words):
    environment = os.environ | {'PYTHONPATH': str(HERE.parents[1])}
    process = subprocess.Popen(
      [sys.executable, HERE / 'fake_sweep.py', folder, *map(str, words)],
      env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.stdout.close()
    process.wait()


def names(count):
  return [f'run{i}' for i in range(count)]


def states(folder, count):
  return [run_states(folder, names(count))[name].state for name in names(count)]


def metrics(folder, count):
  return {name: read_metrics(folder / 'runs' / name / 'metrics.jsonl') for name in names(count)}


def check_each_ran_once(folder, count):
  assert states(folder, count) == [FINISHED] * count
  assert not list(folder.glob('runs/*/twice'))
  for name, found in metrics(folder, count).items():
    scale = 1 + names(count).index(name)
    assert [line['loss'] for line in found] == [scale * (1 + 1 / step) for step in range(1, STEPS + 1)]
    assert [line['event'] for line in read_ledger(folder / 'runs' / name)] == ['end']


def test_runs_that_kills_interrupt_end_once_with_the_same_numbers(tmp_path, sweep):
  count = 8
  for _ in range(5):  # of at most 25 steps each, besides those of a slow kill: the 240 are not done by then
    process = sweep(tmp_path, count, STEPS, 2, 'kill')
    process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL
  process = sweep(tmp_path, count, STEPS, 2)
  process.communicate(timeout=200)
  assert process.returncode == 0
  check_each_ran_once(tmp_path, count)
  attempts = Counter(line['run'] for line in read_ledger(tmp_path) if line['event'] == 'started')
  assert max(attempts.values()) > 1  # A kill has met a run.


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_wish_to_stop_goes_on_to_all_runs(tmp_path, sweep, number, code):
  process = sweep(tmp_path, 3, 200, 2)
  for _ in range(2):
    assert 'started' in process.stdout.readline()
  while not all(tmp_path.joinpath('runs', name, 'metrics.jsonl').exists() for name in names(2)):
    time.sleep(0.02)
  time.sleep(0.1)
  process.send_signal(number)
  said, _ = process.communicate(timeout=200)
  assert process.returncode == 128 + number
  assert f'{number.name}: runs save, then end; the same command goes on (run0, run1)' in said
  assert states(tmp_path, 3) == [STOPPED, STOPPED, WAITING]
  ended = [line for line in read_ledger(tmp_path) if line['event'] == 'ended']
  assert [line['code'] for line in ended] == [code, code]
  # Saved where it was, not at its last fifth step alone.
  assert (tmp_path / 'runs/run0/checkpoint').read_text() == str(metrics(tmp_path, 1)['run0'][-1]['step'])


def test_the_second_sweep_is_refused_one_that_joins_shares_the_work(tmp_path, sweep):
  count = 16  # more than the first does while the two others come up, on a busy machine too
  first = sweep(tmp_path, count, STEPS, 1)
  assert 'started' in first.stdout.readline()
  second, third = sweep(tmp_path, count, STEPS, 1), sweep(tmp_path, count, STEPS, 1, 'join')
  said, _ = second.communicate(timeout=200)
  assert f'a sweep is running in {tmp_path} (host ' in said and f'process {first.pid}, started ' in said
  third.communicate(timeout=200)
  first.communicate(timeout=200)
  assert first.returncode == third.returncode == 0
  check_each_ran_once(tmp_path, count)
  starts = Counter(line['by']['pid'] for line in read_ledger(tmp_path) if line['event'] == 'started')
  assert sum(starts.values()) == count and len(starts) == 2


def test_one_run_fails_the_others_go_on(tmp_path, sweep):
  process = sweep(tmp_path, 3, STEPS, 1, 'fail')
  said, _ = process.communicate(timeout=200)
  assert states(tmp_path, 3) == [FINISHED, FAILED, FINISHED]
  assert 'run1: failed' in said and 'exit code 77 (the numbers went bad)' in said and 'what went wrong' in said
  assert not [name for name in started_by(sweep, tmp_path, 3)]
  SweepLedger(tmp_path).record('retried', run='run1')
  assert started_by(sweep, tmp_path, 3) == ['run1']
  check_each_ran_once(tmp_path, 3)


def started_by(sweep, folder, count):
  before = len(read_ledger(folder))
  sweep(folder, count, STEPS, 1).communicate(timeout=200)
  return [line['run'] for line in read_ledger(folder)[before:] if line['event'] == 'started']


def test_a_diverged_run_is_given_up_for_good(tmp_path, sweep):
  process = sweep(tmp_path, 3, 300, 2, 'diverge', 'prune')
  said, _ = process.communicate(timeout=200)
  assert 'run1: given up, its loss has risen from' in said
  assert states(tmp_path, 3) == [FINISHED, PRUNED, FINISHED]
  at = metrics(tmp_path, 3)['run1'][-1]['step']
  assert 25 < at < 290
  kinds = [line['event'] for line in read_ledger(tmp_path) if line.get('run') == 'run1']
  assert kinds == ['started', 'pruned', 'ended']
  assert started_by(sweep, tmp_path, 3) == []


def test_a_run_whose_numbers_went_bad_is_given_up_by_the_policy(tmp_path, sweep):
  process = sweep(tmp_path, 3, STEPS, 1, 'fail', 'prune')
  said, _ = process.communicate(timeout=200)
  assert states(tmp_path, 3) == [FINISHED, PRUNED, FINISHED], said
  assert 'run1: given up, the trainer gave up: the numbers went bad' in said
  lines = [line for line in read_ledger(tmp_path) if line.get('run') == 'run1']
  assert [line['event'] for line in lines] == ['started', 'pruned', 'ended']
  assert lines[-1]['code'] == 77 and lines[-1]['state'] == PRUNED


def test_a_run_that_is_brought_back_is_judged_by_what_it_does_then(tmp_path, sweep):
  sweep(tmp_path, 2, 100, 2, 'diverge', 'prune').communicate(timeout=200)
  before = metrics(tmp_path, 2)['run1'][-1]['step']
  SweepLedger(tmp_path).record('retried', run='run1')
  sweep(tmp_path, 2, 100, 2, 'diverge', 'prune').communicate(timeout=200)
  _, again = [line['step'] for line in read_ledger(tmp_path) if line['event'] == 'pruned']
  assert again >= before + 5  # as many losses as the policy looks at


def test_a_job_that_is_given_up_is_ended_then_given_back(tmp_path, sweep):
  process = sweep(tmp_path, 2, 300, 2, 'diverge', 'prune', 'jobs')
  said, _ = process.communicate(timeout=200)
  assert states(tmp_path, 2) == [FINISHED, PRUNED], said
  kinds = [line['event'] for line in read_ledger(tmp_path) if line.get('run') == 'run1']
  assert kinds == ['started', 'pruned', 'ended', 'given_back'] and (tmp_path / 'runs/run1/gone').exists()
  assert 'AND COST' not in said and not (tmp_path / 'runs/run0/gone').exists()


def test_a_job_that_cannot_be_ended_is_told(tmp_path, sweep):
  process = sweep(tmp_path, 2, 120, 2, 'diverge', 'prune', 'stuck')
  said, _ = process.communicate(timeout=200)
  assert 'run1: ITS JOB MAY STILL BE THERE, AND COST: what should end it ended with exit code 2' in said
  assert "sh -c 'echo no such host >&2; exit 2'" in said and '\n    no such host\n' in said
  assert metrics(tmp_path, 2)['run1'][-1]['step'] == 120


def test_a_job_that_was_given_up_before_a_kill_is_ended_by_the_next_sweep(tmp_path, sweep):
  ledger = SweepLedger(tmp_path)
  for name in names(2):
    ledger.started(name, 1, 0)
    ledger.pruned(name, 7, 'why not', elsewhere=True)
  ledger.given_back('run0')
  (tmp_path / 'runs/run1').mkdir(parents=True)
  (tmp_path / 'runs/run1/pid').write_text('0')  # The group of the command itself.
  sweep(tmp_path, 3, STEPS, 1, 'jobs').communicate(timeout=200)
  assert states(tmp_path, 3) == [PRUNED, PRUNED, FINISHED]
  assert (tmp_path / 'runs/run1/gone').exists() and not (tmp_path / 'runs/run0').exists()
  assert [line['run'] for line in read_ledger(tmp_path) if line['event'] == 'given_back'] == ['run0', 'run1']


def test_a_kill_between_the_decision_and_the_stop_does_not_bring_a_run_back(tmp_path, sweep):
  ledger = SweepLedger(tmp_path)
  ledger.started('run1', 1, 0)
  ledger.pruned('run1', 7, 'why not')
  assert sorted(started_by(sweep, tmp_path, 3)) == ['run0', 'run2']
  assert run_states(tmp_path, names(3))['run1'].reason == 'why not'


def test_a_run_that_has_finished_unnoticed_is_not_started(tmp_path, sweep):
  SweepLedger(tmp_path).started('run0', 1, 0)
  folder = tmp_path / 'runs/run0'
  folder.mkdir(parents=True)
  (folder / 'ledger.jsonl').write_text(json.dumps({'event': 'end', 'finished': True}) + '\n')
  assert started_by(sweep, tmp_path, 2) == ['run1']
  assert states(tmp_path, 2) == [FINISHED, FINISHED]


def test_a_run_that_someone_else_has_stopped_is_left_for_the_next_time(tmp_path, sweep):
  process = sweep(tmp_path, 2, 200, 1)
  assert 'started' in process.stdout.readline()
  log = tmp_path / 'runs/run0/output.log'
  while 'from step' not in log.read_text():
    time.sleep(0.02)
  (pid,) = subprocess.run(
    ['pgrep', '-P', str(process.pid), '-f', 'fake_train'], capture_output=True, text=True, check=True
  ).stdout.split()
  os.kill(int(pid), signal.SIGTERM)
  process.communicate(timeout=200)
  assert states(tmp_path, 2) == [STOPPED, FINISHED]
