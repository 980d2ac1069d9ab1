"""One writer per run directory, whatever processes, clocks or disks do."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llamax.checkpoint import holder, lease_folder
from llamax.checkpoint.lease import Senses, acquire
from llamax.core import exits, storage
from llamax.core.errors import UserError
from llamax.core.exits import Stop

FAR = holder.Process('far', 'boot-of-far', 'pid:[1]', 77, 123)
DAY = 86_400.0


def quiet(text):
  pass


class Time:
  """Clocks of two processes that tick together; sleeping on one lets `while_asleep` act."""

  def __init__(self):
    self.now = 1000.0
    self.asleep = lambda: None

  def senses(self, process, clock_off=0.0, wall=None):
    return Senses(process, lambda: self.now + clock_off, wall or (lambda: 1e9 + self.now), self.sleep)

  def sleep(self, seconds):
    self.now += seconds
    self.asleep()


@pytest.fixture
def ticking():
  return Time()


def child(code, *words):
  """A process that has the lease module, with its standard output in a pipe."""
  start = 'import os, sys, time\nfrom llamax.checkpoint.lease import acquire\n'
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  command = [sys.executable, '-c', start + code, *map(str, words)]
  return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


HOLD = (
  'held = acquire(sys.argv[1], float(sys.argv[2]))\n'
  'print("held", held.token, flush=True)\n'
  'while not held.lost: time.sleep(0.02)\n'
  'print(held.lost, flush=True)\n'
)


@pytest.fixture
def holding(tmp_path):
  """(seconds) -> a process that holds the lease on tmp_path."""
  started = []

  def start(seconds):
    process = child(HOLD, tmp_path, seconds)
    started.append(process)
    assert process.stdout.readline() == 'held 1\n'
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


def test_released_is_free_at_once_with_a_higher_token(tmp_path):
  said = []
  for token in (1, 2, 3):
    with acquire(tmp_path, 60, said.append) as held:
      assert held.token == token and held.lost is None
      held.require()
  assert said == []
  assert os.listdir(tmp_path / 'lease') == ['3.json']


def test_a_living_holder_is_named_within_a_second(tmp_path, holding):
  process = holding(60)
  start = time.monotonic()
  with pytest.raises(UserError) as refused:
    acquire(tmp_path, 60, quiet)
  assert time.monotonic() - start < 1
  found = json.loads((tmp_path / 'lease/1.json').read_text())
  for told in (holder.here().host, f'process {process.pid}', f'started {found["started"]}', 'kill', 'another'):
    assert told in str(refused.value)


def test_this_very_process_is_a_holder_too(tmp_path):
  with acquire(tmp_path, 60), pytest.raises(UserError, match=f'process {os.getpid()}'):
    acquire(tmp_path, 60, quiet)


@pytest.mark.parametrize('reaped', [True, False])
def test_a_killed_holder_is_replaced_at_once(tmp_path, holding, reaped):
  process = holding(60)
  process.send_signal(signal.SIGKILL)
  if reaped:
    process.wait()
  else:
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # A zombie.
  said, start = [], time.monotonic()
  with acquire(tmp_path, 60, said.append) as held:
    assert held.token == 2
  assert time.monotonic() - start < 1
  assert len(said) == 1 and f'process {process.pid}' in said[0] and 'taking over' in said[0]


def test_a_number_given_to_a_later_process_is_not_the_holder(tmp_path):
  gone = dataclasses.replace(holder.here(), pid_started=holder.here().pid_started - 1)
  acquire(tmp_path, 60, quiet, senses=Senses(gone), background=False)
  assert acquire(tmp_path, 60, quiet, background=False).token == 2


def test_a_stopped_holder_is_replaced_when_its_lease_expires(tmp_path, holding):
  process = holding(1.5)
  process.send_signal(signal.SIGSTOP)
  with pytest.raises(UserError):
    acquire(tmp_path, 60, quiet)  # It could be the machine's.
  time.sleep(1.6)
  said = []
  held = acquire(tmp_path, 60, said.append)
  assert held.token == 2 and 'watching' in said[0] and 'taking over' in said[1]
  process.send_signal(signal.SIGCONT)
  assert f'taken over by host {holder.here().host}, process {os.getpid()}' in process.stdout.readline()
  held.require()
  held.release()


def test_a_stopped_holder_that_nobody_replaced_goes_on(tmp_path, holding):
  process = holding(0.5)
  process.send_signal(signal.SIGSTOP)
  time.sleep(1.0)
  process.send_signal(signal.SIGCONT)
  time.sleep(0.5)
  assert process.poll() is None
  with pytest.raises(UserError, match=f'process {process.pid}'):
    acquire(tmp_path, 60, quiet)


# Forks 20 that call acquire in the same instant; prints what each of them got, then kills them, twice over.
RACE = """
import json, signal
from llamax.core.errors import UserError

