"""A file that is not the recorded one is named before use; what was verified is not read again."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data import format as format_
from llamax.data import verify as verify_
from llamax.data.pipeline import open_training
from llamax.data.source import DocumentSource


@pytest.fixture
def copy(prepared, tmp_path):
  return shutil.copytree(prepared, tmp_path / 'copy')


@pytest.fixture
def settled(monkeypatch):
  """Files count as old enough to be remembered."""
  monkeypatch.setattr(verify_, '_SETTLED_SECONDS', -3600)


@pytest.fixture
def digests(monkeypatch):
  """Names of the files whose content was read."""
  names = []
  inner = verify_.digest
  monkeypatch.setattr(verify_, 'digest', lambda path: names.append(os.path.basename(path)) or inner(path))
  return names


def shard(folder, index=1, split='train'):
  return folder / format_.shard_name(split, index, 3 if split == 'train' else 1)


def flip(path, position=None):
  data = bytearray(path.read_bytes())
  data[random.randrange(len(data)) if position is None else position] ^= 1
  path.write_bytes(data)


def swap(a, b):
  one, other = a.read_bytes(), b.read_bytes()
  a.write_bytes(other)
  b.write_bytes(one)


def refill(path):
  """Another valid shard of as many records, as many bytes: the tokens are shuffled within each record."""
  from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  reader, size = ArrayRecordReader(str(path)), path.stat().st_size
  records = [tf_example_pb2.Example.FromString(data) for data in reader.read_all()]
  reader.close()
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    tokens = np.array(record.features.feature['tokens'].int64_list.value)
    num_bytes = record.features.feature['num_bytes'].int64_list.value[0]
    writer.write(format_.serialize(np.random.default_rng(0).permutation(tokens), num_bytes))
  writer.close()
  assert path.stat().st_size == size


# What is done to a folder, the file that is then named, what is said of it.
DAMAGE = {
  'flip': (lambda f: flip(shard(f)), shard, 'has sha256 .* records'),
  'flip in data': (lambda f: flip(shard(f), 70000), shard, 'has sha256'),
  'other valid': (lambda f: refill(shard(f)), shard, 'has sha256'),
  'swapped': (lambda f: swap(shard(f, 1), shard(f, 2)), shard, r'.*this is the content of \S+00002-of'),
  'doubled': (lambda f: shutil.copy(shard(f, 0), shard(f)), shard, r'.*this is the content of \S+00000-of'),
  'cut': (lambda f: os.truncate(shard(f), 65536), shard, 'has 65536 bytes, prepare.json records'),
  'appended': (lambda f: os.truncate(shard(f), 131076), shard, 'has 131076 bytes, prepare.json records'),
  'emptied': (lambda f: shard(f).write_bytes(b''), shard, 'has 0 bytes'),
  'missing': (lambda f: shard(f).unlink(), shard, 'is missing'),
  'renamed': (lambda f: shard(f).rename(f / 'other'), shard, 'is missing'),
  'lengths': (lambda f: flip(f / 'lengths-train.npy', -1), lambda f: f / 'lengths-train.npy', 'has sha256'),
  'tokenizer': (lambda f: flip(f / 'tokenizer.model', -1), lambda f: f / 'tokenizer.model', 'has sha256'),
}


@pytest.mark.parametrize(('break_', 'names', 'says'), DAMAGE.values(), ids=DAMAGE)
def test_what_is_wrong_with_a_file_is_named(copy, data_config, break_, names, says):
  open_training(data_config(sources=(str(copy),)))
  break_(copy)
  with pytest.raises(UserError, match=rf'{names(copy)} {says}'):
    open_training(data_config(sources=(str(copy),)))


def test_without_digests_sizes_are_compared(copy, data_config):
  swap(shard(copy, 1), shard(copy, 2))
  open_training(data_config(sources=(str(copy),), verify_digests=False))
  os.truncate(shard(copy), 1000)
  with pytest.raises(UserError, match='has 1000 bytes'):
    open_training(data_config(sources=(str(copy),), verify_digests=False))


def test_many_damaged_files_are_counted(copy):
  files = [{'name': f'{i}', 'size': 1, 'sha256': 64 * '0'} for i in range(7)]
  for file in files:
    (copy / file['name']).write_bytes(b'x')
  with pytest.raises(UserError) as caught:
    verify_.verify(str(copy), files, files)
  assert str(caught.value).count('has sha256') == 5 and '... and 2 more' in str(caught.value)


def test_what_was_verified_is_not_read_again(copy, settled, digests):
  DocumentSource(str(copy), 'train')
  assert sorted(digests) == ['lengths-train.npy', *(shard(copy, i).name for i in range(3))]
  digests.clear()
  DocumentSource(str(copy), 'train')
  assert digests == []
  DocumentSource(str(copy), 'validation')
  assert len(digests) == 2
  digests.clear()
  os.utime(shard(copy))
  DocumentSource(str(copy), 'train')
  assert digests == [shard(copy).name]


def test_a_change_that_keeps_size_and_date_is_seen(copy, settled):
  DocumentSource(str(copy), 'train')
  before = shard(copy).stat()
  flip(shard(copy))
  os.utime(shard(copy), ns=(before.st_atime_ns, before.st_mtime_ns))
  with pytest.raises(UserError, match='has sha256'):
    DocumentSource(str(copy), 'train')
  with pytest.raises(UserError, match='has sha256'):  # What failed is not taken for verified.
    DocumentSource(str(copy), 'train')


def test_another_manifest_over_unchanged_files_is_seen(copy, settled):
  DocumentSource(str(copy), 'train')
  manifest = format_.read_manifest(str(copy))
  manifest['splits']['train']['files'][0]['sha256'] = 64 * 'f'
  format_.write_json(str(copy / 'prepare.json'), manifest)
  with pytest.raises(UserError, match='records ffff'):
    DocumentSource(str(copy), 'train')


def test_files_written_just_now_are_read_again(copy, digests):
  for _ in range(2):
    DocumentSource(str(copy), 'train')
  assert len(digests) == 8


@pytest.mark.parametrize('content', ['', '[]', '{"x": 3}', '\x00'])
def test_a_broken_memory_costs_reading_only(copy, settled, digests, content):
  DocumentSource(str(copy), 'train')
  digests.clear()
  memory = verify_._memory_of(str(copy))
  memory.write_text(content)
  DocumentSource(str(copy), 'train')
  assert len(digests) == 4
  digests.clear()
  DocumentSource(str(copy), 'train')
  assert digests == []


def test_a_memory_that_cannot_be_written_costs_reading_only(copy, settled, digests, monkeypatch):
  monkeypatch.setenv(verify_.CACHE, '/proc/nowhere')
  for _ in range(2):
    DocumentSource(str(copy), 'train')
  assert len(digests) == 8


def test_nothing_is_written_beside_the_data(copy, settled):
  before = sorted(Path(copy).iterdir())
  DocumentSource(str(copy), 'train')
  assert sorted(Path(copy).iterdir()) == before


def test_processes_share_the_shards(copy, digests):
  seen = []
  for index in range(2):
    digests.clear()
    DocumentSource(str(copy), 'train', share=(index, 2))
    assert 'lengths-train.npy' in digests
    seen += [name for name in digests if 'array_record' in name]
  assert sorted(seen) == [shard(copy, i).name for i in range(3)]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(copy, settled, monkeypatch):
  inner = verify_.digest

  def slow(path):
    found = inner(path)
    os.utime(path, ns=(1, 1))
    return found

  monkeypatch.setattr(verify_, 'digest', slow)
  DocumentSource(str(copy), 'train')
  assert not verify_._remembered(verify_._memory_of(str(copy)))
