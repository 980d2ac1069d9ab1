"""Files are there whole or not at all."""

import json
import os

import pytest

from llamax.core import storage


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
