"""The folder of a dataset is filled in one move by one process at a time."""

import os
import threading

import pytest

from llamax.data.place import existing, locked, publish


def test_free_places(tmp_path):
  (tmp_path / 'empty').mkdir()
  for name in ('none', 'empty'):
    assert existing(str(tmp_path / name), False, {}) is None


def test_publish_replaces_what_was_there(tmp_path):
  for name in ('whole', 'out'):
    (tmp_path / name).mkdir()
    (tmp_path / name / name).write_text('')
  publish(str(tmp_path / 'whole'), str(tmp_path / 'out'))
  assert os.listdir(tmp_path) == ['out'] and os.listdir(tmp_path / 'out') == ['whole']


def test_failed_publish_keeps_what_was_there(tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'old').write_text('')
  with pytest.raises(FileNotFoundError):
    publish(str(tmp_path / 'none'), str(tmp_path / 'out'))
  assert os.listdir(tmp_path) == ['out'] and os.listdir(tmp_path / 'out') == ['old']


def test_second_waits_until_the_first_is_done(tmp_path):
  order, lines = [], []

  def second():
    with locked(str(tmp_path / 'p'), lines.append) as partial:
      order.append('second')
      assert os.path.exists(os.path.join(partial, 'lock'))

  with locked(str(tmp_path / 'p'), lines.append) as partial:
    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.3)
    order.append('first')
    assert lines == [f'waiting: another process works in {partial}']
    # The folder goes away with the lock in it, as when the first one publishes.
    os.remove(os.path.join(partial, 'lock'))
    os.rmdir(partial)
  thread.join(10)
  assert order == ['first', 'second']