def work(out, go):
  while time.time() < go: pass
  try:
    said = acquire(sys.argv[1], 60, lambda text: None) and 'held'
  except UserError as error:
    said = str(error)
  os.write(out, (json.dumps([os.getpid(), said]) + '\\n').encode())
  time.sleep(60)

for attempt in range(2):
  read, write = os.pipe()
  go, pids = time.time() + 0.3, []
  for _ in range(20):
    pids.append(os.fork())
    if not pids[-1]: work(write, go)
  os.close(write)
  with os.fdopen(read) as lines:
    print(json.dumps([json.loads(next(lines)) for _ in pids]), flush=True)
  for pid in pids: os.kill(pid, signal.SIGKILL)
"""


def test_of_twenty_that_start_together_exactly_one_gets_it(tmp_path):
  """On a new folder, then on one whose holder was killed."""
  out, err = child(RACE, tmp_path).communicate(timeout=60)
  rounds = [json.loads(line) for line in out.splitlines()]
  assert [len(found) for found in rounds] == [20, 20], err
  for found in rounds:
    winners = [pid for pid, said in found if said == 'held']
    assert len(winners) == 1, found
    assert all(f'process {winners[0]},' in said for pid, said in found if pid != winners[0])


def test_threads_of_many_views_never_hold_together(tmp_path):
  """Each takes, checks that it is alone, gives back, many times over: the tokens handed out are distinct."""
  tokens, inside, errors = [], [], []

  def work():
    while len(tokens) < 150 and not errors:
      try:
        held = acquire(tmp_path, 60, quiet, background=False)
      except UserError:
        continue
      inside.append(held.token)
      if len(inside) > 1:
        errors.append(list(inside))
      held.require()
      tokens.append(held.token)
      inside.remove(held.token)
      held.release()

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors and len(set(tokens)) == len(tokens) >= 150


@pytest.mark.parametrize('wall_off', [0.0, -DAY, DAY])
def test_a_holder_on_another_host_that_renews_is_never_replaced(tmp_path, ticking, wall_off):
  """Whatever the difference of the two wall clocks."""
  theirs = ticking.senses(FAR, clock_off=5e6, wall=lambda: 1e9 + ticking.now + wall_off)
  held = acquire(tmp_path, 60, quiet, senses=theirs, background=False)
  renewed = [ticking.now]

  def other_host():
    if ticking.now - renewed[0] >= 10:
      renewed[0] = ticking.now
      held.renew()

  ticking.asleep = other_host
  for _ in range(20):
    start, said = ticking.now, []
    with pytest.raises(UserError, match='host far, process 77'):
      acquire(tmp_path, 60, said.append, senses=ticking.senses(holder.here()))
    assert ticking.now - start <= 12 and 'watching' in said[0]
  held.require()
  assert held.lost is None


@pytest.mark.parametrize('wall', ['same', '-1 day', '+1 day', 'frozen', 'jumps to and fro'])
def test_a_dead_holder_on_another_host_is_replaced_after_its_lease(tmp_path, ticking, wall):
  acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False)
  offs = {'same': 0.0, '-1 day': -DAY, '+1 day': DAY}
  walls = {
    'frozen': lambda: 5.0,
    'jumps to and fro': lambda: 1e9 + (DAY if int(ticking.now) % 2 else -DAY),
  }
  mine = walls.get(wall, lambda: 1e9 + ticking.now + offs[wall])
  start = ticking.now
  held = acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here(), wall=mine), background=False)
  assert held.token == 2 and 30 <= ticking.now - start <= 62


def test_two_that_wait_for_the_same_dead_holder_do_not_both_get_it(tmp_path, ticking):
  acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False)
  other = dataclasses.replace(FAR, host='third', pid=78)
  got = []

  def overtaken():
    if ticking.now > 1055 and not got:
      ticking.asleep = lambda: None
      got.append(acquire(tmp_path, 60, quiet, senses=ticking.senses(other), background=False))
      ticking.asleep = got[0].renew

  ticking.asleep = overtaken
  with pytest.raises(UserError, match='host third, process 78'):
    acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here()), background=False)
  assert got[0].token == 2
  got[0].require()


def test_same_name_in_another_container_or_boot_is_another_machine(tmp_path, ticking):
  """Its process numbers say nothing here: the dead-looking holder is watched, so found alive."""
  here = holder.here()
  for other in (
    dataclasses.replace(here, pid_namespace='pid:[2]', pid=2**22 + 1),
    dataclasses.replace(here, boot_id='another', pid=2**22 + 1),
  ):
    held = acquire(tmp_path, 60, quiet, senses=ticking.senses(other), background=False)
    ticking.asleep = held.renew
    with pytest.raises(UserError):
      acquire(tmp_path, 60, quiet, senses=ticking.senses(here))
    ticking.asleep = lambda: None
    held.release()


def test_a_process_that_cannot_be_seen_is_watched(tmp_path, ticking, monkeypatch):
  """Another user's, where /proc is hidden: its signal is refused, so it is there."""
  monkeypatch.setattr(holder, '_stat', lambda pid: ('', 0))
  monkeypatch.setattr(os, 'kill', lambda pid, number: (_ for _ in ()).throw(PermissionError()))
  held = acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here()), background=False)
  ticking.asleep = held.renew
  with pytest.raises(UserError, match='renewed its lease just now'):
    acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here()))


