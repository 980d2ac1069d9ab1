"""A prepared folder is verified when opened; its documents are read whole or in part."""

import os
import shutil

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data import format as format_
from llamax.data import shards
from llamax.data.pipeline import open_training
from llamax.data.prepare import Settings, prepare
from llamax.data.source import DocumentSource, find_tokenizer, open_source
from llamax.data.tokenizer import open_tokenizer
from llamax.data.vocabulary import train_tokenizer


def quiet(line):
  pass


@pytest.fixture(scope='module')
def chunked(story_folder, model_file, tmp_path_factory):
  """The stories in records of at most 7 pairs."""
  out = str(tmp_path_factory.mktemp('chunked') / 'stories')
  patch = pytest.MonkeyPatch()
  patch.setattr(shards, 'RECORD_PAIRS', 7)
  patch.setattr('llamax.data.assemble.RECORD_PAIRS', 7)
  prepare(Settings(out=out, inputs=(story_folder,), tokenizer=model_file, workers=1), say=quiet)
  patch.undo()
  return out


def test_documents_are_the_texts(prepared, stories):
  tok = open_tokenizer(f'{prepared}/tokenizer.model')
  found = []
  for split in ('train', 'validation'):
    source = DocumentSource(prepared, split)
    documents = [source.read(i, 0, int(n)) for i, n in enumerate(source.lengths)]
    assert all(d[0] == tok.bos_id and d[-1] == tok.eos_id and d.dtype == np.int32 for d in documents)
    texts = [tok.decode(d) for d in documents]
    assert sum(len(t.encode()) for t in texts) == source.num_bytes
    found += texts
  assert sorted(found) == sorted(stories)


def test_any_part_of_a_document_is_read(chunked, stories):
  tok = open_tokenizer(f'{chunked}/tokenizer.model')
  source = DocumentSource(chunked, 'train')
  document = int(np.argmax(source.lengths))
  length = int(source.lengths[document])
  whole = source.read(document, 0, length)
  assert tok.decode(whole) in stories and length > 40
  for start in range(30):
    for stop in range(start + 2, 40):
      np.testing.assert_array_equal(source.read(document, start, stop), whole[start:stop])


def test_documents_that_end_with_a_record_are_whole(chunked, stories):
  tok = open_tokenizer(f'{chunked}/tokenizer.model')
  source = DocumentSource(chunked, 'train')
  full = np.flatnonzero((source.lengths - 1) % 7 == 0)
  assert len(full)
  for i in full:
    tokens = source.read(int(i), 0, int(source.lengths[i]))
    assert tokens[-1] == tok.eos_id and tok.decode(tokens) in stories


def test_records_share_one_token_and_count_each_byte_once(chunked):
  import tensorflow_datasets as tfds

  tok = open_tokenizer(f'{chunked}/tokenizer.model')
  records = tfds.builder_from_directory(chunked).as_data_source(split='train')
  previous = None
  for record in records:
    tokens = record['tokens']
    assert 2 <= len(tokens) <= 8
    assert record['num_bytes'] == tok.byte_lengths[tokens[1:]].sum()
    assert tokens[0] == (tok.bos_id if previous in (None, tok.eos_id) else previous)
    previous = tokens[-1]


def test_ids_past_the_vocabulary_are_refused(prepared):
  source = DocumentSource(prepared, 'train')
  source.check_ids(source.max_token_id + 1)
  with pytest.raises(UserError, match=f'ids up to {source.max_token_id}.*model.vocab_size=100'):
    source.check_ids(100)


@pytest.fixture
def copy(prepared, tmp_path):
  return shutil.copytree(prepared, tmp_path / 'copy')


def test_missing_shard_is_named(copy):
  shard = copy / format_.shard_name('train', 1, 3)
  shard.unlink()
  with pytest.raises(UserError, match=f'{shard.name} is missing'):
    DocumentSource(str(copy), 'train')


def test_cut_shard_is_named(copy):
  shard = copy / format_.shard_name('train', 1, 3)
  os.truncate(shard, 1000)
  with pytest.raises(UserError, match=rf'{shard.name} has 1000 bytes'):
    DocumentSource(str(copy), 'train')


def test_other_tokenizer_of_the_same_size_is_refused(copy):
  path = copy / 'tokenizer.model'
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match='made by another tokenizer'):
    DocumentSource(str(copy), 'train')


