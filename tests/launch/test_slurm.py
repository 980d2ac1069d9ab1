"""llamax launch slurm: its commands against the manuals, its life on a real SLURM with a stand-in for train."""

import argparse
import contextlib
import getpass
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamax.cli.main import main
from llamax.core.errors import UserError
from llamax.launch import slurm
from llamax.launch.action import Run, Together
from llamax.launch.job import Job
from llamax.observe.batchlog import read_batches
from tests.launch.slurm_cluster import Cluster, why_not

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / 'slurm_stand_in.sh'
RECORDED = json.loads((Path(__file__).parent / 'recorded/slurm.json').read_text())
real = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def arguments(*words):
  parser = argparse.ArgumentParser()
  slurm.add_arguments(parser)
  return parser.parse_args(['--installed', *words])


ALL = (
  '--nodes=2', '--gpus_per_node=8', '--cpus_per_task=4', '--mem=0', '--partition=p', '--account=a', '--qos=q',
  '--constraint=c', '--time=1-0', '--sbatch=--gres=gpu:8', '--workdir=runs/a', '--node=n1',
)  # fmt: skip


@pytest.mark.parametrize('verb', slurm.VERBS)
@pytest.mark.parametrize('words', [('--nodes=2', '--workdir=runs/a'), ALL])
def test_every_option_is_known_to_the_real_commands(verb, words):
  job = Job('a', ('llamax', 'train', '--workdir=runs/a'), {}, ('HOME',))
  for action in slurm.plan(verb, arguments(*words), job):
    assert not isinstance(action, Together)
    for argv in commands_of(action) if isinstance(action, Run) else ():
      if argv[0] == 'scontrol':
        assert argv[1] in RECORDED['scontrol']
        continue
      known = RECORDED['commands'][argv[0]]
      for word in argv[1:]:
        if word.startswith('--'):
          name, equals, value = word.removeprefix('--').partition('=')
          assert known[name] in (('must', 'may') if equals else ('no', 'may')), (argv, word)
          assert value or not equals
        elif argv[0] == 'srun':
          break  # Its command begins.


def commands_of(action):
  """The commands of SLURM in an action, also those inside a shell's line."""
  if action.argv[0] in ('rm', 'cp', 'sleep'):
    return []
  if action.argv[:2] != ('bash', '-c'):
    return [action.argv]
  inner = re.findall(r'\$\((.*?)\)', action.argv[2])
  line = ' | '.join([re.sub(r'\$\(.*?\)', '1', action.argv[2]), *inner])
  parts = [tuple(shlex.split(part)) for part in line.split(' | ')]
  return [part for part in parts if part and part[0] in RECORDED['commands']]


@pytest.mark.parametrize(
  'words', [['--nodes=0'], [], ['--nodes=1', '--max_failures=0'], ['--nodes=1', '--partition=a"b']]
)
def test_mistakes(words, capsys):
  command = ['--', 'llamax', 'train', '--workdir=runs/a']
  assert main(['launch', 'slurm', 'submit', '--installed', '--dry_run', *words, *command]) == 2
  assert 'want' in capsys.readouterr().err


def test_a_workdir_is_a_folder():
  with pytest.raises(UserError, match='a folder'):
    slurm.plan('submit', arguments('--nodes=1'), Job('a', ('llamax', 'train', '--workdir=gs://b/a')))


def test_no_secret_is_written(monkeypatch, capsys):
  monkeypatch.setenv('TOKEN', 'hush-hush')
  words = ['launch', 'slurm', 'submit', '--installed', '--nodes=1', '--secret=TOKEN', '--dry_run']
  assert main([*words, '--', 'llamax', 'train', '--workdir=runs/a']) == 0
  shown = capsys.readouterr().out
  assert 'hush' not in shown and 'TOKEN' in shown


def test_what_cannot_be_ended_is_not_deleted(tmp_path, monkeypatch, capsys):
  (tmp_path / 'run/launch/job').mkdir(parents=True)
  (tmp_path / 'scancel').write_text('#!/bin/sh\necho "Unable to contact slurm controller" >&2\nexit 1\n')
  (tmp_path / 'scancel').chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  assert main(['launch', 'slurm', 'delete', '--name=job', f'--workdir={tmp_path}/run']) == 2
  assert 'Unable to contact' in capsys.readouterr().err and (tmp_path / 'run/launch/job').is_dir()


