"""Files are there whole or not at all."""

import errno
import json
import os

import pytest

from llamax.core import storage
from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
  path = tmp_path / 'x.json'
  storage.write_json(path, {'a': 1})

  def fail(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError):
    storage.write_json(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1} and [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_a_move_takes_everything(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'b' / 'x').mkdir(parents=True)
  (tmp_path / 'b' / 'x' / 'file').write_text('text')
  storage.sync_tree(tmp_path / 'b')
  storage.move(tmp_path / 'b' / 'x', tmp_path / 'a' / 'y')
  assert (tmp_path / 'a' / 'y' / 'file').read_text() == 'text' and not (tmp_path / 'b' / 'x').exists()
  storage.remove_tree(tmp_path / 'a')
  assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize(
  ('number', 'kind'),
  [(errno.EISDIR, UserError), (errno.EEXIST, UserError), (errno.EROFS, UserError), (errno.ENOSPC, Stop)],
)
def test_what_only_a_person_can_mend_is_no_trouble_of_the_disk(tmp_path, number, kind):
  with pytest.raises(kind, match='run/a cannot be written') as raised, storage.needed(tmp_path / 'run/a'):
    raise OSError(number, os.strerror(number), 'tmp', None, 'run/there')
  assert os.strerror(number) in str(raised.value) and 'run/there' in str(raised.value)
  assert kind is UserError or raised.value.code == STORAGE


def test_an_output_takes_the_place_of_no_link_pipe_or_folder(tmp_path):
  storage.write_output(tmp_path / 'new/real', b'first')
  link, pipe = tmp_path / 'link', tmp_path / 'pipe'
  link.symlink_to(tmp_path / 'new/real')
  storage.write_output(link, b'second')
  assert link.is_symlink() and (tmp_path / 'new/real').read_bytes() == b'second'
  os.mkfifo(pipe)
  with open(os.open(pipe, os.O_RDWR | os.O_NONBLOCK), 'rb') as reader:
    storage.write_output(pipe, b'third\n')
    assert pipe.is_fifo() and reader.readline() == b'third\n'
  with pytest.raises(UserError, match='is a folder'):
    storage.write_output(tmp_path / 'new', b'')
