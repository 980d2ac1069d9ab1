"""The life of a spot run against a cloud that is a folder: real worker scripts, real supervisors, kill -9."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.launch.life import Life
from llamax.launch.machines import Seen, State, Worker
from llamax.observe.ledger import read_ledger

ROOT = Path(__file__).resolve().parents[2]
LAST_STEP = 60

# The machine's Python: makes an environment in no time, knows the verbs of llamax that this test is about, and
# trains on nothing: a step is a file that says its number.
PYTHON = f"""#!/bin/sh
case "$*" in
  "-m venv venv") mkdir -p venv/bin && cp "$0" venv/bin/python ;;
  *"-m pip install"*) ;;
  "-c import sys; print"*) echo py311 ;;
  "-m llamax.cli.main doctor --json"*) echo '{{"doctor": 1, "host": "w", "time": 0.0, "findings": []}}' ;;
  "-m llamax.cli.main --version") echo llamax ;;
  "-m llamax.cli.main train"*) exec {sys.executable} -S "$FAKE_CLOUD/bin/train" "$@" ;;
  *) PYTHONPATH={ROOT} exec {sys.executable} "$@" ;;
esac
"""
TRAIN = f"""
import fcntl, os, signal, sys, time
from pathlib import Path

cloud, rank = Path(os.environ['FAKE_CLOUD']), os.environ['FAKE_RANK']
lock = open(cloud / f'training-{{rank}}', 'a')
try:
  fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
  (cloud / 'twice').write_text(rank)
  sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if (cloud / 'code').exists():
  sys.exit(int((cloud / 'code').read_text()))
assert os.environ['GREETING'] == "it's $HOME" and os.environ['TOKEN'] == "se cret'"
file = cloud / 'steps' / rank
step = int(file.read_text()) if file.exists() else 0
print('resuming after step', step, flush=True)
while step < {LAST_STEP}:
  while step and (cloud / 'hold').exists():
    time.sleep(0.05)
  step += 1
  beside = file.with_suffix('.new')
  beside.write_text(str(step))
  beside.rename(file)
  print('step', step, flush=True)
  time.sleep(0.05)
