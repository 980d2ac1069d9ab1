"""A command that goes on after whoever started it has gone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from llamax.launch import worker
from tests.launch.processes import ROOT, gone

TICKS = 'for i in $(seq 100); do echo tick $i; sleep 0.1; done'
SAVES = "trap 'echo saving; exit 75' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.fixture
def keeper(tmp_path):
  """(words) -> what `python -m llamax.launch.worker words` did; whatever still runs is ended afterwards."""
  folder = tmp_path / 'a job'
  started = []

  def call(verb, *words, **options):
    ended = subprocess.run(
      [sys.executable, '-m', 'llamax.launch.worker', verb, folder, *words],
      capture_output=True,
      text=True,
      cwd=tmp_path,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      timeout=60,
      **options,
    )
    if ended.stdout.startswith('{'):
      ended.facts = json.loads(ended.stdout)
      started.append(ended.facts.get('pid'))
    return ended

  call.folder = folder
  yield call
  for pid in filter(None, started):
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)


def wait_for(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def state(keeper):
  return worker.status(keeper.folder)['state']


def test_it_outlives_its_starter_then_tells_its_end(keeper, tmp_path):
  assert keeper('status').facts == {'state': 'none'}
  started = keeper('start', '--', 'sh', '-c', 'echo out; echo err >&2; sleep 0.5; pwd; exit 76')
  assert started.returncode == 0 and started.facts['state'] == 'running'
  wait_for(lambda: state(keeper) != 'running')
  facts = keeper('status').facts
  assert (facts['state'], facts['code']) == ('ended', 76)
  assert (keeper.folder / worker.LOG).read_text() == f'out\nerr\n{tmp_path}\n'


def test_a_second_one_is_refused_while_the_first_runs(keeper):
  keeper('start', '--', 'sh', '-c', SAVES)
  second = keeper('start', '--', 'true')
  assert second.returncode == 2 and 'its job runs already (running: process' in second.stderr
  assert state(keeper) == 'running'


def test_stop_lets_it_save(keeper):
  keeper('start', '--', 'sh', '-c', SAVES)
  wait_for(lambda: 'ready' in (keeper.folder / worker.LOG).read_text())
  stopped = keeper('stop')
  assert (stopped.facts['state'], stopped.facts['code']) == ('ended', 75)
  assert 'saving' in (keeper.folder / worker.LOG).read_text()


def test_stop_means_it_where_the_command_does_not_listen(keeper):
  keeper('start', '--', 'sh', '-c', "trap '' TERM; echo ready; while :; do sleep 0.05; done")
  wait_for(lambda: 'ready' in (keeper.folder / worker.LOG).read_text())
  stopped = keeper('stop', '--wait', '0.3')
  assert (stopped.facts['state'], stopped.facts['code']) == ('ended', 137)


def test_a_keeper_that_is_killed_takes_the_command_with_it(keeper, tmp_path):
  facts = keeper('start', '--', 'sh', '-c', f'echo $$ > {tmp_path}/pid; {TICKS}').facts
  wait_for(lambda: (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text().endswith('\n'))
  os.kill(facts['pid'], signal.SIGKILL)
  wait_for(lambda: state(keeper) == 'lost')
  assert gone(int((tmp_path / 'pid').read_text()))
  assert keeper('start', '--', 'true').returncode == 0  # The folder is free.


def test_logs_follow_from_a_byte_to_the_end(keeper):
  keeper('start', '--', 'sh', '-c', 'for i in 1 2 3 4; do echo tick $i; sleep 0.2; done')
  assert keeper('logs', '--offset', '7').stdout == 'tick 2\ntick 3\ntick 4\n'
  assert keeper('logs', '--no_follow').stdout == 'tick 1\ntick 2\ntick 3\ntick 4\n'
  keeper('start', '--', 'echo', 'anew')
  assert keeper('logs').stdout == 'anew\n'
  assert (keeper.folder / worker.PREVIOUS).read_text().startswith('tick 1')


def test_a_reader_that_has_gone_is_not_waited_for(keeper):
  """As over an ssh whose other end broke off while the job has nothing to say."""
  keeper('start', '--', 'sleep', '100')
  reader = subprocess.Popen(
    [sys.executable, '-m', 'llamax.launch.worker', 'logs', keeper.folder],
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  time.sleep(0.5)
  reader.stdout.close()
  assert reader.wait(10) == 0


def test_a_command_that_is_not_there(keeper):
  keeper('start', '--', 'no-such-program')
  wait_for(lambda: state(keeper) == 'ended')
  assert keeper('status').facts['code'] == 2
  assert "'no-such-program' cannot be started" in (keeper.folder / worker.LOG).read_text()


def test_a_folder_that_cannot_be_made(keeper):
  keeper.folder.write_text('')
  ended = keeper('start', '--', 'true')
  assert ended.returncode == 2 and 'cannot be written' in ended.stderr
