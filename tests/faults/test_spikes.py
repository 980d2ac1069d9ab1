"""Whole runs whose numbers go bad: how they get past it, when they give up, kills on the way."""

import json
import math
import random
import re
import shutil

import pytest

from llamax.checkpoint.steps import protected, steps
from llamax.core.exits import NUMBERS
from llamax.observe.batchlog import read_batches
from llamax.observe.jsonl import read_metrics
from llamax.observe.ledger import read_ledger
from llamax.optim.schedule import make_schedule
from tests.faults.forked import ROOT, with_devices
from tests.faults.processes import free_port

CALL = f'{ROOT}/tests/faults/bad_numbers.py:train'


@pytest.fixture(scope='module')
def runs_in(forks, tiny_data):
  """A folder -> `train`, with its workdirs there."""
  return lambda folder: make_train(forks, tiny_data, folder)


@pytest.fixture
def train(server, runs_in, tmp_path):
  """(workdir name, plan, **config) -> (exit code, screen) of a run of 24 steps, a checkpoint every 4.

  processes, devices: of how many processes, with how many devices each; the code is then the first bad one.
  """
  return runs_in(tmp_path)


def make_train(server, tiny_data, folder):
  def run(name, plan=(), processes=1, devices=1, **changes):
    settings = {
      'compute.compilation_cache': 'none',
      'data.sources': tiny_data,
      'data.seq_len': 32,
      'eval.splits': f'validation={tiny_data}:validation',
      'eval.every': 'none',
      'eval.num_batches': 1,
      'sample.prompts': '()',
      'train.num_steps': 24,
      'checkpoint.every': 4,
      'checkpoint.keep_last': 9,
      'log.every': 1,
      'log.batches': 'true',
      'guard.spike_window': 4,
      'guard.spike_rewind': 3,
      'guard.spike_skip': 6,
      **{key.replace('__', '.'): value for key, value in changes.items()},
    }
    flags = [f'--config.{key}={value}' for key, value in settings.items()]
    words = [f'--config={ROOT}/configs/debug.py', f'--workdir={folder / name}', *flags]
    children, port = [], free_port()
    for rank in range(processes):
      screen = folder / f'{name}-{rank}.screen'
      screen.unlink(missing_ok=True)
      several = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}', f'--process_id={rank}']
      arguments = [json.dumps(dict(plan)), *words, *(several if processes > 1 else [])]
      children.append(server.start(arguments, screen, call=CALL, **with_devices(devices)))
    codes = [child.wait(120) for child in children]
    return next((code for code in codes if code), 0), '\n'.join(child.screen() for child in children)

  run.folder = folder
  return run


def losses(workdir):
  """step -> loss bits, from the batch log: the last way that the run took."""
  return read_batches(workdir)[1]


def events(workdir, name):
  return [line for line in read_ledger(workdir) if line['event'] == name]


def test_bad_steps_are_told_then_the_run_goes_on(train, tiny_config):
  code, screen = train('run', {'nan': [0, 5, 11, 23]}, log__every=5)
  assert code == 0, screen
  assert screen.count('the update is left out') == 4
  told = events(train.folder / 'run', 'skipped')
  assert [(event['step'], event['batch']) for event in told] == [(1, 0), (6, 5), (12, 11), (24, 23)]
  assert all(event['documents'] for event in told)
  lines = {
    line['step']: line for line in read_metrics(train.folder / 'run/metrics.jsonl') if 'grad_norm' in line
  }
  assert sorted(lines) == [1, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24]
  for step, line in lines.items():
    assert line['skipped'] == (step in (1, 6, 12, 24))
    assert math.isfinite(line['loss']) == (step != 1)
    assert math.isfinite(line['grad_norm']) == (step not in (6, 12, 24))
  assert protected(train.folder / 'run/checkpoints').keys() == {4, 8, 20}
  # The schedule counts the updates that were made.
  schedule = make_schedule(tiny_config().optim, 24)
  for step, made in ((1, 0), (4, 2), (5, 3), (15, 11), (20, 16)):
    assert lines[step]['learning_rate'] == float(schedule(made)), step


def test_too_many_in_a_row_end_the_run_at_one_step(train):
  nan = {'nan': [6, 7, 8]}
  code, screen = train('run', nan, guard__max_bad_steps=3)
  assert code == NUMBERS, screen
  assert re.search(r'steps 7 to 9: NaN or Inf .*3 in a row', screen), screen
  assert 'The batch of step 9 is number 8 of the stream, made of ' in screen
  assert steps(train.folder / 'run/checkpoints') == [4, 8]
  assert protected(train.folder / 'run/checkpoints').keys() == {4}
  # From the checkpoint in the middle of them, with two skipped already.
  code, screen = train('run', nan, guard__max_bad_steps=3)
  assert code == NUMBERS and 'resuming after step 8' in screen and 'steps 7 to 9' in screen, screen
  code, screen = train('run', nan, guard__max_bad_steps=4)
  assert code == 0, screen
  code, screen = train('through', nan, guard__max_bad_steps=4)
  assert code == 0, screen
  assert losses(train.folder / 'run') == losses(train.folder / 'through')