@pytest.mark.parametrize(
  'wrong',
  [b'', b'junk', lambda n: n[1:], lambda n: n + 1, lambda n: n.astype(np.int32), lambda n: n * 0, lambda n: -n],
)
def test_lengths_that_are_not_those_are_refused_without_digests_too(copy, wrong):
  path = copy / 'lengths-train.npy'
  if callable(wrong):
    np.save(path, wrong(np.load(path)))
  else:
    path.write_bytes(wrong)
  manifest = format_.read_manifest(str(copy))
  manifest['splits']['train']['lengths']['size'] = path.stat().st_size
  format_.write_json(str(copy / 'prepare.json'), manifest)
  with pytest.raises(UserError, match=f'{path} (cannot be read|does not hold)'):
    DocumentSource(str(copy), 'train', digests=False)


def test_fingerprint_is_of_the_files_in_order(copy, prepared):
  fingerprint = DocumentSource(prepared, 'train').fingerprint
  assert DocumentSource(str(copy), 'train').fingerprint == fingerprint, 'the same data elsewhere'
  assert DocumentSource(prepared, 'validation').fingerprint != fingerprint
  manifest = format_.read_manifest(str(copy))
  files = manifest['splits']['train']['files']
  files[0], files[1] = files[1], files[0]
  format_.write_json(str(copy / 'prepare.json'), manifest)
  assert DocumentSource(str(copy), 'train').fingerprint != fingerprint


def test_id_above_the_recorded_one_is_damage(prepared):
  source = DocumentSource(prepared, 'train')
  source._records.max_token_id = 5
  with pytest.raises(
    UserError, match=r'record 0 of .*train.array_record-00000-of-00003 holds id \d+; want 0 to 5'
  ):
    source.read(0, 0, 4)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'holds no prepare.json'),
    ('{', 'cannot be read'),
    ('[]', 'has format None'),
    ('{"format": 0}', 'format 0'),
  ],
)
def test_what_is_no_prepared_folder(tmp_path, content, message):
  if content is not None:
    (tmp_path / 'prepare.json').write_text(content)
  with pytest.raises(UserError, match=message):
    DocumentSource(str(tmp_path), 'train')
  with pytest.raises(UserError, match='does not exist'):
    DocumentSource(str(tmp_path / 'none'), 'train')


def test_sources_share_one_tokenizer(prepared, story_folder, stories, tmp_path, data_config):
  other = tmp_path / 'other.model'
  other.write_bytes(train_tokenizer(stories, 390))
  out = str(tmp_path / 'other')
  prepare(Settings(out=out, inputs=(story_folder,), tokenizer=str(other), workers=1), say=quiet)
  with pytest.raises(UserError, match='all sources of a run share one'):
    open_training(data_config(sources=(prepared, out), weights=(1.0, 1.0)))
  with pytest.raises(UserError, match='all sources of a run share one'):
    open_training(data_config(tokenizer=str(other)))
  assert open_training(data_config(sources=(out,), tokenizer=str(other))).vocab_size == 390


def test_tfds_is_tokenised_once(prepared, stories, tmp_path, data_config, write_tfds, capsys):
  write_tfds(tmp_path / 'tfds', 'poems', {'train': stories[:30], 'test': stories[30:]}, feature='content')
  cfg = data_config(
    sources=(prepared, 'tfds:poems'),
    weights=(1.0, 1.0),
    text_feature='content',
    tfds_data_dir=str(tmp_path / 'tfds'),
    cache_dir=str(tmp_path / 'cache'),
  )
  tok = find_tokenizer(cfg)
  assert tok.path == f'{prepared}/tokenizer.model'
  test = open_source('tfds:poems', 'test', cfg, tok)
  assert sorted(tok.decode(test.read(i, 0, int(n))) for i, n in enumerate(test.lengths)) == sorted(stories[30:])
  assert 'is ready' in capsys.readouterr().out
  (folder,) = (tmp_path / 'cache').iterdir()
  before = os.stat(folder / 'prepare.json')
  train, validation = (open_source('tfds:poems', split, cfg, tok) for split in ('train', 'validation'))
  assert len(train) + len(validation) == 30 and len(validation) >= 1
  assert os.stat(folder / 'prepare.json') == before and capsys.readouterr().out == ''
  assert open_training(cfg).num_rows_per_epoch > 0
  damaged = next(folder.glob('*-test.array_record*'))
  data = bytearray(damaged.read_bytes())
  data[-1] ^= 1
  damaged.write_bytes(data)
  with pytest.raises(UserError, match=rf'{damaged} has sha256 (.|\n)* delete its folder'):
    open_source('tfds:poems', 'test', cfg, tok)


def test_tfds_needs_a_tokenizer(data_config):
  with pytest.raises(UserError, match=r'set data\.tokenizer to a tokenizer file'):
    open_training(data_config(sources=('tfds:poems',)))
