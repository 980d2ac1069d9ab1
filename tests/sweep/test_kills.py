"""The figure of the sweep: killed at random, each run of the real trainer ends once, with the same losses."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llamax.observe.ledger import read_ledger
from llamax.sweep.plan import read_plan

ROOT = Path(__file__).parents[2]
# One device, as a user's CPU has; compiled as it comes, as the losses of other runs are not compared with.
ENV = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}

# Two runs that differ in what trains nothing: each is the other's undisturbed run.
TWINS = """
import debug

def get_config():
  config = debug.get_config()
  config.train.num_steps = 60
  config.checkpoint.every = 5
  config.eval.every = None
  return config

def get_sweep(s):
  return s.grid('checkpoint.keep_last', [2, 3])
"""
MANY = """
import quickstart

def get_config():
  config = quickstart.get_config()
  config.train.num_steps = 20
  config.optim.warmup_steps = 4
  config.checkpoint.every = 4
  config.eval.every = None
  return config

def get_sweep(s):
  rates = s.grid('optim.learning_rate', [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])
  return s.product(rates, s.grid('train.seed', [0, 1, 2, 3]))
"""


@pytest.fixture
def sweep(tiny_data, tmp_path):
  """(text of a config, folder, *words) -> the process of `llamax sweep`, its output in folder.log."""
  started = []

  def start(text, folder, *words):
    file = tmp_path / 'config_of_sweep.py'
    file.write_text(text)
    common = {
      'data.sources': tiny_data,
      'eval.splits': f'held={tiny_data}:validation',
      'eval.num_batches': 2,
      'sample.prompts': '()',
      'log.every': 1,
    }
    settings = [f'--config.{key}={value}' for key, value in common.items()]
    command = ['sweep', f'--config={file}', f'--workdir={folder}', *settings, *words]
    with open(f'{folder}.log', 'ab') as log:
      started.append(
        subprocess.Popen(
          [sys.executable, '-m', 'llamax.cli.main', *command], env=ENV, stdout=log, stderr=log, cwd=ROOT
        )
      )
    return started[-1]

  yield start
  for process in started:
    process.kill()
    process.wait()


def losses(workdir):
  """{step: (training loss, held-out loss)}: JSON keeps each bit of a float."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
  found = {}
  for line in map(json.loads, lines):
    for key in ('loss', 'eval/held/loss'):
      if key in line:
        found[line['step'], key] = line[key]
  return found


def finished(folder):
  return [name for name in map(str, read_plan_names(folder)) if ends(folder / 'runs' / name)]


def read_plan_names(folder):
  plan = read_plan(folder)
  return [run.name for run in plan.runs] if plan else []


def ends(workdir):
  return [line for line in read_ledger(workdir) if line['event'] == 'end' and line['finished']]


def wait_until(condition, process, seconds=280.0):
  end = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None and time.monotonic() < end, 'it has ended, or nothing happens'
    time.sleep(0.02)


def check_once(folder, log):
  """Every run of the plan has finished once; none had two processes."""
  plan = read_plan(folder)
  assert {run.name for run in plan.runs} == {path.name for path in (folder / 'runs').iterdir()}
  for run in plan.runs:
    assert len(ends(folder / 'runs' / run.name)) == 1, (run.name, log.read_text()[-3000:])
    steps = plan.base['train']['num_steps']
    trained = [step for step, key in losses(folder / 'runs' / run.name) if key == 'loss']
    assert trained == list(range(1, steps + 1))


def test_a_killed_sweep_gives_the_losses_of_an_undisturbed_run(sweep, tmp_path):
  folder, log = tmp_path / 'sweep', tmp_path / 'sweep.log'
  first, second = folder / 'runs/keep_last=2', folder / 'runs/keep_last=3'
  process = sweep(TWINS, folder)
  wait_until(lambda: len(losses(first)) >= 12, process)
  process.kill()
  process.wait()
  again = sweep(TWINS, folder)
  assert again.wait(280) == 0, log.read_text()
  check_once(folder, log)
  starts = Counter(line['run'] for line in read_ledger(folder) if line['event'] == 'started')
  assert starts == {'keep_last=2': 2, 'keep_last=3': 1}
  assert 'resuming after step' in (first / 'output.log').read_text()
  assert losses(first) == losses(second)
  told = log.read_text()
  assert 'keep_last=2: started (attempt 2)' in told and '2 runs: 2 finished' in told


def test_24_runs_of_a_million_parameters_five_kills(request, sweep, tmp_path):
  if request.config.getoption('--scale') == 'quick':
    pytest.skip('24 runs, twice: with --scale=ci')
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  chance = random.Random()
  for moment in sorted(chance.sample(range(23), 5)):  # runs that have finished when the next kill comes
    process = sweep(MANY, killed, '--slots=2')
    wait_until(lambda at=moment: len(finished(killed)) >= at, process, 6 * 3600)
    time.sleep(chance.uniform(0, 10))
    process.kill()
    process.wait()
  process = sweep(MANY, killed, '--slots=2')
  assert process.wait() == 0
  check_once(killed, tmp_path / 'killed.log')
  assert sweep(MANY, whole, '--slots=2').wait() == 0
  check_once(whole, tmp_path / 'whole.log')
  starts = Counter(line['run'] for line in read_ledger(killed) if line['event'] == 'started')
  assert sum(starts.values()) > 24
  print(f'{sum(starts.values())} starts of 24 runs: {dict(starts)}')
  for run in read_plan(whole).runs:
    assert losses(killed / 'runs' / run.name) == losses(whole / 'runs' / run.name), run.name