@pytest.fixture(scope='module')
def cluster():
  one = Cluster()
  yield one
  one.close()


@pytest.fixture
def often(request):
  if request.config.getoption('--scale') == 'quick':
    pytest.skip('takes long: --scale=ci')


class Launched:
  """Starts `llamax launch slurm` for one run, whose command is the stand-in."""

  def __init__(self, cluster, workdir):
    self.cluster, self.workdir, self.started = cluster, workdir, []
    self.folder = workdir / 'launch/job'

  def words(self, verb, *options):
    options = ('--name=job', '--installed', '--nodes=2', *options)
    command = ('--', str(STAND_IN), 'train', f'--workdir={self.workdir}', 'two words')
    return [sys.executable, '-m', 'llamax.cli.main', 'launch', 'slurm', verb, *options, *command]

  def start(self, verb, *options):
    env = {**self.cluster.env, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
      self.words(verb, *options), env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    self.started.append(process)
    return process

  def do(self, verb, *options):
    """(exit code, output) of a verb that ends by itself."""
    process = self.start(verb, *options)
    out, _ = process.communicate(timeout=90)
    return process.returncode, out

  def hold(self, held):
    """Whether the fifth step of the stand-in waits."""
    (self.workdir / 'hold').touch() if held else (self.workdir / 'hold').unlink()

  def fault(self, start, rank, what):
    (self.workdir / f'fault-{start}-{rank}').write_text(str(what))

  def log(self, file='task-0.log'):
    return (self.folder / file).read_text() if (self.folder / file).exists() else ''

  def wait_for(self, text, file='task-0.log', seconds=60):
    end = time.monotonic() + seconds
    while text not in self.log(file):
      assert time.monotonic() < end, f'{text!r} did not come: {sorted(self.folder.glob("*"))}'
      time.sleep(0.05)

  def under_way(self):
    """Until both tasks listen to signals."""
    self.wait_for('step 4\n')  # The fifth is held.
    self.wait_for('rank 1 of 2', 'task-1.log')

  def ends(self):
    lines = [json.loads(line) for line in (self.folder / 'ends.jsonl').read_text().splitlines()]
    return [(one['restart'], one['code'], one['then']) for one in lines if one['event'] == 'ended']

  def number(self):
    return self.cluster.run('squeue', '--noheader', '--name=job', '--format=%i').strip()


@pytest.fixture
def launched(cluster, tmp_path):
  folder = tmp_path / 'my 100%j $(run)'
  folder.mkdir()
  one = Launched(cluster, folder)
  yield one
  for process in one.started:
    process.kill()
    process.wait()
  cluster.clear()


@real
def test_a_life(launched):
  """SIGTERM from outside, a task killed, then to its end: as one job, followed by one command."""
  launched.hold(True)
  launched.fault(1, 1, 'KILL')
  run = launched.start('run', '--env=NOTE=a $(b) "c"')
  launched.under_way()
  launched.cluster.run('scancel', '--signal=TERM', launched.number())
  launched.wait_for('start 2 of', 'batch.log')
  launched.hold(False)
  out, _ = run.communicate(timeout=90)
  assert run.returncode == 0
  assert launched.ends() == [(0, 75, 'requeued'), (1, 137, 'requeued'), (2, 0, 'done')]
  steps = [int(line[9:]) for line in out.splitlines() if line.startswith('[0] step ')]
  assert steps[0] == 1 and steps[-1] == 12 and sorted(set(steps)) == list(range(1, 13))
  for rank in (0, 1):
    assert out.count(f'[{rank}] rank {rank} of 2, NOTE=a $(b) "c"') == 3
    assert (
      launched.workdir / f'words-{rank}'
    ).read_text() == f'train\n--workdir={launched.workdir}\ntwo words\n'
  assert 'start 3 of job' in out and 'exit code 0 (done)' in out


@real
def test_a_mistake_is_final(launched):
  launched.fault(0, 1, 2)
  code, out = launched.do('run')
  assert code == 2 and launched.ends()[-1][:2] == (0, 2)
  assert 'the same command would end the same way' in out


@real
def test_submit_status_stop(launched):
  launched.hold(True)
  code, out = launched.do('submit')
  assert code == 0
  number = re.search(r'(?m)^(\d+)$', out)[1]
  launched.under_way()
  assert 'is RUNNING already' in launched.do('submit')[1]
  code, out = launched.do('status')
  assert code == 0 and number in out and 'RUNNING' in out and 'start 1: started' in out
  env = {**launched.cluster.env, 'PYTHONPATH': str(ROOT)}  # By its name alone, too.
  words = [sys.executable, '-m', 'llamax.cli.main', 'launch', 'slurm', 'stop', '--name=job']
  assert subprocess.run(words, env=env, timeout=90).returncode == 0
  assert launched.ends() == [(0, 75, 'stopped by llamax launch slurm stop')]
  code, out = launched.do('status')
  assert code == 0 and 'exit code 75 (asked to stop, saved)' in out
  code, out = launched.do('stop')
  assert code == 2 and 'no job named' in out
  launched.hold(False)
  code, out = launched.do('run')  # It goes on from there, and shows nothing of what was.
  assert code == 0 and '[0] step 1\n' not in out and '[0] step 12\n' in out
  assert launched.do('logs')[1].count('[0] step 1\n') == 1
  assert launched.do('delete')[0] == 0
  assert launched.do('delete', '--name=never')[0] == 0
  assert not launched.folder.exists() and (launched.workdir / 'checkpoints/12').is_dir()


@real
def test_a_cancelled_job_does_not_come_back(launched, often):
  launched.hold(True)
  run = launched.start('run')
  launched.under_way()
  launched.cluster.run('scancel', launched.number())
  out, _ = run.communicate(timeout=60)
  assert run.returncode == 75 and launched.ends()[-1][2].startswith('left to SLURM')
  assert launched.number() == ''
  assert 'exit code 75' in out


@real
def test_preempted_by_a_job_of_more_rank(launched, often):
  launched.hold(True)
  run = launched.start('run')
  launched.under_way()
  launched.cluster.run('sbatch', '--partition=high', '--nodes=2', '--output=/dev/null', '--wrap=sleep 1')
  end = time.monotonic() + 60
  while not launched.ends():
    assert time.monotonic() < end
    time.sleep(0.1)
  launched.hold(False)
  run.communicate(timeout=90)
  assert run.returncode == 0 and launched.ends() == [(0, 75, 'requeued'), (1, 0, 'done')]


@real
def test_whoever_follows_may_leave(launched, often):
  launched.hold(True)
  run = launched.start('run')
  launched.under_way()
  run.send_signal(signal.SIGINT)
  out, _ = run.communicate(timeout=30)
  assert run.returncode == 130 and 'goes on without this shell' in out
  assert launched.number() != ''
  launched.hold(False)
  code, out = launched.do('run')
  assert code == 0 and 'is there already: following it' in out and '[0] step 1\n' in out


@real
def test_the_doctor_asks_every_node(launched, tmp_path):
  report = '{"doctor": 1, "host": "h", "time": 1.0, "findings": [%s]}'
  finding = '{"item": "jax", "verdict": "ok", "text": "%s", "todo": "", "value": %d}'
  (tmp_path / 'llamax').write_text(
    f"""#!/bin/bash
printf '%s ' "$@" >>{shlex.quote(str(tmp_path))}/asked-$SLURM_PROCID
echo "a warning of nothing" >&2
printf '{report % finding}\\n' "$(printf ' x%.0s' {{1..3000}})" $((SLURM_PROCID + 7))
"""
  )
  (tmp_path / 'llamax').chmod(0o755)
  (tmp_path / 'setup').write_text(f'PATH={shlex.quote(str(tmp_path))}:$PATH\n')
  code, out = launched.do('doctor', f'--setup=. {tmp_path}/setup')
  assert code == 2 and '1 h: jax is 8, on the others 7' in out
  first, second = ((tmp_path / f'asked-{rank}').read_text() for rank in (0, 1))
  listen, peer = re.search(r'--listen=(\S+) --peers=1', first), re.search(r'--peer=(\S+)', second)
  assert listen[1] == peer[1] and listen[1].startswith('127.0.0.1:6')
  assert f'--workdir={launched.workdir}' in first


@real
def test_a_shell_on_a_node(launched, often):
  launched.hold(True)
  launched.do('submit')
  launched.under_way()
  (action,) = slurm.plan('ssh', arguments('--nodes=2', '--node=127.0.0.2'), Job('job'))
  line = action.argv[2].replace('--pty bash -l', 'printenv SLURM_NODEID SLURMD_NODENAME')
  out = subprocess.run(['bash', '-c', line], env=launched.cluster.env, capture_output=True, text=True).stdout
  assert '127.0.0.2' in out
  assert action.interactive and f'--user={getpass.getuser()}' in line


@real
def test_the_real_sbatch_takes_every_option(cluster, tmp_path):
  """--test-only: SLURM's own parser, without a job."""
  (tmp_path / 'a % b').mkdir()
  words = [
    '--nodes=2',
    '--cpus_per_task=1',
    '--mem=1',
    '--partition=main',
    '--time=1-0',
    '--sbatch=--comment=a b',
  ]
  job = Job('a', ('llamax', 'train', f'--workdir={tmp_path}/a % b'))
  write = slurm.plan('submit', arguments(*words), job)[0]
  (tmp_path / 'script').write_text(write.content)
  done = subprocess.run(
    ['sbatch', '--test-only', tmp_path / 'script'], env=cluster.env, capture_output=True, text=True
  )
  assert done.returncode == 0 and 'to start at' in done.stderr
  assert os.listdir(tmp_path / 'a % b') == []


@real
def test_the_real_trainer(often, cluster, tmp_path, request):
  """Two tasks, SIGTERM, a task killed: rows and losses are, to the bit, those of one process left alone."""
  data = request.getfixturevalue('tiny_data')  # Made only where it is needed.
  changes = {
    'data.sources': str(data), 'eval.every': 'none', 'eval.splits': '()', 'sample.prompts': '()',
    'mesh.data': '1', 'mesh.fsdp': '2', 'mesh.tensor': '2', 'train.num_steps': '12',
    'checkpoint.every': '4', 'log.every': '1', 'log.batches': 'true', 'compute.compilation_cache': 'none',
  }  # fmt: skip
  config = [f'--config={ROOT}/configs/debug.py', *(f'--config.{key}={text}' for key, text in changes.items())]
  env = {**cluster.env, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  # A program that only process 0 finds in the cache lets it wait too long for the others.
  del env['JAX_COMPILATION_CACHE_DIR']
  devices = '--xla_force_host_platform_device_count='
  llamax = [sys.executable, '-m', 'llamax.cli.main']
  alone = subprocess.Popen(
    [*llamax, 'train', *config, f'--workdir={tmp_path}/alone'], env={**env, 'XLA_FLAGS': f'{devices}4'}
  )
  run = Launched(cluster, tmp_path / 'run')
  options = ['--name=job', '--installed', '--nodes=2', f'--env=XLA_FLAGS={devices}2', '--max_failures=9']
  command = [*llamax, 'train', *config, f'--workdir={run.workdir}']
  follower = subprocess.Popen([*llamax, 'launch', 'slurm', *options, '--', *command], env=env)
  try:
    run.wait_for('step  3/12', seconds=600)
    cluster.run('scancel', '--signal=TERM', run.number())
    run.wait_for('resuming after', seconds=600)
    (newest,) = (int(line.split()[3]) for line in run.log().splitlines() if line.startswith('resuming after'))
    run.wait_for(f'step {newest + 2:2}/12', seconds=600)
    os.kill(task_of(run.workdir, 1), signal.SIGKILL)
    assert follower.wait(600) == 0 and alone.wait(600) == 0
  finally:
    follower.kill()
    alone.kill()
    cluster.clear()
  codes = [code for _, code, _ in run.ends()]
  # On a busy machine gloo gives up a meeting of the processes now and then: one more start.
  assert (codes[0], codes[-1]) == (75, 0) and set(codes[1:-1]) == {76}
  assert read_batches(run.workdir) == read_batches(tmp_path / 'alone')


def task_of(workdir, rank):
  """The process of `llamax train` that is a task of that number."""
  for place in Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      words = (place / 'cmdline').read_text().split('\0')
      environ = (place / 'environ').read_text().split('\0')
      if f'--workdir={workdir}' in words and f'SLURM_PROCID={rank}' in environ and 'python' in words[0]:
        return int(place.name)
  raise AssertionError('no such task')