def test_the_wall_clock_of_this_host_may_jump(tmp_path, ticking):
  here = holder.here()
  acquire(tmp_path, 60, quiet, senses=ticking.senses(here), background=False)
  for wall in (0.0, 1e12):
    with pytest.raises(UserError, match='it runs'):
      acquire(tmp_path, 60, quiet, senses=ticking.senses(here, wall=lambda wall=wall: wall))


@pytest.mark.parametrize('text', [b'', b'{"token": 5, "pro', b'{"token": 5}', b'[]', b'\0' * 1024])
def test_an_unfinished_lease_file_is_waited_for_then_replaced(tmp_path, ticking, text):
  (tmp_path / 'lease').mkdir()
  (tmp_path / 'lease/5.json').write_bytes(text)
  start = ticking.now
  assert acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False).token == 6
  assert 1 <= ticking.now - start <= 5


def test_a_lease_file_that_is_finished_while_waited_for_counts(tmp_path, ticking):
  held = acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here()), background=False)
  path = tmp_path / 'lease/1.json'
  text = path.read_bytes()
  path.write_bytes(b'')
  ticking.asleep = lambda: path.write_bytes(text)
  with pytest.raises(UserError, match='it runs'):
    acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here()))
  held.require()


def test_one_that_slept_through_others_backs_off(tmp_path, ticking, monkeypatch):
  """Its look at the newest token is old: what it makes is below the newest, and must not count."""
  create, here = lease_folder.create, holder.here()

  def slow(folder, mine):
    monkeypatch.setattr(lease_folder, 'create', create)
    for _ in range(3):  # Others come and go, each tidying up.
      acquire(tmp_path, 60, quiet, senses=ticking.senses(here), background=False).release()
    others.append(acquire(tmp_path, 60, quiet, senses=ticking.senses(here), background=False))
    return create(folder, mine)

  others = []
  monkeypatch.setattr(lease_folder, 'create', slow)
  with pytest.raises(UserError, match='it runs'):
    acquire(tmp_path, 60, quiet, senses=ticking.senses(here), background=False)
  others[0].require()
  assert os.listdir(tmp_path / 'lease') == ['4.json']