def test_weights_with_a_nan_are_never_saved(train):
  code, screen = train('run', {'weights': 12})
  assert code == NUMBERS, screen
  assert 'NaN or Inf in 1 array(s): params/final_norm/scale' in screen
  assert 'the checkpoints of steps 4, 8 stand' in screen
  assert steps(train.folder / 'run/checkpoints') == [4, 8]
  code, screen = train('run')
  assert code == 0 and 'resuming after step 8' in screen, screen


SPIKE = {'guard__spike_threshold': 6.0}
POISON = {'poison': [13]}


@pytest.fixture(scope='module')
def rolled_back(runs_in, tmp_path_factory):
  """(workdir, screen) of a run whose batch 13 is poisoned."""
  train = runs_in(tmp_path_factory.mktemp('rolled'))
  code, screen = train('run', POISON, **SPIKE)
  assert code == 0, screen
  return train.folder / 'run', screen


@pytest.fixture(scope='module')
def never(runs_in, tmp_path_factory):
  """The workdir of a run that never saw the batch, nor those left out with it."""
  train = runs_in(tmp_path_factory.mktemp('never'))
  code, screen = train('run', {'skips': [[10, 6]]})
  assert code == 0, screen
  return train.folder / 'run'


def test_a_spike_is_gone_around(train, rolled_back, never):
  workdir, told = rolled_back
  [event] = events(workdir, 'rollback')
  # Step 14 takes batch 13; three steps of good batches before it: those from number 10 on are left out.
  assert (event['spike'], event['to'], event['at'], event['skip']) == (14, 8, 10, 6)
  assert 'warning: step 14: the loss leaps' in told and 'batches 10 to 15 of the stream' in told
  assert losses(workdir) == losses(never)
  assert read_batches(workdir)[0] == read_batches(never)[0]
  assert [line['step'] for line in read_metrics(workdir / 'metrics.jsonl') if 'loss' in line] == [*range(1, 25)]
  code, screen = train('passed', POISON)
  assert code == 0, screen
  assert not events(train.folder / 'passed', 'rollback')
  assert losses(train.folder / 'passed') != losses(workdir)


def test_a_kill_during_a_roll_back_changes_nothing(train, rolled_back, scale):
  want = losses(rolled_back[0])
  code, screen = train('start', {**POISON, 'die': 14}, checkpoint__asynchronous='false', **SPIKE)
  assert code == -9 and steps(train.folder / 'start/checkpoints') == [4, 8, 12], screen
  instants = [*range(1, 200)]
  if sample := scale(quick=1, ci=8, soak=0):
    instants = sorted(random.Random(0).sample(range(1, 17), sample))
  killed = []
  for instant in instants:
    workdir = train.folder / 'killed'
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(train.folder / 'start', workdir)
    code, screen = train('killed', {**POISON, 'kill': instant}, **SPIKE)
    if code == 0 and not sample:
      break  # There are no more.
    killed.append(code == -9)
    recorded = len(events(workdir, 'rollback'))
    code, screen = train('killed', POISON, **SPIKE)
    assert code == 0, screen
    assert losses(workdir) == want, (instant, recorded)
    assert len(events(workdir, 'rollback')) == 1
    assert read_metrics(workdir / 'metrics.jsonl')[-1]['step'] == 24
  print(f'\n{sum(killed)} kills within a roll-back')
  assert sum(killed) >= (sample or 16)


def test_a_run_that_spikes_again_and_again_gives_up(train):
  code, screen = train('run', {'poison': [*range(13, 99)]}, guard__spike_max_rollbacks=2, **SPIKE)
  assert code == NUMBERS, screen
  assert 'guard.spike_max_rollbacks=2' in screen
  assert [event['at'] for event in events(train.folder / 'run', 'rollback')] == [10, 10]
  assert max(steps(train.folder / 'run/checkpoints')) < 14
  code, screen = train('run', guard__spike_max_rollbacks=3, **SPIKE)
  assert code == 0, screen


def test_a_spike_with_no_checkpoint_before_it_begins_anew(train, never):
  code, screen = train('run', POISON, checkpoint__every=12, **SPIKE)
  assert code == 0, screen
  [event] = events(train.folder / 'run', 'rollback')
  assert (event['to'], event['at']) == (0, 10)
  assert steps(train.folder / 'run/checkpoints') == [12, 24]
  assert losses(train.folder / 'run') == losses(never)


def test_processes_go_around_a_spike_together(train):
  code, screen = train('run', {'nan': [3, 4], 'poison': [13]}, processes=2, **SPIKE)
  assert code == 0, screen
  assert len(events(train.folder / 'run', 'rollback')) == 1
  assert [event['step'] for event in events(train.folder / 'run', 'skipped')] == [4, 5]
  code, screen = train('never', {'nan': [3, 4], 'skips': [[10, 6]]}, devices=2)
  assert code == 0, screen
  assert losses(train.folder / 'run') == losses(train.folder / 'never')
