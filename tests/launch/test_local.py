"""launch local: arguments, lines, signals, exit codes, with a stand-in for llamax train."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamax.cli.main import main
from llamax.observe.ledger import read_ledger
from tests.launch.processes import ROOT, command_lines, gone

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
# The codes of one attempt after the other, where there are several.
with open(place / f'attempts-{rank}', 'a+') as file:
  file.write('x')
  file.seek(0)
  attempt = len(file.read()) - 1
if isinstance(codes, list):
  codes = codes[attempt]
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
  """(words, **environment) -> the process of launch/local.sh, or of `llamax launch local` with script=None."""
  (tmp_path / 'stand_in.py').write_text(STAND_IN)
  started = []

  def start(*words, script=SCRIPT, **env):
    llamax = f'{sys.executable} {tmp_path}/stand_in.py'
    env = {**os.environ, 'LLAMAX': llamax, 'PYTHONPATH': str(ROOT), 'PLACE': str(tmp_path), **env}
    env.pop('XLA_FLAGS', None)
    process = subprocess.Popen(
      [script, *words] if script else [sys.executable, '-m', 'llamax.cli.main', 'launch', 'local', *words],
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


def launched(local, tmp_path, *options, workdir='run', **env):
  """`llamax launch local` of the stand-in with a workdir."""
  train = (sys.executable, str(tmp_path / 'stand_in.py'), 'train', f'--workdir={tmp_path / workdir}')
  return local(*options, '--', *train, script=None, **env)


def test_when_one_is_killed_all_start_again_until_the_run_is_done(local, tmp_path):
  codes = json.dumps([{'0': 76, '1': -9, '2': 76}, {'0': -9, '1': 76, '2': 76}, {'0': 0, '1': 0, '2': 0}])
  process = launched(local, tmp_path, '--processes=3', CODES=codes)
  out, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  assert [(tmp_path / f'attempts-{rank}').read_text() for rank in range(3)] == ['xxx'] * 3
  events = read_ledger(tmp_path / 'run', 'supervise.jsonl')
  assert [(event['event'], event.get('code')) for event in events] == [
    ('started', None),
    ('ended', 76),
    ('started', None),
    ('ended', 76),
    ('started', None),
    ('ended', 0),
  ]
  assert 'starting again in' in errors and out.count('[2] ready') == 3


@pytest.mark.parametrize('code', [2, 77, 78])
def test_an_end_that_is_final_is_not_tried_again(local, tmp_path, code):
  process = launched(local, tmp_path, '--processes=2', CODES=json.dumps({'0': 76, '1': code}))
  assert process.wait(30) == code
  assert (tmp_path / 'attempts-0').read_text() == 'x'


def test_it_gives_up(local, tmp_path):
  process = launched(local, tmp_path, '--processes=1', '--max_failures=2', CODES='{"0": 76}')
  assert process.wait(30) == 76
  assert (tmp_path / 'attempts-0').read_text() == 'xx'


def test_whatever_ends_the_launcher_nothing_of_it_stays(local, tmp_path):
  process = launched(local, tmp_path, '--processes=2')
  pids = [pid for _, _, pid in told(tmp_path, 2)]
  process.kill()
  end = time.monotonic() + 10
  while not all(gone(pid) for pid in pids):
    assert time.monotonic() < end
    time.sleep(0.05)


def test_a_run_that_is_detached(local, tmp_path):
  process = launched(local, tmp_path, '--processes=2', '--detach')
  out, errors = process.communicate(timeout=30)
  assert process.returncode == 0 and 'running: process' in out, errors
  pids = [pid for _, _, pid in told(tmp_path, 2)]
  where = f'--workdir={tmp_path / "run"}'
  status = local('status', where, script=None)
  assert 'running: process' in status.communicate(timeout=30)[0]
  again = launched(local, tmp_path, '--processes=2', '--detach')
  assert again.wait(30) == 2 and 'its job runs already' in again.stderr.read()
  assert not any(gone(pid) for pid in pids)
  follower = local('logs', where, script=None)
  stopped, _ = local('stop', where, script=None).communicate(timeout=30)
  assert stopped.endswith('exit code 75 (asked to stop, saved)\n')
  assert all(gone(pid) for pid in pids)
  lines = follower.communicate(timeout=30)[0].splitlines()
  assert {'[0] ready', '[1] ready', '[0] asked', '[1] asked', '[1] oops'} < set(lines)


def test_a_secret_is_in_no_argument_and_in_no_file_but_in_the_process(local, tmp_path):
  process = launched(
    local, tmp_path, '--processes=2', '--detach', '--secret=TOKEN', '--env=OPEN=it is', TOKEN='geheim-4711'
  )
  process.wait(30)
  for _, _, pid in told(tmp_path, 2):
    environ = Path(f'/proc/{pid}/environ').read_text().split('\0')
    assert 'TOKEN=geheim-4711' in environ and 'OPEN=it is' in environ
  lines = command_lines()
  assert sum(str(tmp_path).encode() in line for line in lines) > 2  # It looks in the right place.
  assert not any(b'geheim-4711' in line for line in lines)
  local('stop', f'--workdir={tmp_path / "run"}', script=None).wait(30)
  assert not any(b'geheim-4711' in path.read_bytes() for path in tmp_path.rglob('*') if path.is_file())


def test_a_dry_run_starts_nothing(local, tmp_path):
  process = launched(local, tmp_path, '--processes=2', '--dry_run', '--port=4711')
  out, _ = process.communicate(timeout=30)
  assert process.returncode == 0 and out.count('--coordinator=127.0.0.1:4711 --num_processes=2') == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == ['stand_in.py']


@pytest.mark.parametrize(
  ('option', 'told'), [('--max_failures=0', 'at least 1'), ('--max_restarts=-1', 'at least 0')]
)
@pytest.mark.parametrize('verb', ['run', 'submit'])
def test_counts_of_starts(verb, option, told, capsys):
  words = ['launch', 'local', verb, '--processes=2', option, '--dry_run']
  assert main([*words, '--', 'llamax', 'train', '--workdir=runs/a']) == 2
  assert f'{option}: want {told}' in capsys.readouterr().err
