"""What a supervisor does after each end of its command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.observe.ledger import read_ledger
from llamax.train import supervise as module
from llamax.train.supervise import in_words, option, supervise

# Counts its attempts in ./attempts, then does what the line of that number in ./script says (the last one from
# then on). `save N` makes a checkpoint of step N.
COMMAND = """
cd {folder}
echo x >> attempts
n=$(wc -l < attempts)
save() {{ mkdir -p run/checkpoints/$1; }}
line=$(sed -n ${{n}}p script)
eval "${{line:-$(tail -n 1 script)}}"
"""


def running(pid):
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
  except FileNotFoundError:
    return False


class Runs:
  def __init__(self, folder):
    self.folder, self.said, self.workdir = folder, [], folder / 'run'

  def __call__(self, *script, workdir=True, **options):
    (self.folder / 'script').write_text('\n'.join(script) + '\n')
    command = ['sh', '-c', COMMAND.format(folder=self.folder), 'sh', *[f'--workdir={self.workdir}'] * workdir]
    settings = {'max_failures': 5, 'max_restarts': None, 'first_delay': 0.001, 'jitter': lambda: 1.0}
    return supervise(command, say=self.said.append, **settings | options)

  @property
  def attempts(self):
    return (self.folder / 'attempts').read_text().count('x')

  @property
  def ends(self):
    return [event for event in read_ledger(self.workdir, 'supervise.jsonl') if event['event'] == 'ended']


@pytest.fixture
def runs(tmp_path):
  return Runs(tmp_path)


@pytest.mark.parametrize('code', [exits.DONE, exits.MISTAKE, exits.NUMBERS, exits.FENCED])
def test_ends_that_are_final(runs, code):
  assert runs(f'exit {code}') == code
  assert runs.attempts == 1
  assert len(runs.said) == 1 and f'exit code {code} (' in runs.said[0]


@pytest.mark.parametrize(
  'end', ['exit 1', 'exit 75', 'exit 76', 'exit 74', 'exit 130', 'kill -9 $$', 'kill -SEGV $$']
)
def test_ends_after_which_it_starts_again(runs, end):
  assert runs(end, end, 'exit 0') == 0
  assert runs.attempts == 3


def test_gives_up_after_attempts_in_a_row_without_progress(runs):
  assert runs('exit 76', max_failures=3) == 76
  assert runs.attempts == 3 and 'giving up: 3 attempts in a row without progress' in runs.said[-1]


def test_gives_up_with_the_shells_code_for_a_signal(runs):
  assert runs('kill -9 $$', max_failures=1) == 137
  assert 'killed by SIGKILL' in runs.said[0]


def test_progress_forgives_the_failures_before(runs):
  script = ['exit 1', 'exit 1', 'save 3; exit 1'] * 3
  script[5], script[8] = 'save 9; exit 1', 'save 12; exit 1'
  assert runs(*script, 'exit 0', max_failures=3) == 0
  assert runs.attempts == 10
  assert [end['step'] for end in runs.ends] == [None, None, 3, 3, 3, 9, 9, 9, 12, 12]
  assert [end['delay'] for end in runs.ends] == [0.001, 0.002, 0.001] * 3 + [None]


def test_an_older_step_written_again_is_no_progress(runs):
  assert runs('save 9; exit 1', 'save 3; exit 1', 'save 6; exit 1', max_failures=2) == 1
  assert runs.attempts == 3


def test_what_is_no_step_is_no_progress(runs):
  assert runs('save damaged-9; save writer-1/12; save trash/5; exit 1', max_failures=2) == 1
  assert runs.attempts == 2


def test_without_a_workdir_a_long_attempt_is_progress(runs, monkeypatch):
  monkeypatch.setattr(module, 'LONG_SECONDS', 0.3)
  script = ['exit 1', 'sleep 0.4; exit 1', 'exit 1', 'sleep 0.4; exit 1', 'exit 0']
  assert runs(*script, workdir=False, max_failures=2) == 0
  assert not runs.workdir.exists()


def test_restarts_are_bounded(runs):
  n = ['save 1; exit 1', 'save 2; exit 1', 'save 3; exit 1', 'save 4; exit 1']
  assert runs(*n, max_restarts=2) == 1
  assert runs.attempts == 3 and '--max_restarts' in runs.said[-1]


def test_delays_double_to_a_limit_with_jitter(runs, monkeypatch):
  slept = []
  monkeypatch.setattr(module, '_sleep', lambda seconds, asked: slept.append(seconds) or True)
  assert runs('exit 1', max_failures=12, first_delay=module.FIRST_DELAY, jitter=lambda: 1.25) == 1
  assert slept == [1.25 * min(300, 2**n) for n in range(11)]


def test_the_ledger_tells_each_attempt(runs):
  runs('save 5; exit 76', 'exit 0')
  events = read_ledger(runs.workdir, 'supervise.jsonl')
  assert [event['event'] for event in events] == ['started', 'ended'] * 2
  started, ended = events[:2]
  assert started['command'][-1] == f'--workdir={runs.workdir}' and started['host'] and started['attempt'] == 1
  assert (ended['code'], ended['step_before'], ended['step'], ended['attempt']) == (76, None, 5, 1)
  assert 'a process of the run died' in ended['end'] and ended['delay'] == 0.001
  assert 'newest checkpoint: step 5, before: none; starting again in 0.0 s' in runs.said[0]


def test_other_hosts_of_a_run_have_their_own_ledger(tmp_path):
  supervise(
    ['true', '--process_id', '2', f'--workdir={tmp_path}'],
    max_failures=1,
    max_restarts=0,
    say=lambda text: None,
  )
  assert os.listdir(tmp_path) == ['supervise-2.jsonl']


def test_a_command_that_never_started_leaves_no_trace(tmp_path):
  with pytest.raises(UserError, match='cannot be started'):
    supervise(['no-such-command', f'--workdir={tmp_path}/run'], max_failures=1, max_restarts=0)
  assert os.listdir(tmp_path) == []


def test_an_attempt_is_known_while_it_runs(runs):
  assert runs('sleep 0.2; cp run/supervise.jsonl seen; exit 0') == 0
  assert '"started"' in (runs.folder / 'seen').read_text()


def test_options_of_the_command():
  words = ['a', '--workdir', 'x', '--workdir=y z', '--other', '--workdirs=q', '--workdir']
  assert option(words, 'workdir') == 'y z' and option(words[:3], 'workdir') == 'x'
  assert option(['--workdir='], 'workdir') is None and option([], 'workdir') is None


def test_words_for_ends():
  assert in_words(-9) == 'killed by SIGKILL' and in_words(-64 - 30) == 'killed by signal 94'
  assert in_words(5) == 'exit code 5' and 'stuck' in in_words(76)


@pytest.fixture
def command():
  """(*words) -> `llamax supervise` as a process with its standard error in a pipe."""
  started = []

  def start(*words):
    process = subprocess.Popen(
      [sys.executable, '-m', 'llamax.cli.main', 'supervise', *map(str, words)],
      stderr=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


TRAP = 'trap "echo {signal}; sleep 0.3; exit {code}" {signal}; echo ready; while true; do sleep 0.05; done'


@pytest.mark.parametrize(('name', 'code'), [('TERM', 75), ('INT', 130)])
def test_a_request_to_stop_is_passed_on_then_waited_for(command, name, code):
  process = command('--', 'sh', '-c', TRAP.format(signal=name, code=code))
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(getattr(signal, f'SIG{name}'))
  out, err = process.communicate(timeout=20)
  assert process.returncode == code and out.split() == [name]
  assert 'asked to stop' in err and 'again in' not in err


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, exits.RESUME), (signal.SIGINT, exits.INTERRUPTED)]
)
@pytest.mark.parametrize('end', ['exec sleep 60', 'trap "exit 76" TERM INT; while true; do sleep 0.05; done'])
def test_a_command_that_a_stop_met_too_early_was_stopped(command, number, code, end):
  """Killed by the signal that it did not hear yet, or left alone by a peer that was."""
  process = command('--', 'sh', '-c', f'echo ready; {end}')
  assert process.stdout.readline() == 'ready\n'
  time.sleep(0.1)
  process.send_signal(number)
  _, err = process.communicate(timeout=20)
  assert process.returncode == code and 'not starting again: asked to stop' in err


def test_a_second_request_kills(command):
  process = command('--', 'sh', '-c', 'trap "echo once" TERM; echo ready; while true; do sleep 0.05; done')
  assert process.stdout.readline() == 'ready\n'
  process.terminate()
  assert process.stdout.readline() == 'once\n'
  process.terminate()
  _, err = process.communicate(timeout=20)
  assert process.returncode == 137 and 'killed by SIGKILL' in err


def test_a_request_to_stop_between_attempts_ends_at_once(command):
  process = command('--', 'sh', '-c', 'exit 1')
  for _ in range(2):
    assert 'starting again' in process.stderr.readline()
  start = time.monotonic()
  process.terminate()
  process.communicate(timeout=20)
  assert process.returncode == exits.RESUME and time.monotonic() - start < 1.4


def test_requests_in_any_instant_end_it_without_leftovers(command, tmp_path):
  """While it starts, runs, ends: no signal is lost, none is passed on twice."""
  script = f'trap "exit 75" TERM; echo $$ >> {tmp_path}/pids; sleep 0.02; exit 1'
  for attempt in range(12):
    process = command('--max_failures=1000', '--', 'sh', '-c', script)
    time.sleep(0.12 + 0.01 * attempt)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode in (75, 1, 143, -15), process.returncode
  pids = [int(line) for line in (tmp_path / 'pids').read_text().split()] if (tmp_path / 'pids').exists() else []
  assert not any(map(running, pids))


def test_the_command_does_not_outlive_a_killed_supervisor(command):
  process = command('--', 'sh', '-c', 'echo $$; exec sleep 60')
  pid = int(process.stdout.readline())
  process.kill()
  process.wait()
  end = time.monotonic() + 5
  while running(pid) and time.monotonic() < end:
    time.sleep(0.01)
  assert not running(pid)


@pytest.mark.parametrize(
  ('words', 'told'),
  [
    ((), 'mind the two dashes'),
    (('--',), 'mind the two dashes'),
    (('train', '--config=x'), "'train' is no argument"),
    (('--max_failures=0', '--', 'true'), '--max_failures=0: want at least 1'),
    (('--max_restarts=-1', '--', 'true'), '--max_restarts=-1: want at least 0'),
    (('--', 'no-such-command', 'x'), "'no-such-command' cannot be started"),
  ],
)
def test_mistakes(command, words, told):
  process = command(*words)
  _, err = process.communicate(timeout=20)
  assert process.returncode == 2 and told in err and 'Traceback' not in err


def test_it_starts_without_jax_in_an_instant(command):
  best = 9.0
  for _ in range(3):
    start = time.perf_counter()
    process = command('--', 'true')
    process.communicate(timeout=20)
    assert process.returncode == 0
    best = min(best, time.perf_counter() - start)
  print(f'llamax supervise -- true: {best:.2f} s')
  code = 'import sys, llamax.train.supervise; print([m for m in ("jax", "orbax", "numpy") if m in sys.modules])'
  assert (
    subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'
  )
