"""Real runs of several processes, launched, killed, compared to the bit with an undisturbed one."""

import json
import os
import signal
import sys
import time

import pytest

from llamax.train.supervise import option
from tests.launch.processes import commands, gone

STEPS = 12


@pytest.fixture(autouse=True)
def long(request):
  if request.config.getoption('--scale') == 'quick':
    pytest.skip('long: with --scale=ci')


@pytest.fixture
def train(tiny_data):
  """(workdir) -> the command."""
  config = {
    'data.sources': tiny_data,
    'eval.splits': f'validation={tiny_data}:validation',
    'train.num_steps': STEPS,
    'log.every': 1,
    'checkpoint.every': 4,
    'mesh.data': 2,
    'mesh.fsdp': 2,
    'sample.prompts': '()',
    'compute.compilation_cache': 'none',
  }
  words = [f'--config.{key}={value}' for key, value in config.items()]
  return lambda workdir: ['llamax', 'train', '--config=configs/debug.py', f'--workdir={workdir}', *words]


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {(line['step'], key): value for line in lines for key, value in line.items() if key.endswith('loss')}


def kill_one(process, workdir, rank):
  """SIGKILL for a trainer of the run, once there is a checkpoint."""
  end = time.monotonic() + 600
  while not (workdir / 'checkpoints/4/digests.json').exists():
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.1)
  for pid, line in commands():
    words = line.decode().split('\0')
    if (
      'train' in words[:5]
      and option(words, 'workdir') == str(workdir)
      and option(words, 'process_id') == str(rank)
    ):
      os.kill(pid, signal.SIGKILL)
      return pid
  raise AssertionError('no such process')


def finish(process):
  out, errors = process.communicate(timeout=1200)
  assert process.returncode == 0, out + errors
  return out, errors


@pytest.fixture
def undisturbed(train, tmp_path, llamax):
  """The losses of one process."""
  workdir = tmp_path / 'one'
  finish(
    llamax('launch', 'local', '--processes=1', '--devices_per_process=4', '--', *train(workdir), XLA_FLAGS='')
  )
  found = losses(workdir)
  assert {step for step, _ in found} == set(range(1, STEPS + 1))
  return found


def test_four_processes_one_killed_are_one_process_to_the_bit(undisturbed, train, tmp_path, llamax):
  workdir = tmp_path / 'four'
  words = ('launch', 'local', '--processes=4', '--devices_per_process=1', '--', *train(workdir))
  process = llamax(*words, XLA_FLAGS='')
  pid = kill_one(process, workdir, 2)
  _, errors = finish(process)
  assert gone(pid) and 'starting again in' in errors
  assert losses(workdir) == undisturbed


def test_two_hosts_one_killed_are_one_process_to_the_bit(undisturbed, train, tmp_path, llamax, sshd, wheel):
  workdir = tmp_path / 'hosts'
  words = [
    'launch',
    'ssh',
    '--hosts=a,b',
    f'--ssh_config={sshd}',
    f'--root={tmp_path}/root',
    '--name=x',
    '--dirty',
  ]
  words += [
    f'--python={sys.executable}',
    '--installed',
    '--coordinator=127.0.0.1:18476',
    '--env=JAX_PLATFORMS=cpu',
  ]
  words += ['--env=XLA_FLAGS=--xla_force_host_platform_device_count=2', '--', *train(workdir)]
  process = llamax(*words, LLAMAX_CACHE=str(tmp_path / 'cache'))
  kill_one(process, workdir, 1)
  out, errors = finish(process)
  assert '[b] supervise: attempt 1 ended' in out and 'killed by SIGKILL' in out, errors
  assert losses(workdir) == undisturbed
