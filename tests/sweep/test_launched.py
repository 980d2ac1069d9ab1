"""Runs of a sweep as jobs of llamax launch: names, words; a real SLURM under a sweep that is killed."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llamax.cli.main import main
from llamax.launch.job import check_name
from llamax.observe.jsonl import read_lines
from llamax.observe.ledger import read_ledger
from llamax.sweep.launched import TARGETS, Elsewhere, job_name
from llamax.sweep.plan import Plan, PlannedRun
from llamax.sweep.state import FINISHED, run_states
from tests.launch.slurm_cluster import Cluster, why_not

ROOT = Path(__file__).parents[2]
NAMES = [f'train.seed={seed}' for seed in (1, 2, 3)]
# Stands on the PATH of the nodes for llamax: waits until it may, then trains in a moment, without jax.
LLAMAX = f"""#!/bin/bash
until [[ -e ${{0%/*}}/may ]]; do sleep 0.1; done
for word; do case $word in --workdir=*) workdir=${{word#*=}} ;; esac; done
exec {sys.executable} -S {Path(__file__).parent}/fake_train.py "$workdir" 20 1
"""


@pytest.mark.parametrize('run', ['learning_rate=0.001', 'x' * 80, '9', '=', 'A,b=C'])
def test_names_of_jobs(run, tmp_path):
  name = job_name(tmp_path / 'My sweep_2', run)
  check_name(name)
  assert name == job_name(tmp_path / 'My sweep_2', run) != job_name(tmp_path / 'other', run)
  assert name != job_name(tmp_path / 'My sweep_2', run + '1')


def test_a_folder_has_one_name_by_whatever_path(tmp_path, monkeypatch):
  (tmp_path / 'proj/runs').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'proj')
  monkeypatch.chdir(tmp_path / 'proj')
  found = {job_name(path, 'x') for path in ('runs/q', '../proj/runs/q', tmp_path / 'link/runs/q')}
  assert len(found) == 1


OPTIONS = {
  'gke': ['--tpu=v5e:2x4', '--image=x'],
  'slurm': ['--nodes=1', '--installed'],
  'ssh': ['--hosts=a,b'],
  'tpu-vm': ['--tpu=v5e:2x4', '--zone=z'],
}


@pytest.mark.parametrize('target', TARGETS)
def test_each_target_takes_its_words(target, capsys):
  plan, run = Plan('configs/debug.py', (), {}, 'loss', ()), PlannedRun('a=1', {'train.seed': 1})
  there = Elsewhere(target, OPTIONS[target], '/mnt/runs')
  for verb in ('run', 'stop', 'delete'):
    words = there.words('s', plan, run, verb)
    assert main([*words[:3], '--dry_run', *words[3:]]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
  ('target', 'options', 'verbs'),
  [
    ('ssh', [], ['stop']),
    ('slurm', [], ['stop']),
    ('gke', [], ['stop']),
    ('tpu-vm', ['--zone=z'], ['stop', 'delete']),  # Machines stay where a job was asked to stop.
    ('tpu-vm', ['--keep'], ['stop']),
  ],
)
def test_what_ends_a_job(target, options, verbs):
  plan, there = Plan('c.py', (), {}, 'loss', ()), Elsewhere(target, options, None)
  words = there.words('s', plan, PlannedRun('a', {}), 'stop')
  commands = there.ends('s', plan, 'a')
  assert [command[-len(words) :] for command in commands] == [[*words[:2], verb, *words[3:]] for verb in verbs]


def test_words():
  plan, run = Plan('c.py', (), {}, 'loss', ()), PlannedRun('a=1', {'train.seed': 1})
  there = Elsewhere('gke', ['--image=x'], '/mnt/runs/')
  name = job_name('s', 'a=1')
  assert there.words('s', plan, run, 'stop') == [
    *('launch', 'gke', 'stop', f'--name={name}', '--image=x', '--workdir=/mnt/runs/a=1')
  ]
  assert there.words('s', plan, run, 'run') == [
    *('launch', 'gke', 'run', f'--name={name}', '--image=x', '--'),
    *('llamax', 'train', '--config=c.py', '--workdir=/mnt/runs/a=1', '--config.train.seed=1'),
  ]


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_jobs_of_a_real_slurm_outlive_the_sweep_which_finds_them_again(request, tmp_path):
  if request.config.getoption('--scale') == 'quick':
    pytest.skip('starts a SLURM: with --scale=ci')
  config, folder = tmp_path / 'c.py', tmp_path / 'sweep'
  config.write_text(
    'import debug\nget_config = debug.get_config\ndef get_sweep(s):\n  return s.grid("train.seed", [1, 2, 3])\n'
  )
  (tmp_path / 'llamax').write_text(LLAMAX)
  (tmp_path / 'llamax').chmod(0o755)
  cluster = Cluster()
  env = {**cluster.env, 'PYTHONPATH': str(ROOT), 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
  words = [
    *(sys.executable, '-m', 'llamax.cli.main', 'sweep', f'--config={config}', f'--workdir={folder}'),
    *('--launcher=slurm', '--slots=2', '--launch_options=--nodes=1 --installed'),
  ]
  log = tmp_path / 'log'

  def jobs():
    return cluster.run('squeue', '--noheader', '--format=%i', '--states=RUNNING').split()

  def said():
    return ''.join((folder / 'runs' / name / 'output.log').read_text() for name in NAMES[:2])

  try:
    with open(log, 'ab') as out:
      first = subprocess.Popen(words, env=env, stdout=out, stderr=out, cwd=tmp_path)
      end = time.monotonic() + 500
      while len(jobs()) < 2:
        assert first.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)
      first.kill()
      first.wait()
      assert len(jobs()) == 2
      again = subprocess.Popen(words, env=env, stdout=out, stderr=out, cwd=tmp_path)
      while said().count('is there already: following it') < 2:
        assert again.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)
      (tmp_path / 'may').touch()
      assert again.wait(900) == 0, log.read_text()
  finally:
    cluster.clear()
    cluster.close()
  assert {name: state.state for name, state in run_states(folder, NAMES).items()} == dict.fromkeys(
    NAMES, FINISHED
  )
  starts = Counter(line['run'] for line in read_ledger(folder) if line['event'] == 'started')
  assert starts == {NAMES[0]: 2, NAMES[1]: 2, NAMES[2]: 1}
  for name in NAMES:
    assert [line['event'] for line in read_ledger(folder / 'runs' / name)] == ['end']
    (ends,) = (folder / 'runs' / name / 'launch').glob('*/ends.jsonl')
    assert [line['event'] for line in read_lines(ends)] == ['started', 'ended']  # One job, never requeued.
