"""What the processes of a run tell each other, over a key-value store in memory."""

import json

import pytest

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.parallel import peers as peers_module
from llamax.parallel.peers import SILENT_SECONDS, Peers, Record, blame


def record(rank, phase='step', step=5, **more):
  return Record(rank, 'host', 100 + rank, phase=phase, step=step, **more)


@pytest.mark.parametrize(
  ('records', 'silent', 'guilty'),
  [
    ([record(0), record(1, 'data', 4), record(2)], {}, [1]),
    ([record(0), record(1, 'data'), record(2)], {}, [1]),
    ([record(0), record(1, 'data', 4), record(2)], {2: 9.0}, [2]),
    ([record(0, 'save'), record(1, 'step', 7), record(2, 'step', 7)], {}, [0]),
    ([record(0, 'save', waits=True), record(1, 'save'), record(2, 'save', waits=True)], {}, [1]),
    ([record(0, 'save'), record(1, 'save')], {}, [0, 1]),
    ([record(0), record(1, step=3, left=True), record(2, 'log')], {}, [2]),
  ],
  ids=str,
)
def test_blame_is_with_who_is_waited_for(records, silent, guilty):
  assert blame({r.rank: r for r in records}, silent) == guilty


class Store:
  """The coordinator's store as jaxlib shows it."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite
    self.values[key] = value

  def key_value_try_get(self, key):
    if key not in self.values:
      raise RuntimeError(f'NOT_FOUND: {key}')
    return self.values[key]

  def key_value_dir_get(self, prefix):
    return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]


class Ended(BaseException):
  pass


@pytest.fixture
def team(monkeypatch):
  """Three processes, their clock; `tick` is a second in which each of `alive` is heard."""
  clock = [1000.0]
  monkeypatch.setattr(peers_module.time, 'monotonic', lambda: clock[0])
  monkeypatch.setattr(peers_module.time, 'sleep', lambda seconds: None)
  store = Store()

  def end(code):
    raise Ended(code)

  members = [Peers(store, rank, 3, ('127.0.0.1', 1), end=end) for rank in range(3)]

  def tick(alive=(0, 1, 2), seconds=1.0):
    """rank -> the code that it ended with."""
    clock[0] += seconds
    codes = {}
    for rank in alive:
      try:
        members[rank]._tick()
      except Ended as ended:
        codes[rank] = ended.args[0]
    return codes

  return members, tick


def test_silence_alone_ends_nothing_but_is_known(team):
  members, tick = team
  assert tick() == {}
  for _ in range(30):
    assert tick(alive=(0, 1)) == {}
  assert members[1]._verdict['silent'] == [str(members[2].record)]


def test_a_broken_connection_gets_the_name_of_the_silent(team, capfd):
  members, tick = team
  tick()
  members[1].record.broken = 'ValueError: Gloo all-reduce failed'
  ended = {}
  for _ in range(6):
    ended |= tick(alive=(1, 0, 1))
  assert ended == {0: exits.LOST, 1: exits.LOST}
  told = capfd.readouterr().err
  assert f'{members[2].record}: gone' in told
  assert str(members[2].record) not in told.replace(f'{members[2].record}: gone', '')


def test_a_stuck_process_is_named_when_all_have_told(team, capfd):
  members, tick = team
  dumped = []
  for rank, member in enumerate(members):
    member.before_end = lambda rank=rank: dumped.append(rank)
    member.record.step = 5
  members[2].look = lambda r: vars(r).update(phase='data', step=5, seconds=61.0, stuck=True)
  members[1].look = lambda r: vars(r).update(phase='step', step=6, seconds=61.0)
  ended = {}
  for count in range(8):
    ended |= tick(alive=[rank for rank in (1, 2, 0) if rank not in ended])
    if count + 1 < SILENT_SECONDS:
      assert not ended
  assert ended == dict.fromkeys(range(3), exits.LOST)
  assert f"{members[2].record} is stuck in phase 'data', step 5, for 61 s" in capfd.readouterr().err
  assert sorted(dumped) == [0, 1, 2]


def test_a_first_process_that_stands_still_is_named_by_who_waits(team, capfd):
  members, tick = team
  tick()
  members[1].look = lambda r: vars(r).update(stuck=True, seconds=61.0)
  ended = {}
  for _ in range(6):
    ended |= tick(alive=(1,))
  assert ended == {1: exits.LOST}
  assert f'{members[0].record} no longer answers' in capfd.readouterr().err


@pytest.mark.parametrize(('failed', 'others'), [(2, (0, 1)), (0, (1, 2))])
def test_the_others_end_with_who_fails(team, capfd, failed, others):
  members, tick = team
  tick()
  with pytest.raises(Ended) as ended:
    members[failed].fail(UserError('no such folder'))
  assert ended.value.args == (exits.MISTAKE,)
  assert tick(alive=(failed,)) == {}  # Its thread goes on until the process ends.
  assert tick(alive=others) == dict.fromkeys(others, exits.LOST)
  assert f'{members[failed].record} ended: UserError: no such folder' in capfd.readouterr().err


def test_who_has_left_in_good_order_is_not_missed(team):
  members, tick = team
  tick()
  members[2].record.left = True
  members[2]._write()
  for _ in range(6):
    assert tick(alive=(0, 1)) == {}
  assert members[1]._verdict['silent'] == []


def test_an_abort_of_jaxlib_gets_a_name(team, monkeypatch, capfd):
  members, tick = team
  tick()
  monkeypatch.setattr(peers_module, '_answers', lambda address: True)
  members[1].aborting()  # Nothing is known: the stacks, then jaxlib goes on.
  assert 'most recent call first' in capfd.readouterr().err
  for _ in range(5):
    tick(alive=(0, 1))
  with pytest.raises(Ended):
    members[1].aborting()
  assert f'{members[2].record}: gone' in capfd.readouterr().err
  monkeypatch.setattr(peers_module, '_answers', lambda address: False)
  with pytest.raises(Ended):
    members[1].aborting()
  assert f'{members[0].record}: gone' in capfd.readouterr().err


def test_last_acts_come_before_the_end(team):
  members, _ = team
  done = []
  members[0].at_end += [lambda: 1 / 0, lambda: done.append('lease')]
  with pytest.raises(Ended):
    members[0].quit(3)
  assert done == ['lease']


def test_a_record_is_json(team):
  members, tick = team
  tick()
  assert json.loads(members[0]._client.values['llamax/peer/1'])['rank'] == 1