def test_who_was_taken_over_is_fenced_with_the_names(tmp_path, ticking):
  old = acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False)
  acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here()), background=False)
  assert old.lost is None  # Nobody has looked yet.
  with pytest.raises(Stop, match=f'taken over by host {holder.here().host}, process {os.getpid()}') as stop:
    old.require()
  assert stop.value.code == exits.FENCED and old.lost == str(stop.value)
  text = (tmp_path / 'lease/2.json').read_bytes()
  old.renew()
  old.release()
  assert (tmp_path / 'lease/2.json').read_bytes() == text and os.listdir(tmp_path / 'lease') == ['2.json']


@pytest.mark.parametrize('again', [False, True])
def test_deleting_the_lease_fences_its_holder(tmp_path, ticking, again):
  """Tokens may start anew: then the old holder must not take the other's file for its own."""
  old = acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here()), background=False)
  os.unlink(tmp_path / 'lease/1.json')
  if again:
    new = acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False)
    assert new.token == old.token
    old.renew()
    new.require()
  with pytest.raises(Stop) as stop:
    old.require()
  assert stop.value.code == exits.FENCED and ('host far' if again else 'deleted') in str(stop.value)


def test_taking_over_takes_away_what_was_being_written(tmp_path, ticking):
  checkpoints = tmp_path / 'checkpoints'
  acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False)
  (checkpoints / 'writer-1/12').mkdir(parents=True)
  (checkpoints / 'writer-0/3').mkdir(parents=True)
  (checkpoints / '10').mkdir()
  order = []
  real = storage.move

  def move(source, target):
    order.append((source.name, lease_folder.newest(tmp_path / 'lease')))
    real(source, target)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(storage, 'move', move)
    held = acquire(tmp_path, 60, quiet, senses=ticking.senses(holder.here()), background=False)
  assert sorted(order) == [('writer-0', 2), ('writer-1', 2)]  # The new lease was there before.
  assert sorted(os.listdir(checkpoints)) == ['10', 'trash'] and len(os.listdir(checkpoints / 'trash')) == 2
  with pytest.raises(FileNotFoundError):
    os.rename(checkpoints / 'writer-1/12', checkpoints / '12')
  assert held.token == 2


def test_a_token_is_above_any_writer(tmp_path, ticking):
  (tmp_path / 'checkpoints/writer-7/1').mkdir(parents=True)
  assert acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False).token == 8
  assert os.listdir(tmp_path / 'checkpoints') == ['trash']


def failing(number):
  def fail(*args, **options):
    raise OSError(number, os.strerror(number))

  return fail


def test_a_disk_that_fails_for_a_while_loses_nothing_then_all(tmp_path, ticking, monkeypatch):
  held = acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False)
  for _ in range(10):
    with monkeypatch.context() as patch:
      patch.setattr(os, 'pwrite', failing(errno.ENOSPC))
      for _ in range(5):
        ticking.now += 10
        held.renew()
        assert held.lost is None
    ticking.now += 10
    held.renew()
    assert held.lost is None
  monkeypatch.setattr(os, 'pwrite', failing(errno.EIO))
  ticking.now += 60.1
  held.renew()
  assert 'could not be renewed for 60 s' in held.lost
  with pytest.raises(Stop) as stop:
    held.require()
  assert stop.value.code == exits.LOST


