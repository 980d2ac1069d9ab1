"""launch local: arguments, lines, signals, exit codes, with a stand-in for llamax train."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'launch/local.sh'
STAND_IN = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
if words[0] == 'launch':
  os.execv(sys.executable, [sys.executable, '-m', 'llamax.cli.main', *words])
rank = int(words[-1].removeprefix('--process_id='))
place = pathlib.Path(os.environ['PLACE'])
(place / f'words-{rank}').write_text(json.dumps([words, os.environ.get('XLA_FLAGS'), os.getpid()]))
codes = json.loads(os.environ.get('CODES', '{}'))
def asked(number, frame):
  with open(place / f'asked-{rank}', 'a') as file:
    file.write(f'{number} ')
  print('asked', flush=True)
  time.sleep(0.5)  # A second signal would be noted too.
  sys.exit(75 if number == signal.SIGTERM else 130)
signal.signal(signal.SIGTERM, asked)
signal.signal(signal.SIGINT, asked)
print('ready', flush=True)
print('oops', file=sys.stderr, flush=True)
if str(rank) in codes:
  if codes[str(rank)] < 0:
    os.kill(os.getpid(), -codes[str(rank)])
  sys.exit(codes[str(rank)])
while True:
  time.sleep(0.05)
"""


@pytest.fixture
def local(tmp_path):
  """(words, **environment) -> the script's process."""
  (tmp_path / 'stand_in.py').write_text(STAND_IN)
  started = []

  def start(*words, **env):
    llamax = f'{sys.executable} {tmp_path}/stand_in.py'
    env = {**os.environ, 'LLAMAX': llamax, 'PYTHONPATH': str(ROOT), 'PLACE': str(tmp_path), **env}
    env.pop('XLA_FLAGS', None)
    process = subprocess.Popen(
      [SCRIPT, *words],
      env=env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


def told(folder, count):
  """What each stand-in was started with, once all are."""
  end = time.monotonic() + 20
  while len(list(folder.glob('words-*'))) < count:
    assert time.monotonic() < end
    time.sleep(0.02)
  time.sleep(0.3)
  return [json.loads((folder / f'words-{rank}').read_text()) for rank in range(count)]


def gone(pid):
  try:
    return Path(f'/proc/{pid}/stat').read_text().split()[2] == 'Z'
  except FileNotFoundError:
    return True


def test_arguments_reach_each_process_as_they_are(local, tmp_path):
  odd = ['--workdir=my run', "it's", '$(touch nothing)', '*', 'a"b', 'two\nlines', '']
  process = local('--processes', '3', '--devices_per_process=2', '--', *odd)
  found = told(tmp_path, 3)
  ports = set()
  for rank, (words, flags, _) in enumerate(found):
    assert words[:-3] == ['train', *odd]
    assert words[-2:] == ['--num_processes=3', f'--process_id={rank}']
    ports.add(words[-3])
    assert flags.split() == ['--xla_force_host_platform_device_count=2']
  (port,) = ports
  assert port.startswith('--coordinator=127.0.0.1:')
  process.send_signal(signal.SIGTERM)
  out, errors = process.communicate(timeout=20)
  assert sorted(out.split('\n')) == sorted(
    ['', *(f'[{rank}] {word}' for rank in range(3) for word in ('ready', 'asked'))]
  )
  assert sorted(errors.split()) == ['[0]', '[1]', '[2]', 'oops', 'oops', 'oops']


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_each_process_once(local, tmp_path, number, code):
  process = local('--processes', '2', '--', 'x')
  told(tmp_path, 2)
  os.killpg(process.pid, number)  # As the terminal does with Ctrl-C.
  assert process.wait(20) == code
  for rank in range(2):
    assert (tmp_path / f'asked-{rank}').read_text() == f'{int(number)} '


@pytest.mark.parametrize(
  ('codes', 'code'),
  [
    ({0: 0, 1: 0}, 0),
    ({0: 76, 1: -9}, 76),
    ({0: 76, 1: 2}, 2),
    ({0: 75, 1: 75}, 75),
    ({0: 1, 1: 76}, 1),
    ({0: 75, 1: -9}, 137),
  ],
  ids=str,
)
def test_the_code_is_that_which_tells_most(local, codes, code):
  assert local('--processes', '2', '--', 'x', CODES=json.dumps(codes)).wait(20) == code


def test_when_one_dies_the_others_are_ended(local, tmp_path):
  process = local('--processes', '3', '--', 'x', CODES='{"1": -9}', LLAMAX_PATIENCE='1')
  pids = [pid for _, _, pid in told(tmp_path, 3)]
  assert process.wait(20) == 137
  assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
  ('words', 'told'),
  [
    ((), 'launch/local.sh --processes 4'),
    (('--processes', '2'), 'launch/local.sh --processes 4'),
    (('--processes', 'two', '--', 'x'), "invalid int value: 'two'"),
    (('--processes', '0', '--', 'x'), '--processes: want a number from 1 on'),
    (('--', 'x'), 'launch local --processes 4'),
    (('--config=a', '--', 'x'), "'--config=a' is no argument of this verb"),
  ],
  ids=str,
)
def test_a_mistake_shows_how_it_is_used(local, words, told):
  process = local(*words)
  assert process.wait(20) == 2
  assert told in process.stderr.read()
