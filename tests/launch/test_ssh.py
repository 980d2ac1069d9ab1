"""launch ssh against a real sshd: two names of this machine, with a stand-in for llamax train."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from llamax.cli.main import main
from llamax.core.errors import UserError
from llamax.launch import host_life, hosts, install
from llamax.launch.action import Run
from llamax.launch.follow import Follower
from llamax.launch.ssh import VERBS
from tests.launch.processes import command_lines, commands, gone

# Says what it was given, then does what PLACE tells it: ends with a code, or goes on until SIGTERM.
STAND_IN = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
rank = words[-1].removeprefix('--process_id=')
place = pathlib.Path(os.environ['PLACE'])
facts = {'words': words, 'pid': os.getpid(), 'parent': os.getppid(), 'environ': dict(os.environ)}
facts['files'] = sorted(str(path) for path in pathlib.Path('.').rglob('*'))
with open(place / f'told-{rank}', 'a') as file:
  file.write(json.dumps(facts) + '\\n')
def asked(number, frame):
  print('saving', flush=True)
  sys.exit(75)
signal.signal(signal.SIGTERM, asked)
for step in range(3000):
  print('step', step, flush=True)
  if (place / f'code-{rank}').exists():
    sys.exit(int((place / f'code-{rank}').read_text()))
  time.sleep(0.05)
"""
# The Python of the hosts: host b may have another numpy, `train` is the stand-in.
WRAPPER = """#!/bin/sh
if [ "$WHO" = b ] && [ -d {place}/other ]; then export PYTHONPATH="{place}/other:$PYTHONPATH"; fi
if [ "$2 $3" = 'llamax.cli.main train' ]; then shift 2; exec {python} {place}/stand_in.py "$@"; fi
exec {python} "$@"
"""


