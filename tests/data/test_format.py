"""The files of a prepared folder: whole, the same every time, verified."""

import json

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data import format as format_


def test_record_is_read_by_tfds():
  tokens = np.array([1, 70_000, 5, 2], np.int32)
  read = format_.features().deserialize_example_np(format_.serialize(tokens, 2**40))
  assert read['tokens'].tolist() == [1, 70_000, 5, 2] and read['tokens'].dtype == np.int32
  assert read['num_bytes'] == 2**40


def test_record_is_always_the_same_bytes():
  # Names in order, whatever the hash seed of the process that writes them.
  expected = '0a250a120a096e756d5f627974657312051a030a01070a0f0a06746f6b656e7312051a030a0103'
  assert format_.serialize(np.array([3], np.int32), 7).hex() == expected


def test_file_is_whole_or_absent(tmp_path):
  path = tmp_path / 'x'

  def fail(f):
    f.write(b'half')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    format_.write_whole(str(path), fail)
  assert not path.exists()
  format_.write_whole(str(path), lambda f: f.write(b'all'))
  assert path.read_bytes() == b'all'


def test_manifest_records_every_file(prepared, tmp_path):
  manifest = format_.read_manifest(prepared)
  names = {file['name'] for file in format_.files_of(manifest)}
  assert {'tokenizer.model', 'lengths-train.npy', 'lengths-validation.npy'} < names
  assert sum('array_record' in name for name in names) == 4
  format_.check_files(prepared, manifest)
  with pytest.raises(UserError, match=r'tokenizer\.model is missing'):
    format_.check_files(str(tmp_path), manifest)


LIES = {
  'max_token_id': float('nan'),
  'vocab_size': '512',
  'record_pairs': 0,
  'fingerprint': None,
  'splits': [],
  'tokenizer': {},
  'splits.train.files': None,
  'splits.train.lengths': {'name': '../lengths-train.npy', 'size': 1, 'sha256': 64 * '0'},
  'splits.train.documents': 1.5,
  'splits.train.tokens': -1,
  'splits.train.bytes': True,
}


@pytest.mark.parametrize('key', LIES)
def test_a_manifest_that_cannot_be_is_refused(prepared, tmp_path, key):
  manifest = format_.read_manifest(prepared)
  *outer, last = key.split('.')
  section = manifest
  for name in outer:
    section = section[name]
  for broken in (section | {last: LIES[key]}, {k: v for k, v in section.items() if k != last}):
    section.clear()
    section.update(broken)
    (tmp_path / 'prepare.json').write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r'prepare\.json is damaged'):
      format_.read_manifest(str(tmp_path))
