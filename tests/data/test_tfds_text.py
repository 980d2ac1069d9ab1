"""Existing TFDS datasets are read by name or folder; what cannot be read is refused by name."""

import pytest

from llamax.core.errors import UserError
from llamax.data.corpus import make_tasks, walk
from llamax.data.documents import read_documents
from llamax.data.tfds_text import open_builder, tfds_files, tfds_records


def test_splits_keep_their_names_and_train_comes_last(tmp_path, write_tfds):
  write_tfds(tmp_path, 'poems', {'train': ['a', 'b', 'c'], 'validation': ['d'], 'test': ['e', 'f']})
  files = tfds_files('tfds:poems', str(tmp_path))
  assert [(f.name, f.split, f.count) for f in files] == [
    ('tfds:poems/1.0.0:test', 'test', 2),
    ('tfds:poems/1.0.0:validation', 'validation', 1),
    ('tfds:poems/1.0.0:train', 'train', 3),
  ]
  tasks = make_tasks(walk(['tfds:poems'], 'out', str(tmp_path)).files, 2)
  texts = [t for task in tasks for u in task for t in read_documents(u, 'text', str(tmp_path))]
  assert texts == ['e', 'f', 'd', 'a', 'b', 'c']


def test_train_without_validation_is_cut_by_hash(tmp_path, write_tfds):
  folder = write_tfds(tmp_path, 'poems', {'train': ['a', 'b'], 'test': ['c']})
  files = tfds_files(f'tfds:{folder}', None)
  assert [f.split for f in files] == ['test', None]


def test_unknown_feature_names_the_known(tmp_path, write_tfds):
  write_tfds(tmp_path, 'poems', {'train': ['a']}, feature='content')
  (file,) = tfds_files('tfds:poems', str(tmp_path))
  with pytest.raises(UserError, match=r"no feature 'text'.*content"):
    tfds_records(file, str(tmp_path), 'text')
  assert tfds_records(file, str(tmp_path), 'content')[0]['content'] == b'a'


def test_unknown_dataset(tmp_path):
  with pytest.raises(UserError, match="'tfds:no_such_poems' is no TFDS dataset"):
    open_builder('tfds:no_such_poems', str(tmp_path))


def test_dataset_in_another_format_is_refused(tmp_path, write_tfds):
  folder = write_tfds(tmp_path, 'odes', {'train': ['a']})
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(UserError, match='stored as tfrecord'):
    open_builder(f'tfds:{folder}', None)