class Cluster:
  """Two hosts, a folder where the stand-ins meet."""

  def __init__(self, sshd, wheel, place, llamax):
    self.sshd, self.wheel, self.place, self.llamax = sshd, wheel, place, llamax
    self.cache = wheel.parent / 'cache'
    (place / 'stand_in.py').write_text(STAND_IN)
    (place / 'python').write_text(WRAPPER.format(place=place, python=sys.executable))
    (place / 'python').chmod(0o755)
    self.root = place / 'hosts'

  def start(self, verb, *options, hosts='a,b', train=(), **env):
    words = ['launch', 'ssh', verb, f'--hosts={hosts}', f'--ssh_config={self.sshd}', f'--root={self.root}']
    if verb in ('run', 'submit', 'create', 'doctor'):
      words += [
        f'--python={self.place}/python',
        '--installed',
        f'--wheel={self.wheel}',
        f'--env=PLACE={self.place}',
      ]
    if '--name=' not in ''.join(options) and verb != 'create':
      words.append('--name=demo')
    words += options
    if verb in ('run', 'submit'):
      words += ['--', 'llamax', 'train', '--config=configs/debug.py', f'--workdir={self.place}/run', *train]
    return self.llamax(*words, cwd=self.place, LLAMAX_CACHE=str(self.cache), **env)

  def __call__(self, *words, code=0, **options):
    """(standard output, standard error) of a launch that ends with `code`."""
    process = self.start(*words, **options)
    out, errors = process.communicate(timeout=150)
    assert process.returncode == code, out + errors
    return out, errors

  def told(self, rank, count=1):
    """What the stand-ins of a worker were started with, once there were so many."""
    file = self.place / f'told-{rank}'
    self.wait_for(lambda: file.exists() and file.read_text().count('\n') >= count)
    return [json.loads(line) for line in file.read_text().splitlines()]

  def wait_for(self, condition, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
      assert time.monotonic() < end
      time.sleep(0.05)

  def end(self, *codes):
    for rank, code in enumerate(codes):
      (self.place / f'code-{rank}').write_text(str(code))

  def state(self, rank):
    from llamax.launch.worker import status

    return status(self.root / 'jobs/demo' / str(rank))

  def log(self, rank):
    return (self.root / 'jobs/demo' / str(rank) / 'output.log').read_text()


@pytest.fixture
def cluster(sshd, wheel, tmp_path, llamax):
  made = Cluster(sshd, wheel, tmp_path, llamax)
  yield made
  for rank in range(2):
    facts = made.state(rank)
    if facts['state'] == 'running':
      with contextlib.suppress(ProcessLookupError):
        os.kill(facts['pid'], signal.SIGKILL)


@pytest.fixture
def often(request):
  """Left out of quick runs: what other tests have parts of."""
  if request.config.getoption('--scale') == 'quick':
    pytest.skip('with --scale=ci')


def test_from_nothing_to_a_finished_run(cluster):
  odd = ['--config.x=two words', "it's", '$(touch intruder)', 'a"b', 'two\nlines', '']
  secret = "geheim $(touch intruder) '4711'"
  options = ('--secret=TOKEN', "--env=ODD=$(touch intruder) it's\nfine", '--coordinator=10.0.0.1:4711')
  process = cluster.start('run', *options, train=odd, TOKEN=secret)
  facts = [cluster.told(rank)[0] for rank in range(2)]
  for rank, one in enumerate(facts):
    words = ['train', '--config=configs/debug.py', f'--workdir={cluster.place}/run', *odd]
    place = ['--coordinator=10.0.0.1:4711', '--num_processes=2', f'--process_id={rank}']
    assert one['words'] == words + place
    assert one['environ']['TOKEN'] == secret and one['environ']['ODD'] == "$(touch intruder) it's\nfine"
  lines = command_lines()
  assert sum(str(cluster.place).encode() in line for line in lines) > 6  # It looks in the right place.
  assert not any(b'geheim' in line for line in lines)
  status, _ = cluster('status')
  assert [line[:20] for line in status.splitlines()] == ['a: running: process ', 'b: running: process ']
  cluster.end(0, 0)
  out, errors = process.communicate(timeout=150)
  assert process.returncode == 0, errors
  assert '[a] step 0\n' in out and '[b] step 0\n' in out
  assert 'the same on 2 hosts: python' in errors and 'geheim' not in out + errors
  for path in cluster.place.rglob('*'):
    assert path.name != 'intruder'
    # The stand-in itself writes down its environment.
    assert not path.is_file() or path.name.startswith('told-') or b'geheim' not in path.read_bytes()
  status, _ = cluster('status')
  assert status == 'a: ended: exit code 0 (done)\nb: ended: exit code 0 (done)\n'
  cluster('delete')
  assert not cluster.root.exists()


def test_a_lost_worker_is_started_again(cluster):
  process = cluster.start('run')
  cluster.told(0), cluster.told(1)
  os.kill(cluster.state(1)['pid'], signal.SIGKILL)
  cluster.told(1, 2)
  cluster.end(0, 0)
  out, errors = process.communicate(timeout=150)
  assert process.returncode == 0, errors
  assert 'b: gone without a word' in errors and 'starting its worker again' in errors
  assert out.count('[b] step 0\n') == 2 and out.count('[a] step 0\n') == 1
  assert len(cluster.told(0)) == 1


def test_an_end_that_is_final_ends_the_others(often, cluster):
  process = cluster.start('run')
  cluster.told(0), cluster.told(1)
  (cluster.place / 'code-1').write_text('77')
  out, errors = process.communicate(timeout=150)
  assert process.returncode == 77, errors
  assert 'b: ended: exit code 77' in errors and '[a] saving' in out
  assert cluster.state(0)['code'] == 75


def test_the_run_goes_on_without_its_launcher(cluster):
  process = cluster.start('run')
  cluster.told(0), cluster.told(1)
  process.send_signal(signal.SIGTERM)
  assert process.wait(30) == 130 and 'goes on without this launcher' in process.stderr.read()
  again = cluster.start('run')
  said = ''
  while '2 of 2 workers run already' not in said:
    line = again.stderr.readline()
    assert line, said
    said += line
  _, errors = cluster('run', train=['--other'], code=2)
  assert "a job 'demo' runs already with another command" in errors
  _, errors = cluster('delete', code=2)
  assert 'it runs: stop it first' in errors
  assert len(cluster.told(0)) == len(cluster.told(1)) == 1
  status, _ = cluster('stop')
  assert status.count('exit code 75') == 2
  assert again.wait(60) == 75
  assert gone(cluster.told(0)[0]['pid']) and gone(cluster.told(1)[0]['pid'])


def test_logs_outlive_their_connection(often, cluster):
  cluster('create')
  cluster('submit')
  cluster.told(0), cluster.told(1)
  follower = cluster.start('logs')

  def clients():
    ours = str(cluster.sshd).encode()
    return [pid for pid, line in commands() if line.startswith(b'ssh\0') and ours in line]

  cluster.wait_for(lambda: len(clients()) == 2)
  time.sleep(1)  # They have begun to read.
  for pid in clients():
    os.kill(pid, signal.SIGTERM)  # It ends with 255, as when its connection breaks.
  cluster.wait_for(lambda: 'step 150' in cluster.log(0))
  cluster.end(0, 0)
  out, errors = follower.communicate(timeout=150)
  assert follower.returncode == 0, errors
  for rank, name in enumerate('ab'):
    shown = [line.removeprefix(f'[{name}] ') for line in out.splitlines() if line.startswith(f'[{name}] ')]
    assert shown == cluster.log(rank).splitlines()


def test_environments_that_differ_are_named(often, cluster):
  other = cluster.place / 'other/numpy-1.0.dist-info'
  other.mkdir(parents=True)
  (other / 'METADATA').write_text('Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n')
  _, errors = cluster('create', code=2)
  assert 'the environments of the hosts differ' in errors and 'b has numpy 1.0, a has ' in errors


def test_what_arrived_otherwise_is_not_installed(often, cluster):
  cluster('create')
  (folder,) = (cluster.root / 'code').iterdir()
  (folder / 'ready').unlink()
  with open(folder / 'bundle.tar', 'r+b') as file:
    file.seek(5000)
    file.write(b'x')
  (made,) = cluster.cache.glob('code/*/bundle.tar.sha256')
  head = f'folder={folder}\npython=python3\nextra=\nhow=installed\ndigest={made.read_text()[:64]}\n'
  ended = subprocess.run(['sh', '-s'], input=head + install.SCRIPT, text=True, capture_output=True)
  assert ended.returncode == 2 and f'want {made.read_text()[:64]}: send it again' in ended.stderr
  assert not (folder / 'ready').exists()
  cluster('create')
  assert (folder / 'ready').read_text() == made.read_text()[:64]


@pytest.mark.parametrize(
  ('host', 'told'), [('gone', 'Connection refused'), ('stranger', 'Host key verification failed')]
)
def test_a_host_that_is_not_there_or_not_who_it_was(cluster, host, told):
  _, errors = cluster('create', hosts=f'a,{host}', code=2)
  assert told in errors and not (cluster.root / 'jobs').exists()


def test_a_config_of_ones_own_travels(often, cluster):
  (cluster.place / 'mine').mkdir()
  (cluster.place / 'mine/tiny.py').write_text("import other\nname = 'it''s'")
  (cluster.place / 'mine/other.py').write_text('x = 1\n')
  cluster('create')
  cluster('submit', train=['--config=mine/tiny.py:arg'])
  assert cluster.told(1)[0]['files'] == ['mine', 'mine/other.py', 'mine/tiny.py']
  work = cluster.root / 'jobs/demo/1/work/mine'
  assert (work / 'tiny.py').read_text() == "import other\nname = 'it''s'"
  cluster('stop')


@pytest.mark.parametrize(
  ('options', 'told'),
  [
    (['--hosts=a;b'], 'is no host'),
    (['--hosts=-oProxyCommand=x'], 'is no host'),
    (['--hosts=a,a'], 'a is there twice'),
    (['--hosts=$(x)'], 'is no host'),
    (['--hosts='], 'is no host'),
    (['--hosts_file=none'], 'cannot be read'),
    (['--hosts=a', '--root=my root'], '--root=my root: want letters'),
    (['--hosts=a', '--python=python3; x'], '--python'),
    (['--hosts=a', '--extra=tpu]; x'], '--extra'),
    (['--hosts=a', '--coordinator=a b'], '--coordinator'),
    (['--hosts=a', '--name=A'], 'cannot name a job'),
    (['--hosts=a', '--max_restarts=-1'], '--max_restarts=-1: want at least 0'),
  ],
  ids=str,
)
def test_mistakes_are_told_before_anything_is_done(options, told, capsys):
  assert main(['launch', 'ssh', 'run', '--dry_run', *options, '--', 'llamax', 'train', '--workdir=/x/run']) == 2
  assert told in capsys.readouterr().err


@pytest.mark.parametrize(
  ('command', 'told'),
  [
    (['python', 'x.py', '--workdir=/x'], 'begins with llamax'),
    (['llamax', 'train', '--workdir=runs/x'], 'want the whole path'),
    (['llamax', 'train', '--config=../x.py', '--workdir=/x/run'], 'nothing above its own folder'),
    (['llamax', 'train', '--config=none.py', '--workdir=/x/run'], "no config file 'none.py' here"),
  ],
)
def test_commands_that_no_other_host_could_run(command, told, capsys):
  assert main(['launch', 'ssh', 'run', '--hosts=a', '--name=x', '--dry_run', '--', *command]) == 2
  assert told in capsys.readouterr().err


@pytest.mark.parametrize('verb', VERBS)
def test_a_dry_run_needs_neither_ssh_nor_hosts(verb, tmp_path, monkeypatch, capsys):
  (tmp_path / 'hosts').write_text('one.example.org  # the first\n\nme@two.example.org\n')
  monkeypatch.setenv('LLAMAX_CACHE', str(tmp_path / 'cache'))
  words = ['launch', 'ssh', verb, f'--hosts_file={tmp_path}/hosts', '--name=demo', '--dry_run']
  words += ['--', 'llamax', 'train', '--config=configs/debug.py', '--workdir=/mnt/runs/x']
  with monkeypatch.context() as context:
    context.setenv('PATH', '/nowhere')
    assert main(words) == 0
  out = capsys.readouterr().out
  assert 'BatchMode=yes' in out and (verb == 'ssh') == ('me@two.example.org' not in out)
  assert subprocess.run(['bash', '-n'], input=out, text=True).returncode == 0
  assert [path.name for path in tmp_path.iterdir()] == ['hosts']


def test_a_file_of_hosts_that_is_no_text(tmp_path, capsys):
  (tmp_path / 'hosts').write_bytes('one  # Büro\n'.encode('latin-1'))
  assert main(['launch', 'ssh', 'status', f'--hosts_file={tmp_path}/hosts', '--name=demo', '--dry_run']) == 2
  assert 'hosts is not UTF-8 at byte 8' in capsys.readouterr().err


def test_the_doctors_wait_for_each_other(tmp_path, monkeypatch, capsys):
  """One host imports jax in five seconds, another in fifty."""
  monkeypatch.setenv('LLAMAX_CACHE', str(tmp_path))
  assert main(['launch', 'ssh', 'doctor', '--hosts=one,two', '--name=demo', '--dry_run']) == 0
  lines = [line for line in capsys.readouterr().out.splitlines() if 'doctor --json' in line]
  assert len(lines) == 2 and all(line.count('--patience=60') == 1 for line in lines)


def test_a_stop_that_reaches_no_host_is_none(sshd, capsys):
  assert main(['launch', 'ssh', 'stop', '--hosts=a,gone', f'--ssh_config={sshd}', '--name=demo']) == 2
  out, errors = capsys.readouterr()
  assert out.startswith('a: never started\ngone: does not answer: ')
  assert "'demo' may still run on gone (see above)" in errors


def test_a_stop_that_ends_nothing_is_none(monkeypatch, capsys):
  states = [{'state': 'running'}, {'state': 'ended', 'code': 75}, {'state': 'lost'}]
  monkeypatch.setattr(host_life, '_stop', lambda *_: None)
  monkeypatch.setattr(host_life, 'ask', lambda _: states)
  some = SimpleNamespace(names=['a', 'b', 'c'], job=SimpleNamespace(name='demo'))
  with pytest.raises(UserError, match="'demo' may still run on a "):
    host_life.stop(some)
  states[0] = {'state': 'none'}
  assert host_life.stop(some) == 0


def test_what_is_shown_of_a_log_is_not_shown_again(tmp_path, monkeypatch, capfd):
  """Out of reach, then gone, a start that fails, one that does not: its log is another."""
  (tmp_path / 'log').write_text('one\n')
  (tmp_path / 'codes').write_text('255 0 0 0')
  script = (
    'tail -c +$(($2 + 1)) "$1/log"; read -r code rest < "$1/codes"; echo "$rest" > "$1/codes"; exit $code'
  )
  some = SimpleNamespace(names=['a'], args=SimpleNamespace(max_restarts=9))
  some.log = lambda rank: (
    lambda offset: Run(('sh', '-c', script, 'sh', str(tmp_path), str(offset)), 'x', label='a')
  )
  first, second = {'pid': 1, 'started': 'then', 'host': 'a'}, {'pid': 2, 'started': 'now', 'host': 'a'}
  states = iter(
    [
      {**first, 'state': 'running'},
      {**first, 'state': 'lost'},
      {**first, 'state': 'lost'},
      {'state': 'ended', 'code': 0},
    ]
  )
  starts = iter([None, {**second, 'state': 'running'}])

  def again(*_):
    if (facts := next(starts)) is not None:
      (tmp_path / 'log').write_text('anew\n')
    return facts

  for name, stand_in in (
    ('create', lambda _: 0),
    ('_begin', lambda _: [{**first, 'state': 'running'}]),
    ('_reached', lambda *_: next(states)),
    ('_again', again),
    ('_DELAYS', (0.0,)),
    ('Follower', lambda lost: Follower(lost=lost, patience=-1.0)),
  ):
    monkeypatch.setattr(host_life, name, stand_in)
  assert host_life.run(some) == 0
  assert capfd.readouterr().out == '[a] one\n[a] anew\n'


def test_delete_leaves_what_is_somebody_elses(tmp_path):
  for file in (
    'code/mine/lock', 'code/mine-abcdef/notes', 'code/1.2.3+g0-012abc/lock', 'code/1.2.3+g1-012abc/bundle.Xy1',
    'jobs/demo/0/work/x', 'jobs/demo/0/lock', 'jobs/demo/1/thesis', 'jobs/other/0/thesis',
  ):  # fmt: skip
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text('')

  def delete(rank):
    script = hosts._DELETE.format(root=tmp_path, name='demo', rank=rank)
    subprocess.run(['sh', '-s'], input=script, text=True, check=True, cwd='/')
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file())

  for rank in (0, 1):
    assert delete(rank) == [
      'code/mine-abcdef/notes',
      'code/mine/lock',
      'jobs/demo/1/thesis',
      'jobs/other/0/thesis',
    ]
