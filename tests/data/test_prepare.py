"""The whole of `llamax prepare`: what it makes, refuses, leaves behind."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data import prepare as module
from llamax.data.format import files_of
from llamax.data.prepare import Settings, prepare
from llamax.data.source import DocumentSource
from llamax.data.tokenizer import open_tokenizer
from tests.data.tokenizers import made


def quiet(line):
  pass


@pytest.fixture
def settings(story_folder, model_file, tmp_path):
  def make(**changes):
    values = {'out': str(tmp_path / 'out'), 'inputs': (story_folder,), 'tokenizer': model_file, 'workers': 1}
    return Settings(**(values | changes))

  return make


def content(folder):
  """File name -> bytes, without the times in prepare.json."""
  found = {}
  for name in os.listdir(folder):
    with open(os.path.join(folder, name), 'rb') as f:
      found[name] = f.read()
  manifest = json.loads(found['prepare.json'])
  manifest.pop('seconds')
  return found | {'prepare.json': manifest}


def test_counts_add_up(settings, stories, tmp_path):
  folder = tmp_path / 'mixed'
  folder.mkdir()
  (folder / 'stories.jsonl').write_text('\n'.join(json.dumps({'text': s}) for s in stories))
  (folder / 'again.txt').write_text(stories[0])
  (folder / 'latin.txt').write_bytes(b'caf\xe9')
  (folder / 'empty.txt').write_bytes(b'')
  report = prepare(settings(inputs=(str(folder),)), say=quiet)
  m = report.manifest
  assert m['dropped'] == {'exact duplicate': 1, 'not UTF-8': 1, 'empty': 1}
  assert sum(s['documents'] for s in m['splits'].values()) == 40
  assert sum(s['bytes'] for s in m['splits'].values()) == sum(len(s.encode()) for s in stories)
  assert m['splits']['validation']['documents'] >= 1
  # again.txt is walked first, so the JSON line is the duplicate.
  assert {name: t['documents'] for name, t in m['types'].items()} == {'.jsonl': 39, '.txt': 1}
  for split, facts in m['splits'].items():
    source = DocumentSource(report.folder, split)
    assert facts['tokens'] == source.lengths.sum() and facts['documents'] == len(source)
    assert facts['unknown'] == 0
  text = str(report)
  assert '1 exact duplicate' in text and 'is ready' in text


def test_trains_a_tokenizer_on_train_documents_alone(settings, monkeypatch, stories):
  seen = []
  train = module.train_tokenizer
  monkeypatch.setattr(module, 'train_tokenizer', lambda texts, size: seen.extend(texts) or train(texts, size))
  report = prepare(settings(tokenizer=None, vocab_size=390, validation_fraction=0.3), say=quiet)
  assert report.manifest['vocab_size'] == 390
  tok, source = open_tokenizer(f'{report.folder}/tokenizer.model'), DocumentSource(report.folder, 'train')
  assert sorted(seen) == sorted(tok.decode(source.read(i, 0, int(n))) for i, n in enumerate(source.lengths))
  assert len(seen) < 40


def test_sample_is_bounded(settings, stories, monkeypatch):
  monkeypatch.setattr(module, '_SAMPLE_BYTES', 9000)
  seen = []
  train = module.train_tokenizer
  monkeypatch.setattr(module, 'train_tokenizer', lambda texts, size: seen.extend(texts) or train(texts, size))
  prepare(settings(tokenizer=None, vocab_size=384), say=quiet)
  sizes = [len(text.encode()) for text in seen]
  longest = max(len(text.encode()) for text in stories)
  assert 9000 <= sum(sizes) < 9000 + longest and set(seen) <= set(stories)


def test_result_does_not_depend_on_workers(settings, tmp_path, monkeypatch):
  monkeypatch.setattr(module, '_BYTES_PER_TOKENISER', 1)
  monkeypatch.setattr(module, '_BYTES_PER_SCANNER', 1)
  one = prepare(settings(shards=4), say=quiet)
  two = prepare(settings(shards=4, workers=2, out=str(tmp_path / 'two')), say=quiet)
  assert content(one.folder) == content(two.folder)


def test_shards_change_the_files_but_not_the_documents(settings, tmp_path):
  few, many = (
    prepare(settings(shards=n, out=str(tmp_path / str(n)), validation_fraction=0.2), say=quiet) for n in (2, 9)
  )
  assert few.manifest['fingerprint'] == many.manifest['fingerprint']
  assert [len(r.manifest['splits']['train']['files']) for r in (few, many)] == [2, 9]
  # A split of few documents is not scattered over as many files.
  assert 1 <= len(many.manifest['splits']['validation']['files']) <= 3
  for split in ('train', 'validation'):
    a, b = (DocumentSource(r.folder, split) for r in (few, many))
    np.testing.assert_array_equal(a.lengths, b.lengths)
    for i, n in enumerate(a.lengths):
      np.testing.assert_array_equal(a.read(i, 0, int(n)), b.read(i, 0, int(n)))


def test_digests_are_those_of_the_files(settings):
  import hashlib

  report = prepare(settings(shards=3), say=quiet)
  for file in files_of(report.manifest):
    with open(os.path.join(report.folder, file['name']), 'rb') as f:
      data = f.read()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (file['size'], file['sha256'])


def test_second_run_is_complete_at_once(settings, monkeypatch):
  first = prepare(settings(), say=quiet)
  monkeypatch.setattr(module, 'make_tasks', None)  # would be called to do anything
  again = prepare(settings(workers=2), say=quiet)
  assert again.complete_before and again.manifest == first.manifest
  assert 'nothing to do' in str(again)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'validation_fraction': 0.5}, 'validation_fraction=0.02 there, 0.5 now'),
    ({'tokenizer': None, 'vocab_size': 400}, 'vocab_size=None there, 400 now'),
    ({'max_documents': 5}, 'max_documents=None there, 5 now'),
  ],
)
def test_other_settings_are_refused_then_overwritten(settings, change, message):
  first = prepare(settings(), say=quiet)
  before = content(first.folder)
  with pytest.raises(UserError, match=message):
    prepare(settings(**change), say=quiet)
  assert content(first.folder) == before
  second = prepare(settings(**change, overwrite=True), say=quiet)
  assert not second.complete_before and content(second.folder) != before
  assert os.listdir(os.path.dirname(second.folder)) == ['out']


def test_changed_input_is_refused(settings, story_folder, tmp_path):
  folder = shutil.copytree(story_folder, tmp_path / 'in')
  prepare(settings(inputs=(str(folder),)), say=quiet)
  (folder / 'new.txt').write_text('a new one')
  with pytest.raises(UserError, match='the input files are others or have changed'):
    prepare(settings(inputs=(str(folder),)), say=quiet)


def test_damaged_dataset_is_refused_then_overwritten(settings):
  report = prepare(settings(), say=quiet)
  os.remove(os.path.join(report.folder, 'lengths-train.npy'))
  with pytest.raises(UserError, match=r'lengths-train\.npy is missing'):
    prepare(settings(), say=quiet)
  prepare(settings(overwrite=True), say=quiet)
  assert len(DocumentSource(report.folder, 'train'))


def test_folder_of_something_else_is_never_touched(settings, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'thesis.txt').write_text('years of work')
  with pytest.raises(UserError, match='is no prepared dataset; nothing there is touched'):
    prepare(settings(overwrite=True), say=quiet)
  assert os.listdir(tmp_path) == ['out'] and os.listdir(tmp_path / 'out') == ['thesis.txt']


def test_home_folder_is_understood(settings, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  prepare(settings(out='~/out'), say=quiet)
  assert os.path.exists(tmp_path / 'out' / 'prepare.json')


def test_empty_folder_is_filled(settings, tmp_path):
  (tmp_path / 'out').mkdir()
  assert not prepare(settings(), say=quiet).complete_before


class Killed(BaseException):
  """As abrupt as a kill: nothing in the program catches it."""


@pytest.mark.parametrize('stage', ['scan', 'write_part', 'assemble', 'publish'])
def test_killed_run_goes_on(settings, tmp_path, monkeypatch, stage):
  reference = content(prepare(settings(shards=4, out=str(tmp_path / 'reference')), say=quiet).folder)
  real, calls = getattr(module, stage), []

  def killed_in_the_third(*args):
    calls.append(args[0])
    if len(calls) == 3 or stage in ('assemble', 'publish'):
      raise Killed
    return real(*args)

  monkeypatch.setattr(module, stage, killed_in_the_third)
  with pytest.raises(Killed):
    prepare(settings(shards=4), say=quiet)
  assert not os.path.exists(tmp_path / 'out')
  monkeypatch.setattr(module, stage, real)
  partial = next(p for p in tmp_path.iterdir() if p.name.startswith('out.partial-'))
  done = {p.name: p.stat().st_mtime_ns for p in partial.iterdir() if p.suffix in ('.json', '.npz')}
  assert done
  kept = []
  publish = module.publish
  monkeypatch.setattr(
    module,
    'publish',
    lambda *args: (
      kept.extend(n for n, t in done.items() if (partial / n).stat().st_mtime_ns == t) or publish(*args)
    ),
  )
  lines = []
  report = prepare(settings(shards=4), say=lines.append)
  assert content(report.folder) == reference
  assert sorted(kept) == sorted(done)  # nothing finished was done again
  assert sorted(os.listdir(tmp_path)) == ['out', 'reference']
  if stage == 'write_part':
    assert 'going on: 2 of 4 tasks were finished by an earlier run' in lines


def test_input_that_changes_under_way_is_noticed(settings, story_folder, tmp_path, monkeypatch):
  folder = shutil.copytree(story_folder, tmp_path / 'in')
  real = module.make_plan

  def plan_then_change(*args):
    (folder / '01.txt').write_text('something else')
    return real(*args)

  monkeypatch.setattr(module, 'make_plan', plan_then_change)
  with pytest.raises(UserError, match=r'01\.txt changed while it was being prepared'):
    prepare(settings(inputs=(str(folder),)), say=quiet)
  assert os.listdir(tmp_path) == ['in']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'inputs': ('/nonexistent',)}, "'/nonexistent' does not exist"),
    ({'inputs': ()}, 'no input'),
    ({'validation_fraction': 1.0}, 'validation_fraction=1.0'),
    ({'workers': 0}, 'workers=0'),
    ({'tokenizer': __file__}, 'is not a SentencePiece model'),
    ({'tokenizer': None, 'vocab_size': 100_000}, 'more than this corpus can fill'),
  ],
)
def test_mistakes_leave_nothing_behind(settings, tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    prepare(settings(**change), say=quiet)
  assert os.listdir(tmp_path) == []


def test_empty_corpus(settings, tmp_path):
  (tmp_path / 'in').mkdir()
  for content_ in (None, b'\0\1'):
    if content_:
      (tmp_path / 'in' / 'x.bin').write_bytes(content_)
    with pytest.raises(UserError, match='no document found: ' + ('1 binary' if content_ else 'no file at all')):
      prepare(settings(inputs=(str(tmp_path / 'in'),)), say=quiet)
  assert os.listdir(tmp_path) == ['in']


def test_unwritable_out(settings, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write'):
    prepare(settings(out=str(tmp_path / 'file' / 'out')), say=quiet)


def test_one_document_says_that_there_is_no_validation(settings, tmp_path):
  (tmp_path / 'one.txt').write_text('just one')
  report = prepare(settings(inputs=(str(tmp_path / 'one.txt'),)), say=quiet)
  assert list(report.manifest['splits']) == ['train']
  assert 'no validation split: there is one document' in str(report)


def test_max_documents(settings, monkeypatch):
  scanned = []
  real = module.scan
  monkeypatch.setattr(module, 'scan', lambda index, *args: scanned.append(index) or real(index, *args))
  report = prepare(settings(max_documents=7, shards=10), say=quiet)
  assert len(scanned) < 5  # no more is read than that takes
  assert sum(s['documents'] for s in report.manifest['splits'].values()) == 7


def test_two_at_once_make_one(settings):
  lines, complete = [], []

  def run():
    complete.append(prepare(settings(), say=lines.append).complete_before)

  threads = [threading.Thread(target=run) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(complete) == [False, True]
  assert sum('tasks for' in line for line in lines) == 1


def test_any_kind_of_tokenizer_serves(settings, tmp_path, stories):
  folder = made.qwen_folder(tmp_path / 'qwen')
  tok = open_tokenizer(folder)
  report = prepare(settings(tokenizer=str(folder)), say=quiet)
  manifest = report.manifest
  assert manifest['tokenizer']['name'] == 'tokenizer.json' and manifest['vocab_size'] == tok.vocab_size
  assert [file['name'] for file in manifest['tokenizer_beside']] == ['tokenizer_config.json']
  assert manifest['tokenizer_fingerprint'] == tok.fingerprint
  assert open_tokenizer(report.folder).fingerprint == tok.fingerprint
  source = DocumentSource(report.folder, 'train')
  assert source.tokenizer_fingerprint == tok.fingerprint
  for i in range(3):
    tokens = source.read(i, 0, int(source.lengths[i]))
    assert tokens[0] == tok.bos_id and tokens[-1] == tok.eos_id and tok.decode(tokens) in stories
  assert prepare(settings(tokenizer=f'{folder}/tokenizer.json'), say=quiet).complete_before
  config = Path(report.folder, 'tokenizer_config.json')
  config.write_text(config.read_text().replace('<|im_end|>', '<|im_and|>'))
  with pytest.raises(UserError, match=r'tokenizer_config\.json has sha256'):
    DocumentSource(report.folder, 'train')


def test_folders_prepared_before_serve_as_they_are(settings):
  report = prepare(settings(), say=quiet)
  path = Path(report.folder, 'prepare.json')
  manifest = json.loads(path.read_text())
  fingerprint = manifest.pop('tokenizer_fingerprint')
  path.write_text(json.dumps(manifest))
  assert DocumentSource(report.folder, 'train').tokenizer_fingerprint == fingerprint
  assert fingerprint == manifest['tokenizer']['sha256'] == open_tokenizer(report.folder).fingerprint
