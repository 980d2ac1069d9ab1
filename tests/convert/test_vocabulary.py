"""A tokenizer goes from every kind to every kind that can hold it, and gives the same ids there."""

# ruff: noqa: F811
import json
import logging
import warnings

import pytest

from llamax.convert.vocabulary import as_files, probe
from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer, tokenizer_of_gguf
from llamax.data.tokenizers import ranks
from llamax.data.tokenizers.probe import TEXTS
from tests.data.tokenizers import made
from tests.data.tokenizers.conftest import kinds, opened  # noqa: F401

EMPTY = 5  # embeddings beyond the tokenizer's ids
CANNOT = {
  ('qwen', 'meta'): 'cuts text as qwen2 does',
  ('qwen', 'llama2c'): 'is a byte-level BPE',
  ('llama3', 'llama2c'): 'is a byte-level BPE',
  ('ranks', 'llama2c'): 'is a byte-level BPE',
}
# llama2.c puts a space before every text, whatever the model was trained with.
DIFFER = {('plain', 'llama2c')}


def written(files, folder):
  folder.mkdir()
  for name, content in files.items():
    (folder / name).write_bytes(content)
  return folder


@pytest.fixture
def carry(tmp_path):
  """(tokenizer, kind) -> the one that a folder or file of this kind holds."""

  def go(tokenizer, kind):
    files = as_files(tokenizer, kind, None if kind == 'llamax' else tokenizer.vocab_size + EMPTY)
    if kind == 'gguf':
      return tokenizer_of_gguf(files, 'x.gguf')
    return open_tokenizer(written(files, tmp_path / f'{len(list(tmp_path.iterdir()))}-{kind}'))

  return go


@pytest.mark.parametrize('kind', ['hf', 'meta', 'gguf', 'llama2c', 'llamax'])
@pytest.mark.parametrize('name', ['llama', 'plain', 'qwen', 'llama3', 'ranks'])
def test_there_and_back(opened, carry, name, kind):
  source = opened[name]
  if (name, kind) in CANNOT:
    with pytest.raises(UserError, match=CANNOT[name, kind]):
      as_files(source, kind)
    return
  there = carry(source, kind)
  if (name, kind) in DIFFER:
    assert isinstance(probe(source, there), UserError)
    return
  assert probe(source, there) is None
  back = carry(carry(there, 'llamax'), 'llamax' if kind == 'llamax' else 'hf')
  assert probe(source, back) is None
  for known in ('bos_id', 'eos_id', 'unk_id', 'adds_bos', 'adds_space', 'vocab_size'):
    assert getattr(source, known) == getattr(there, known) == getattr(back, known), known
  if kind in ('hf', 'llamax') and name != 'ranks':
    assert there.fingerprint == source.fingerprint


@pytest.mark.parametrize('name', ['llama', 'plain', 'qwen', 'llama3', 'ranks'])
def test_transformers_opens_it_without_a_word(opened, tmp_path, name, caplog):
  transformers = pytest.importorskip('transformers')
  source = opened[name]
  folder = written(as_files(source, 'hf'), tmp_path / 'hf')
  # The kind of a model decides over the class of a tokenizer; it stands in a config.json beside it.
  (folder / 'config.json').write_text(json.dumps({'model_type': 'qwen2' if name == 'qwen' else 'llama'}))
  caplog.set_level(logging.WARNING)
  logging.getLogger('transformers').propagate = True
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
  assert not caplog.records
  for text in [*TEXTS, made.text()]:
    # What looks special is special to transformers, text to us; nor has it a byte for its sign of the space.
    if '<' in text or ('▁' in text and name == 'plain'):
      continue
    ids = source.encode(text)
    assert theirs.encode(text, add_special_tokens=False) == ids, text
    assert theirs.encode(text) == source.encode(text, bos=source.adds_bos)
    assert theirs.decode(ids) == source.decode(ids)
  assert len(theirs) == source.vocab_size and theirs.eos_token_id == source.eos_id
  assert theirs.bos_token_id == (None if name == 'qwen' else source.bos_id)


def test_files_travel_as_they_are(kinds, opened):
  found = as_files(opened['qwen'], 'hf')
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    assert found[name] == (kinds['qwen'] / name).read_bytes()
  special = json.loads(found['special_tokens_map.json'])
  assert special == {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'}
  for kind in ('hf', 'meta', 'llamax'):
    assert as_files(opened['llama'], kind)['tokenizer.model'] == opened['llama'].model
  assert as_files(opened['ranks'], 'meta') == {
    'tokenizer.model': (kinds['ranks'] / 'tokenizer.model').read_bytes()
  }


def test_a_folder_with_both_travels_whole(opened, tmp_path):
  first = written(as_files(opened['llama'], 'hf'), tmp_path / 'a')
  (first / 'chat_template.jinja').write_text('{{ a }}')
  second = written(as_files(open_tokenizer(first), 'hf'), tmp_path / 'b')
  assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_ranks_of_llama_3_come_back(opened, kinds):
  content = as_files(opened['llama3'], 'meta')['tokenizer.model']
  assert content == (kinds['ranks'] / 'tokenizer.model').read_bytes() == made.llama3_ranks()
  assert probe(opened['llama3'], ranks.open_ranks('x', content)) is None


def test_another_kind_is_refused(opened):
  with pytest.raises(UserError, match=r"format of a tokenizer='hg' is not known. Did you mean 'hf'"):
    as_files(opened['llama'], 'hg')


def test_a_smaller_model_is_refused(opened):
  with pytest.raises(UserError, match=r'has 420 ids, the model 419'):
    as_files(opened['llama'], 'gguf', 419)


def test_other_places_of_special_ids_are_refused_for_llama2c(tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(made.llama_model(bos_id=2, eos_id=1))
  with pytest.raises(UserError, match=r'bos 2, eos 1; llama2\.c has 0, 1, 2'):
    as_files(open_tokenizer(tmp_path), 'llama2c')
