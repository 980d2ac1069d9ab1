"""A tokenizer is told by its content, not by its name."""

import json
import os
import shutil

import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from llamax.data.tokenizers import llama2c, opening, probe, spelled
from tests.data.tokenizers import made


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    ('llama', 'sentencepiece'),
    ('plain', 'sentencepiece'),
    ('ranks', 'ranks'),
    ('qwen', 'json'),
    ('llama3', 'json'),
  ],
)
def test_kinds(opened, kinds, tmp_path, name, kind):
  assert opened[name].kind == kind
  for file in kinds[name].iterdir():
    shutil.copy(file, tmp_path / file.name)
  main = next(path for path in opened[name].files)
  (tmp_path / main).rename(tmp_path / 'anything')
  assert probe.difference(open_tokenizer(tmp_path / 'anything'), opened[name]) is None


@pytest.fixture
def both(opened, tmp_path):
  """A folder with a model and the tokenizer.json made of it."""
  model = opened['llama']
  (tmp_path / 'tokenizer.model').write_bytes(model.model)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spelled.document_of(model)))
  (tmp_path / 'tokenizer_config.json').write_text(
    '{"bos_token": "<s>", "eos_token": "</s>", "auto_map": {"a": "b"}}'
  )
  (tmp_path / 'chat_template.jinja').write_text('{{ a }}')
  return tmp_path


def test_where_both_agree_all_travels(both, opened, tmp_path):
  tok = open_tokenizer(both)
  assert tok.kind == 'sentencepiece' and tok.fingerprint == opened['llama'].fingerprint
  assert list(tok.files) == [
    'tokenizer.model',
    'tokenizer.json',
    'tokenizer_config.json',
    'chat_template.jinja',
  ]
  for name in ('tokenizer.model', 'tokenizer.json', 'chat_template.jinja'):
    assert tok.files[name] == (both / name).read_bytes()
  assert 'auto_map' in tok.notes[0] and b'auto_map' not in tok.files['tokenizer_config.json']
  again = tmp_path / 'again'
  again.mkdir()
  tok.save(again)
  assert open_tokenizer(again).files == tok.files
  assert list(open_tokenizer(again / 'tokenizer.model').files) == ['tokenizer.model']


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('tokenizer_config.json', '{"eos_token": "<s>"}', 'another bos or eos'),
    ('tokenizer.model', made.llama_model(add_dummy_prefix=False), "' ': token "),
    ('tokenizer.model', made.llama_model(vocab_size=400), '400 ids, 420 ids'),
  ],
)
def test_where_both_differ_the_newer_counts(both, name, content, message):
  (both / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  tok = open_tokenizer(both)
  assert tok.kind == 'json' and 'tokenizer.model' not in tok.files
  assert message in tok.notes[-1] and tok.notes[-1].startswith('tokenizer.model: left out')


def test_large_files_are_not_read(tmp_path, monkeypatch, opened):
  monkeypatch.setattr(opening, '_MAX_BYTES', len(opened['llama'].model) - 1)
  opened['llama'].save(tmp_path)
  with pytest.raises(UserError, match=r'has [0-9,]+ bytes; want at most'):
    open_tokenizer(tmp_path)
  folder = made.qwen_folder(tmp_path / 'q')
  monkeypatch.setattr(opening, '_MAX_BYTES', 1 << 20)
  monkeypatch.setattr(opening, '_MAX_BESIDE', 10)
  with pytest.raises(UserError, match=r'tokenizer_config\.json.*want at most 10'):
    open_tokenizer(folder)


def test_names_that_no_file_can_have(tmp_path):
  for name in ('a\0b', 'x' * 300):
    with pytest.raises(UserError, match='cannot be read'):
      open_tokenizer(tmp_path / name)


def test_no_regular_file(tmp_path):
  for make in (lambda p: os.mkfifo(p), lambda p: os.symlink('/dev/zero', p)):
    make(tmp_path / 'tokenizer.json')
    with pytest.raises(UserError, match='is no regular file'):
      open_tokenizer(tmp_path)
    (tmp_path / 'tokenizer.json').unlink()


def test_links_are_followed(kinds, tmp_path, opened):
  os.symlink(
    kinds['llama'] / 'tokenizer.model', tmp_path / 'tokenizer.model'
  )  # as the cache of Hugging Face has them
  assert open_tokenizer(tmp_path).fingerprint == opened['llama'].fingerprint


def test_a_tokenizer_bin_among_others(opened, tmp_path):
  (tmp_path / 'tokenizer.bin').write_bytes(llama2c.write(spelled.pieces_of(opened['llama']).pieces, 0))
  assert probe.difference(open_tokenizer(tmp_path), opened['llama']) is None