"""


class Cloud:
  def __init__(self, folder, *, waits=1, preempt_at=(), kill=False, workers=2):
    self.folder, self.workers = folder, workers
    for name in ('bin', 'steps', 'home'):
      (folder / name).mkdir(parents=True)
    (folder / 'plan.json').write_text(json.dumps({'waits': waits, 'preempt_at': preempt_at, 'kill': kill}))
    (folder / 'bin/train').write_text(TRAIN)
    self._program('python3.12', PYTHON)
    fake = ROOT / 'tests/launch/fake_gcloud.py'
    self._program('gcloud', f'#!/bin/sh\nexec {sys.executable} -S {fake} "$@"\n')
    (folder / 'bundle.tar').write_bytes(b'')

  def _program(self, name, text):
    path = self.folder / 'bin' / name
    path.write_text(text)
    path.chmod(0o755)

  def launch(self, *words, slices=1):
    command = [
      sys.executable, '-m', 'llamax.cli.main', 'launch', 'tpu-vm', *words, '--tpu=v5p-16', f'--slices={slices}',
      '--spot', '--zone=us-west4-a', '--poll=0.1', f'--state={self.folder}/state', "--env=GREETING=it's $HOME",
      '--wheel', str(self.wheel), '--secret=TOKEN', '--price_per_chip_hour=2', '--name=eight',
      '--', 'llamax', 'train', '--config=configs/debug.py', f'--workdir={self.folder}/runs/eight',
    ]  # fmt: skip
    env = {
      **os.environ,
      'PATH': f'{self.folder}/bin:{os.environ["PATH"]}',
      'FAKE_CLOUD': str(self.folder),
      'FAKE_WORKERS': str(self.workers),
      'HOME': str(self.folder / 'home'),
      'PYTHONPATH': str(ROOT),
      'TOKEN': "se cret'",
    }
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

  @property
  def wheel(self):
    path = self.folder / 'llamax-0.1.0-py3-none-any.whl'
    if not path.exists():
      import zipfile

      with zipfile.ZipFile(path, 'w') as file:
        file.writestr('llamax/__init__.py', '')
    return path

  def calls(self, key):
    lines = (self.folder / 'calls.jsonl').read_text().splitlines()
    return [call[key] for call in map(json.loads, lines) if key in call]

  def steps(self):
    return {file.name: int(file.read_text()) for file in (self.folder / 'steps').iterdir()}

  def check_end(self, workers):
    """Nothing was run twice at a time, nothing is left."""
    assert not (self.folder / 'twice').exists()
    assert self.steps() == dict.fromkeys(workers, LAST_STEP)
    assert json.loads((self.folder / 'cloud.json').read_text())['request'] is None
    mark = f'FAKE_CLOUD={self.folder}'.encode()
    left = [file for file in Path('/proc').glob('[0-9]*/environ') if mark in _read(file)]
    assert not left


def _read(file):
  try:
    return file.read_bytes()
  except OSError:
    return b''


RANKS = [f'eight-{worker}' for worker in range(2)]


def test_a_spot_run_that_is_preempted_asks_again_and_resumes(tmp_path):
  cloud = Cloud(tmp_path / 'cloud', preempt_at=[20])
  life = cloud.launch('run')
  out, _ = life.communicate(timeout=240)
  assert life.returncode == 0, out
  cloud.check_end(RANKS)
  assert cloud.calls('granted') == ['eight', 'eight']
  events = [event['event'] for event in read_ledger(tmp_path / 'cloud/state') if event['event'] != 'seen']
  life_of_machines = ['requesting', 'requested', 'preparing', 'prepared', 'starting', 'started']
  assert events == [
    'opened', *life_of_machines, 'lost', 'giving_back', 'given_back',
    *life_of_machines, 'ended', 'giving_back', 'given_back', 'closed',
  ]  # fmt: skip
  assert '[1] step 60' in out and '[0] resuming after step 0' in out
  assert 'taken away 1 times' in out and 'at 2 a chip-hour' in out
  assert "se cret'" not in out
  seen = [event for event in read_ledger(tmp_path / 'cloud/state') if event['event'] == 'seen']
  assert all(event['chips'] == 8 for event in seen)


def test_a_life_that_is_killed_at_every_call_asks_for_nothing_twice(tmp_path, request):
  thorough = request.config.getoption('--scale') in ('ci', 'soak')
  cloud = Cloud(tmp_path / 'cloud', preempt_at=[20], kill=True)
  kills, limit = 0, time.monotonic() + 1200
  while time.monotonic() < limit:
    life = cloud.launch('run')
    out, _ = life.communicate(timeout=100)
    if life.returncode == 0:
      break
    assert life.returncode == -signal.SIGKILL, out
    kills += 1
    if not thorough and kills == 3:
      (cloud.folder / 'plan.json').write_text(json.dumps({'waits': 1, 'preempt_at': [20], 'kill': False}))
  assert life.returncode == 0
  assert kills >= (25 if thorough else 3), cloud.calls('killed')
  cloud.check_end(RANKS)
  # One for the machines that were preempted, one for those after them.
  assert cloud.calls('granted') == ['eight', 'eight']


def test_two_slices_of_two_workers(tmp_path, request):
  if request.config.getoption('--scale') not in ('ci', 'soak'):
    pytest.skip('four workers: --scale=ci')
  cloud = Cloud(tmp_path / 'cloud')
  life = cloud.launch('run', slices=2)
  out, _ = life.communicate(timeout=240)
  assert life.returncode == 0, out
  cloud.check_end([f'eight-{node}-{worker}' for node in range(2) for worker in range(2)])
  assert '[1] [1] step 60' in out


def test_a_final_code_ends_it_and_gives_the_machines_back(tmp_path):
  cloud = Cloud(tmp_path / 'cloud', waits=0)
  (cloud.folder / 'code').write_text(str(exits.NUMBERS))
  life = cloud.launch('run')
  out, _ = life.communicate(timeout=240)
  assert life.returncode == exits.NUMBERS, out
  assert json.loads((cloud.folder / 'cloud.json').read_text())['request'] is None
  assert cloud.calls('granted') == ['eight']


def test_a_second_life_is_refused_and_a_stopped_job_keeps_its_machines(tmp_path):
  cloud = Cloud(tmp_path / 'cloud', waits=0)
  (cloud.folder / 'hold').touch()
  life = cloud.launch('run')
  limit = time.monotonic() + 240
  while len(cloud.steps()) < 2 and time.monotonic() < limit:
    time.sleep(0.1)
  second = cloud.launch('run')
  out, _ = second.communicate(timeout=240)
  assert second.returncode == 2 and f'process {life.pid} on' in out
  stop = cloud.launch('stop')
  out, _ = stop.communicate(timeout=240)
  assert stop.returncode == 0, out
  out, _ = life.communicate(timeout=240)
  assert life.returncode == exits.RESUME, out
  assert 'the machines stay, and cost' in out
  status = cloud.launch('status')
  out, _ = status.communicate(timeout=240)
  assert 'machines: active' in out and 'and counting' in out
  assert out.count('ended: exit code 75 (asked to stop, saved), asked to stop') == 2
  (cloud.folder / 'hold').unlink()
  # The same command goes on with the machines that are there.
  again = cloud.launch('run')
  out, _ = again.communicate(timeout=240)
  assert again.returncode == 0, out
  assert cloud.calls('granted') == ['eight']
  cloud.check_end(RANKS)


class Script:
  """Machines that are as a test says, look by look."""

  chips, count, trouble = 8, 2, ''

  def __init__(self, states, workers=(), refused=()):
    self.states, self.said, self.refused = list(states), list(workers), list(refused)
    self.done: list[str] = []

  def look(self):
    state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
    return Seen(state, '')

  def request(self):
    self.done.append('request')
    return self.refused.pop(0) if self.refused else None

  def give_back(self):
    self.done.append('give back')
    return None

  def workers(self):
    return self.said.pop(0) if len(self.said) > 1 else self.said[0]

  def ready(self, workers):
    return True

  def prepare(self):
    self.done.append('prepare')

  def start(self):
    self.done.append('start')

  def follow(self, on):
    pass


def live(machines, tmp_path, **options):
  slept = []
  life = Life(machines, tmp_path / 'state', poll=1.0, sleep=slept.append, **options)
  return life.live(), slept


def both(state, code=None, asked=False):
  return [Worker(name, state, code, asked) for name in '01']


def test_one_look_deletes_nothing(tmp_path):
  machines = Script([State.LOST, State.ACTIVE], [both('ended', 0)])
  assert live(machines, tmp_path, keep=True)[0] == 0
  assert machines.done == []


def test_what_cannot_be_asked_is_waited_for(tmp_path):
  machines = Script([State.UNKNOWN] * 50 + [State.ACTIVE], [None] * 3 + [both('ended', 0)])
  code, slept = live(machines, tmp_path)
  assert code == 0 and machines.done == ['give back'] and slept == [1.0] * 54


def test_why_workers_do_not_answer_is_said_once(tmp_path, capsys):
  machines = Script([State.ACTIVE], [None] * 4 + [both('ended', 0)])
  machines.trouble = '0 of 2 workers answer: Permission denied (publickey)'
  assert live(machines, tmp_path)[0] == 0
  assert capsys.readouterr().err.count('Permission denied (publickey)') == 1


def test_machines_that_never_answer_are_given_up(tmp_path, monkeypatch):
  monkeypatch.setattr('llamax.launch.life._SILENCE', 0.0)
  machines = Script([State.ABSENT, State.ACTIVE], [None])
  machines.trouble = 'Permission denied (publickey)'
  with pytest.raises(UserError, match=r'2 failures in a row: not all workers .* Permission denied'):
    live(machines, tmp_path, max_failures=2)
  assert machines.done == ['request', 'give back']


def test_machines_that_have_answered_are_not_given_up(tmp_path, monkeypatch, capsys):
  """What trains there must not end because this machine has lost its key, nor because another one has none."""
  monkeypatch.setattr('llamax.launch.life._SILENCE', 0.0)
  machines = Script([State.ABSENT, State.ACTIVE], [both('none'), *[None] * 9, both('ended', 0)])
  assert live(machines, tmp_path, max_failures=2)[0] == 0
  assert machines.done == ['request', 'start', 'give back']
  assert 'goes on, and costs' in capsys.readouterr().err
  machines = Script([State.ACTIVE], [*[None] * 9, both('ended', 0)])
  assert live(machines, tmp_path / 'other', max_failures=2)[0] == 0
  assert machines.done == ['give back']


def test_refused_requests_are_tried_with_growing_delays(tmp_path):
  machines = Script([State.ABSENT], refused=['no quota'] * 3)
  with pytest.raises(UserError, match='3 failures in a row: the request was refused: no quota'):
    live(machines, tmp_path, max_failures=3)
  assert machines.done == ['request'] * 3
  machines = Script([State.ABSENT] * 3 + [State.ACTIVE], [both('ended', 0)], refused=['full', 'full'])
  assert live(machines, tmp_path)[1][:2] == [10.0, 20.0]


def test_a_request_that_fails_is_deleted_before_the_next(tmp_path):
  machines = Script([State.ABSENT, State.REFUSED, State.ABSENT, State.ACTIVE], [both('ended', 0)])
  assert live(machines, tmp_path)[0] == 0
  assert machines.done == ['request', 'give back', 'request', 'give back']


def test_machines_that_someone_deleted_are_not_asked_for_again(tmp_path):
  machines = Script([State.ACTIVE, State.ABSENT], [both('running')])
  assert live(machines, tmp_path)[0] == exits.RESUME
  assert machines.done == []


@pytest.mark.parametrize(
  'states', [[State.ACTIVE, State.ABSENT, State.ACTIVE], [State.ABSENT] * 2 + [State.ACTIVE]]
)
def test_one_look_leaves_nothing_alone(tmp_path, states):
  machines = Script(states, [both('running'), both('ended', 0)])
  assert live(machines, tmp_path)[0] == 0
  assert machines.done[-1] == 'give back'


@pytest.mark.parametrize(
  ('looks', 'code'),
  [
    ([both('ended', 0)], 0),
    ([both('running'), [Worker('0', 'ended', 2), Worker('1', 'running')]], 2),
    ([both('running'), both('ended', 75, asked=True)], 75),
    ([both('ended', 74)], 74),
    # Asked to stop: one has, one still saves for as long as that takes, or was killed while it saved.
    (
      [
        both('running'),
        *[[Worker('0', 'ended', 75, True), Worker('1', 'running', None, True)]] * 5,
        both('ended', 75, asked=True),
      ],
      75,
    ),
    ([both('running'), [Worker('0', 'ended', 75, True), Worker('1', 'lost', None, True)]], 75),
    ([[Worker('0', 'ended', 0), Worker('1', 'running')], both('ended', 0)], 0),
  ],
)
def test_the_codes_that_end_it(tmp_path, looks, code):
  machines = Script([State.ACTIVE], looks)
  assert live(machines, tmp_path)[0] == code
  assert 'start' not in machines.done
  assert ('give back' in machines.done) == (code != 75)


def test_the_same_command_after_the_end_goes_on(tmp_path):
  ended = [both('running'), both('ended', 77)]
  assert live(Script([State.ACTIVE], ended), tmp_path, keep=True)[0] == 77
  # Killed before it could tell: the end is told now.
  (tmp_path / 'other').mkdir()
  assert live(Script([State.ACTIVE], [both('ended', 77)]), tmp_path / 'other')[0] == 77
  machines = Script([State.ACTIVE], [both('ended', 77), both('running'), both('ended', 0)])
  with pytest.raises(UserError):  # One that does not get as far as a start changes nothing.
    live(Script([State.ABSENT], refused=['full']), tmp_path, max_failures=1)
  assert live(machines, tmp_path)[0] == 0
  assert machines.done == ['start', 'give back']
  machines = Script([State.ACTIVE], [both('ended', 75, asked=True), both('ended', 0)])
  assert live(machines, tmp_path / 'another')[0] == 0
  assert machines.done == ['start', 'give back']


def test_a_life_that_died_while_it_gave_the_machines_back_is_ended_not_begun_again(tmp_path):
  class Killed(BaseException):
    pass

  def killed():
    # As SIGKILL: nothing more is written.
    (tmp_path / 'copy').mkdir()
    (tmp_path / 'copy/ledger.jsonl').write_bytes((tmp_path / 'state/ledger.jsonl').read_bytes())
    raise Killed

  machines = Script([State.ACTIVE], [both('running'), both('ended', 0)])
  machines.give_back = killed
  with pytest.raises(Killed):
    live(machines, tmp_path)
  machines = Script([State.ABSENT])
  life = Life(machines, tmp_path / 'copy', poll=1.0, sleep=lambda seconds: None)
  assert life.live() == 0 and machines.done == ['give back']


def test_a_worker_that_was_started_anew_is_started_after_some_patience(tmp_path):
  odd = [Worker('0', 'running'), Worker('1', 'lost')]
  machines = Script([State.ACTIVE], [both('running'), odd, odd, odd, both('running'), both('ended', 0)])
  code, slept = live(machines, tmp_path)
  assert code == 0 and machines.done == ['start', 'give back'] and len(slept) == 5


def test_a_job_that_does_not_stay_up_is_given_up(tmp_path):
  machines = Script([State.ACTIVE], [both('lost')])
  code, slept = live(machines, tmp_path, max_failures=2)
  assert code == exits.LOST
  assert machines.done == ['start', 'start', 'give back'] and 10.0 in slept


def test_machines_that_cannot_be_deleted_are_shouted_about(tmp_path):
  machines = Script([State.ACTIVE], [both('ended', 0)])
  machines.give_back = lambda: 'no rights'
  with pytest.raises(UserError, match=r'MAY STILL BE THERE, AND COST.*no rights'):
    live(machines, tmp_path, max_failures=2)


def test_the_ledger_has_times_that_a_bill_can_add_up(tmp_path):
  live(Script([State.ACTIVE], [both('running')] * 3 + [both('ended', 0)]), tmp_path)
  events = read_ledger(tmp_path / 'state')
  times = [datetime.datetime.fromisoformat(event['time']) for event in events]
  assert times == sorted(times) and times[0].tzinfo is not None
  assert [event['event'] for event in events] == [
    'opened', 'seen', 'ended', 'giving_back', 'given_back', 'closed'
  ]  # fmt: skip