def test_a_renewal_that_hangs_loses_the_lease(tmp_path, ticking):
  held = acquire(tmp_path, 0.3, quiet, senses=ticking.senses(FAR), background=False)
  with held._lock:  # As the thread holds it while a dead mount does not answer.
    assert held.lost is None
    ticking.now += 0.4
    assert 'could not be renewed' in held.lost


def test_renewing_needs_no_room(tmp_path):
  """RLIMIT_FSIZE of 0: no byte may be added to any file. The lease file has its size from the start."""
  code = (
    'import resource, signal\n'
    'held = acquire(sys.argv[1], 60, background=False)\n'
    'size = os.path.getsize(sys.argv[1] + "/lease/1.json")\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n'
    'for _ in range(1000): held.renew()\n'
    'held.release()\n'
    'assert held.holder.renewals == 1001 and held.holder.released, held.holder\n'
    'assert os.path.getsize(sys.argv[1] + "/lease/1.json") == size\n'
  )
  out, err = child(code, tmp_path).communicate(timeout=60)
  assert not err, out + err


def test_a_folder_that_cannot_be_written_is_a_mistake(tmp_path):
  (tmp_path / 'file').write_text('')
  for folder in (tmp_path / 'file', '/proc/llamax', '/proc/llamax/run'):  # Nobody makes a folder in /proc.
    with pytest.raises(UserError, match='cannot be taken'):
      acquire(folder, 60)


def test_a_full_disk_is_no_mistake(tmp_path, monkeypatch):
  """The same command goes on once there is room, so a supervisor tries again."""
  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', failing(errno.ENOSPC))
    with pytest.raises(Stop, match='No space left') as stop:
      acquire(tmp_path, 60)
  assert stop.value.code == exits.STORAGE and os.listdir(tmp_path / 'lease') == []
  # The lease is there, but what an older holder writes cannot be renamed away.
  (tmp_path / 'checkpoints/writer-1').mkdir(parents=True)
  with monkeypatch.context() as patch:
    patch.setattr(storage, 'move', failing(errno.ENOSPC))
    with pytest.raises(Stop, match='No space left'):
      acquire(tmp_path, 60)
  with acquire(tmp_path, 60, quiet) as held:
    assert held.token == 3
  assert os.listdir(tmp_path / 'checkpoints') == ['trash']


def test_old_files_that_cannot_be_tidied_up_do_no_harm(tmp_path, monkeypatch):
  acquire(tmp_path, 60, background=False).release()
  monkeypatch.setattr(Path, 'unlink', failing(errno.EIO))
  assert acquire(tmp_path, 60, background=False).token == 2


def test_require_reports_a_disk_that_cannot_be_read(tmp_path, ticking, monkeypatch):
  held = acquire(tmp_path, 60, quiet, senses=ticking.senses(FAR), background=False)
  monkeypatch.setattr(os, 'listdir', failing(errno.EIO))
  with pytest.raises(OSError, match='Input/output'):
    held.require()


def test_the_thread_renews_and_ends(tmp_path):
  held = acquire(tmp_path, 0.3)
  time.sleep(0.5)
  assert lease_folder.read(tmp_path / 'lease', 1).renewals >= 3
  held.release()
  assert not [thread for thread in threading.enumerate() if thread.name == 'lease']
  assert lease_folder.read(tmp_path / 'lease', 1).released


def test_what_it_costs(tmp_path):
  held = acquire(tmp_path, 60, background=False)
  costs = {}
  for name, act, count in (
    ('lost', lambda: held.lost, 20_000),
    ('require', held.require, 500),
    ('renew', held.renew, 500),
  ):
    start = time.perf_counter()
    for _ in range(count):
      act()
    costs[name] = (time.perf_counter() - start) / count
  print({name: f'{1e6 * cost:.1f} us' for name, cost in costs.items()})
  assert costs['lost'] < 1e-4 and costs['renew'] < 0.05
  held.release()
