"""The vocabulary of a GGUF file: what llama.cpp's own converters write, and the same ids back."""

import json

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer, tokenizer_of_gguf
from llamax.data.tokenizers import byte_level, probe
from llamax.data.tokenizers.gguf_values import to_values
from tests.data.tokenizers import made

KEY = 'tokenizer.ggml.'


@pytest.mark.parametrize('name', ['llama', 'plain', 'qwen', 'llama3', 'ranks'])
def test_ids_come_back(opened, name):
  tok = opened[name]
  values = to_values(tok, tok.vocab_size + 3)
  assert len(values[f'{KEY}tokens']) == len(values[f'{KEY}token_type']) == tok.vocab_size + 3
  assert (
    values[f'{KEY}tokens'][-1] == f'[PAD{tok.vocab_size + 2}]' and values[f'{KEY}token_type'][-3:] == [5] * 3
  )
  found = tokenizer_of_gguf(values)
  assert probe.difference(tok, found) is None
  for known in ('bos_id', 'eos_id', 'adds_bos', 'adds_space', 'vocab_size'):
    assert getattr(tok, known) == getattr(found, known), known
  assert to_values(found, tok.vocab_size + 3) == values


def test_values_are_plain(opened):
  for name in ('llama', 'qwen'):
    for key, value in to_values(opened[name], 500).items():
      kinds = {type(item) for item in value} if isinstance(value, list) else {type(value)}
      assert len(kinds) == 1 and kinds <= {str, int, float, bool}, key


@pytest.mark.parametrize('name', ['llama', 'plain'])
def test_pieces_are_those_of_llama_cpp(opened, kinds, name):
  gguf = pytest.importorskip('gguf')
  theirs = list(gguf.SentencePieceVocab(kinds[name]).all_tokens())
  values = to_values(opened[name], opened[name].vocab_size)
  # Of a user-defined piece llama.cpp wants the text itself: one with ▁ it never finds.
  ours = zip(values[f'{KEY}tokens'], values[f'{KEY}token_type'], strict=True)
  pieces = [text.replace(' ', '▁') if kind == 4 else text for text, kind in ours]
  assert any(' ' in text for text in values[f'{KEY}tokens']) == (name == 'plain')
  assert [text.encode() for text in pieces] == [text for text, _, _ in theirs]
  assert values[f'{KEY}scores'] == [score for _, score, _ in theirs]
  # To their Python, a user-defined piece (4) is like any other; their C++ looks for it first, as sentencepiece.
  kinds_of = [1 if kind == 4 else kind for kind in values[f'{KEY}token_type']]
  assert kinds_of == [int(kind) for _, _, kind in theirs] and (4 in values[f'{KEY}token_type']) == (
    name == 'plain'
  )
  assert (values[f'{KEY}model'], values[f'{KEY}add_space_prefix']) == ('llama', name == 'llama')


def test_merges_and_special_ids_are_those_of_llama_cpp(opened, kinds):
  gguf = pytest.importorskip('gguf')
  theirs = gguf.SpecialVocab(kinds['qwen'], load_merges=True)
  values = to_values(opened['qwen'], opened['qwen'].vocab_size)
  assert values[f'{KEY}merges'] == theirs.merges
  assert values[f'{KEY}eos_token_id'] == theirs.special_token_ids['eos']
  assert f'{KEY}bos_token_id' not in values and 'bos' not in theirs.special_token_ids
  document = json.loads((kinds['qwen'] / 'tokenizer.json').read_text())
  assert {text: i for i, text in enumerate(values[f'{KEY}tokens'][:350])} == document['model']['vocab']
  assert values[f'{KEY}token_type'] == [1] * 350 + [3, 3, 3, 4]
  assert (values[f'{KEY}model'], values[f'{KEY}pre'], values[f'{KEY}add_bos_token']) == ('gpt2', 'qwen2', False)


