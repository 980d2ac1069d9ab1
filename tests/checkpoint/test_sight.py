"""Another process's lease is seen on the same disk, late or not at all elsewhere."""

import dataclasses

import pytest

from llamax.checkpoint import holder, lease_folder
from llamax.checkpoint.lease import acquire
from llamax.checkpoint.sight import unseen

FAR = holder.Process('far', 'boot-of-far', 'pid:[1]', 77, 123)


class Time:
  """A clock that sleeping moves on; `when` -> what happens at that time."""

  def __init__(self, when=None):
    self.now, self.when = 100.0, when or {}

  def clock(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds
    for moment in [moment for moment in self.when if moment <= self.now - 100]:
      self.when.pop(moment)()

  def unseen(self, workdir, first, process=None):
    return unseen(workdir, first, process, self.clock, self.sleep)


@pytest.fixture
def first(tmp_path):
  """The lease of process 0."""
  with acquire(tmp_path / 'shared', 10, lambda text: None) as lease:
    yield lease.holder


def test_the_same_folder_is_seen_at_once(tmp_path, first):
  time = Time()
  assert time.unseen(tmp_path / 'shared', first) is None
  assert time.unseen(tmp_path / 'shared', first, FAR) is None
  assert time.now == 100


def test_another_folder_is_not_and_stays_as_it_is(tmp_path, first):
  time, other = Time(), tmp_path / 'other'
  why = time.unseen(other, first, FAR)
  assert f'there is no {other}/lease/1.json, also after 15 s' in why
  assert 114 < time.now < 117
  assert not other.exists()
  time = Time()
  assert time.unseen(other, first) and time.now < 102, 'one machine needs no patience'


def test_a_disk_may_be_late(tmp_path, first):
  late = Time({9: lambda: (tmp_path / 'late').symlink_to(tmp_path / 'shared')})
  assert late.unseen(tmp_path / 'late', first, FAR) is None
  assert 108 < late.now < 111


def test_the_lease_of_another_run_is_not_taken_for_it(tmp_path, first):
  with acquire(tmp_path / 'other', 10, lambda text: None) as other:
    assert other.token == first.token
    assert 'is of another run' in Time().unseen(tmp_path / 'other', first, FAR)


def test_what_cannot_be_read_is_named(tmp_path, first):
  (tmp_path / 'file').write_text('')
  assert 'Not a directory' in Time().unseen(tmp_path / 'file', first)
  (tmp_path / 'torn' / 'lease').mkdir(parents=True)
  lease_folder.path_of(tmp_path / 'torn' / 'lease', first.token).write_text('{')
  assert 'is unfinished' in Time().unseen(tmp_path / 'torn', first)


def test_a_renewal_meanwhile_changes_nothing(tmp_path, first):
  lease_folder.overwrite(tmp_path / 'shared' / 'lease', dataclasses.replace(first, renewals=7))
  assert Time().unseen(tmp_path / 'shared', first) is None
