"""Every record is what the manifest, the lengths tell of it, or it is named."""

import os
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from llamax.core.errors import UserError
from llamax.core.exits import Stop
from llamax.data import records as records_
from llamax.data import retry
from llamax.data.format import read_manifest, serialize
from llamax.data.records import Records


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
  monkeypatch.setattr(retry, 'PAUSES', (1e-4,) * len(retry.PAUSES))


@pytest.fixture
def write(tmp_path):
  """[[bytes or token ids, ...] per shard], counts -> Records over them that allow ids up to 99."""

  def write(*shards, counts=None):
    files = []
    for i, shard in enumerate(shards):
      writer = ArrayRecordWriter(str(tmp_path / f'shard-{i}'), 'group_size:1')
      for record in shard:
        writer.write(record if isinstance(record, bytes) else serialize(np.array(record), 1))
      writer.close()
      files.append({'name': f'shard-{i}', 'records': counts[i] if counts else len(shard)})
    return Records(str(tmp_path), files, max_token_id=99)

  return write


def test_records_are_numbered_over_all_shards(write, tmp_path):
  found = write([[1, 2], [3, 4, 5]], [[6, 7]], [[8, 9], [0, 99]])
  assert len(found) == 5
  assert [found.read(i, n).tolist() for i, n in enumerate((2, 3, 2, 2, 2))] == [
    [1, 2],
    [3, 4, 5],
    [6, 7],
    [8, 9],
    [0, 99],
  ]
  assert found.read(0, 2).dtype == np.int32
  assert [found.place_of(i) for i in (1, 2, 4)] == [
    (f'{tmp_path}/shard-{i}', record) for i, record in ((0, 1), (1, 0), (2, 1))
  ]


@pytest.mark.parametrize('bad', [100, 101, 2**31 - 1, -1, -(2**31), 2**31, 2**32 + 5, -(2**63)])
@pytest.mark.parametrize('place', [0, 1, 2])
def test_ids_that_may_not_be_are_refused(write, bad, place):
  ids = [7, 7, 7]
  ids[place] = bad
  found = write([[1, 2, 3]], [[1, 2, 3], ids])
  assert found.read(1, 3).tolist() == [1, 2, 3]
  with pytest.raises(UserError, match=rf'record 1 of \S+shard-1 holds id {bad}; want 0 to 99'):
    found.read(2, 3)


@pytest.mark.parametrize('tokens', [[], [1], [1, 2, 3]])
def test_another_length_is_refused(write, tokens):
  with pytest.raises(UserError, match=rf'record 0 of \S+shard-0 holds {len(tokens)} tokens, .* tell of 2'):
    write([tokens]).read(0, 2)


def test_a_shard_of_other_count_is_refused(write):
  """Counts that are wrong by shard but right in sum would give other records."""
  found = write([[1, 2]] * 3, [[3, 4]] * 2, counts=[2, 3])
  for index in range(5):
    with pytest.raises(UserError, match=r'the file has [23] records, prepare.json records [23]|out of bound 2'):
      found.read(index, 2)


@pytest.mark.parametrize('junk', [b'\xff\xff\xff', b'not a message', b''], ids=repr)
def test_what_is_no_record_is_refused(write, junk):
  with pytest.raises(UserError, match=r'record 1 of \S+shard-0 (is damaged|holds 0 tokens)'):
    write([[1, 2], junk]).read(1, 2)


def test_damage_after_opening_names_the_record(prepared, tmp_path):
  """ArrayRecord's own check; a cut file gives it empty records without a word."""
  folder = shutil.copytree(prepared, tmp_path / 'copy')
  manifest = read_manifest(str(folder))
  found = Records(str(folder), manifest['splits']['train']['files'], manifest['max_token_id'])
  lengths = {i: len(found._tokens(*found._locate(i))) for i in range(len(found))}
  path = folder / manifest['splits']['train']['files'][0]['name']
  data = path.read_bytes()
  flipped = bytearray(data)
  flipped[200] ^= 4  # The first record is there.
  path.write_bytes(flipped)
  with pytest.raises(UserError, match=rf'record 0 of {path} is damaged \(Corrupted Riegeli'):
    found.read(0, lengths[0])
  path.write_bytes(data)
  assert len(found.read(0, lengths[0])) == lengths[0]
  last = manifest['splits']['train']['files'][0]['records'] - 1
  os.truncate(path, 300)
  with pytest.raises(UserError, match=rf'record {last} of {path}'):
    found.read(last, lengths[last])


def test_a_reader_that_failed_is_replaced(write, monkeypatch):
  found = write([[1, 2], [3, 4]])
  found.read(0, 2)
  opened = []
  inner = records_.open_reader
  monkeypatch.setattr(records_, 'open_reader', lambda path: opened.append(path) or inner(path))

  class Broken:
    def read(self, indices):
      raise RuntimeError('pread() failed: Input/output error; reading x')

  found._readers[0] = Broken()
  assert found.read(1, 2).tolist() == [3, 4] and len(opened) == 1


def test_storage_that_is_gone_ends_the_run_naming_the_record(write, tmp_path):
  found = write([[1, 2], [3, 4]])
  (tmp_path / 'shard-0').unlink()
  with pytest.raises(Stop, match=r'record 1 of \S+shard-0 cannot be read \(open\(\) failed: No such file'):
    found.read(1, 2)