def test_arrays_are_taken_too(opened):
  values = to_values(opened['llama'], 420)
  for name, dtype in (('scores', np.float32), ('token_type', np.int32)):
    values[KEY + name] = np.array(values[KEY + name], dtype)
  values[f'{KEY}bos_token_id'] = np.uint32(1)
  assert probe.difference(tokenizer_of_gguf(values), opened['llama']) is None


def test_a_chat_template_travels(tmp_path):
  tok = open_tokenizer(made.qwen_folder(tmp_path / 'q', chat_template='{{ messages }}'))
  values = to_values(tok, tok.vocab_size)
  assert values['tokenizer.chat_template'] == '{{ messages }}'
  assert tokenizer_of_gguf(values).config['chat_template'] == '{{ messages }}'


@pytest.mark.parametrize('cut', byte_level.CUTS)
def test_every_cut_has_its_name(tmp_path, cut):
  (tmp_path / 'tokenizer.json').write_text(json.dumps(made.byte_bpe(cut, [('<|endoftext|>', True)])))
  tok = open_tokenizer(tmp_path)
  values = to_values(tok, tok.vocab_size)
  assert values[f'{KEY}pre'] == cut
  assert probe.difference(tok, tokenizer_of_gguf(values)) is None


def test_an_unknown_cut_is_refused(tmp_path):
  document = made.byte_bpe('gpt-2', [('<|endoftext|>', True)])
  document['pre_tokenizer']['add_prefix_space'] = True
  (tmp_path / 'tokenizer.json').write_text(json.dumps(document))
  with pytest.raises(UserError, match=r'pre_tokenizer: GGUF has no name for it.*llama-bpe, qwen2'):
    to_values(open_tokenizer(tmp_path), 351)


@pytest.mark.parametrize(
  ('name', 'key', 'value', 'message'),
  [
    ('llama', 'model', 'bert', 'model: is bert; want llama'),
    ('llama', 'model', None, 'model: is None'),
    ('llama', 'tokens', None, 'tokens: is no list of texts'),
    ('llama', 'tokens', 'abc', 'tokens: is no list of texts'),
    ('llama', 'tokens', [1, 2], 'tokens: is no list of texts'),
    ('llama', 'scores', None, 'scores: wants a number for each of 420'),
    ('llama', 'scores', [0.0], 'scores: wants a number for each'),
    ('llama', 'scores', [float('nan')] * 420, 'scores: has a value that is no 32-bit number'),
    ('llama', 'scores', [1e308] * 420, 'scores: has a value that is no 32-bit number'),
    ('llama', 'tokens', ['\ud800'] * 420, 'tokens: has a text that UTF-8 cannot spell'),
    ('llama', 'token_type', ['a'] * 420, 'token_type: wants a number'),
    ('llama', 'token_type', [[1]] * 420, 'token_type: wants a number'),
    ('llama', 'bos_token_id', None, 'bos_token_id: is missing'),
    ('llama', 'eos_token_id', 420, 'eos_token_id: is 420; want 0 to 419'),
    ('llama', 'unknown_token_id', -1, 'unknown_token_id: is -1'),
    ('llama', 'padding_token_id', True, 'padding_token_id: is True'),
    ('qwen', 'pre', ['qwen2'], 'pre: is .* known: llama-bpe'),
    ('qwen', 'pre', 'mystery', 'pre: is mystery; known: llama-bpe'),
    ('qwen', 'merges', None, 'merges: is no list of texts'),
    ('qwen', 'merges', ['a b c'], 'merges: 0 is a b c; want two pieces'),
    ('qwen', 'merges', ['zzz y'], 'is no tokenizer.json that the library tokenizers takes'),
    ('qwen', 'eos_token_id', None, 'eos_token: is not named'),
  ],
)
def test_refused(opened, name, key, value, message):
  values = to_values(opened[name], opened[name].vocab_size) | {KEY + key: value}
  with pytest.raises(UserError, match=message):
    tokenizer_of_gguf(values, 'x.gguf')
