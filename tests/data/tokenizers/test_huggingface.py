"""A tokenizer.json gives the ids that Hugging Face's own library gives; every byte comes back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from llamax.data.tokenizers import probe
from tests.data.tokenizers import made

BYTE_LEVEL = ('qwen', 'llama3', 'ranks')
_TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=50) | st.text(
  st.sampled_from(' \n\t\r\0▁<|>im_endĠ中é😀abdef1'), max_size=40
)


@pytest.mark.parametrize('name', ['qwen', 'llama3'])
def test_ids_are_those_of_transformers(name, kinds, opened):
  transformers = pytest.importorskip('transformers')
  theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(kinds[name] / 'tokenizer.json'))
  for text in [*probe.TEXTS, made.text()]:
    if not any(
      special in text for special in made.CHAT
    ):  # To transformers they are special, to us a text is text.
      assert opened[name].encode(text) == theirs.encode(text, add_special_tokens=False)
      assert opened[name].decode(opened[name].encode(text)) == theirs.decode(
        opened[name].encode(text), clean_up_tokenization_spaces=False
      )


@given(text=_TEXT)
@settings(max_examples=200, deadline=None)
def test_round_trip_counts_every_byte(opened, text):
  for name in ('llama3', 'ranks'):
    tok = opened[name]
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.byte_lengths[ids].sum() == len(text.encode())
    stream = tok.stream()
    assert ''.join([stream.push(i) for i in ids]) + stream.flush() == text


def test_what_looks_special_is_text(opened):
  for name in BYTE_LEVEL:
    tok = opened[name]
    text = f'a{tok.piece(tok.eos_id)}b'
    assert tok.eos_id not in tok.encode(text) and tok.decode(tok.encode(text)) == text


def test_special_ids(opened):
  qwen, llama3 = opened['qwen'], opened['llama3']
  assert [qwen.piece(i) for i in (qwen.bos_id, qwen.eos_id, qwen.pad_id)] == [made.CHAT[i] for i in (0, 2, 0)]
  assert (qwen.adds_bos, qwen.has_bos, qwen.unk_id) == (False, False, -1)
  assert (llama3.piece(llama3.bos_id), llama3.piece(llama3.eos_id)) == ('<|begin_of_text|>', '<|end_of_text|>')
  assert (llama3.adds_bos, llama3.has_bos) == (True, True)
  assert qwen.byte_lengths[qwen.eos_id] == 0 and qwen.token_bytes(qwen.vocab_size - 1) == b'<tool_call>'
  assert qwen.byte_lengths.dtype == np.int32 and qwen.byte_lengths.shape == (qwen.vocab_size,)


@pytest.mark.parametrize(
  ('config', 'bos', 'eos', 'adds_bos'),
  [
    ({'eos_token': '<|endoftext|>'}, '<|endoftext|>', '<|endoftext|>', False),
    ({'eos_token': {'content': '<|im_end|>', 'special': True}}, '<|endoftext|>', '<|im_end|>', False),
    ({'bos_token': '<|im_start|>'}, '<|im_start|>', '<|im_end|>', False),
    ({'bos_token': '<|im_start|>', 'add_bos_token': True}, '<|im_start|>', '<|im_end|>', True),
  ],
)
def test_ids_come_from_the_configuration(tmp_path, config, bos, eos, adds_bos):
  tok = open_tokenizer(made.qwen_folder(tmp_path / 'q', **config))
  assert (tok.piece(tok.bos_id), tok.piece(tok.eos_id), tok.adds_bos) == (bos, eos, adds_bos)
  tok.save(tmp_path)
  again = open_tokenizer(tmp_path)
  assert (again.bos_id, again.eos_id, again.adds_bos) == (tok.bos_id, tok.eos_id, tok.adds_bos)
  assert again.fingerprint == tok.fingerprint and again.files == tok.files


def test_ids_come_from_special_tokens_map(tmp_path):
  folder = made.qwen_folder(tmp_path / 'q')
  (folder / 'tokenizer_config.json').unlink()
  (folder / 'special_tokens_map.json').write_text('{"eos_token": {"content": "<|im_end|>"}}')
  assert open_tokenizer(folder).eos_id == open_tokenizer(folder).vocab_size - 2


def test_another_end_is_another_tokenizer(kinds, tmp_path):
  folder = made.qwen_folder(tmp_path / 'q', eos_token='<|endoftext|>')
  assert open_tokenizer(folder).fingerprint != open_tokenizer(kinds['qwen']).fingerprint


def test_nothing_is_cut_or_filled(tmp_path):
  folder = made.qwen_folder(tmp_path / 'q')
  document = json.loads((folder / 'tokenizer.json').read_text())
  document['truncation'] = {'max_length': 3, 'strategy': 'LongestFirst', 'stride': 0, 'direction': 'Right'}
  document['padding'] = {
    'strategy': {'Fixed': 99}, 'direction': 'Right', 'pad_to_multiple_of': None, 'pad_id': 0, 'pad_type_id': 0,
    'pad_token': '!',
  }  # fmt: skip
  (folder / 'tokenizer.json').write_text(json.dumps(document))
  tok = open_tokenizer(folder)
  assert tok.decode(tok.encode('one two three four five')) == 'one two three four five'
  assert len(tok.encode('a')) == 1


def test_code_to_run_is_left_out(tmp_path):
  tok = open_tokenizer(made.qwen_folder(tmp_path / 'q', auto_map={'AutoTokenizer': ['evil.py', None]}))
  assert 'auto_map' in tok.notes[0]
  assert b'auto_map' not in tok.files['tokenizer_config.json']


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'eos_token': '</s>'}, 'eos_token: </s> is not in the vocabulary'),
    ({'eos_token': None}, 'eos_token: is not named'),
    ({'bos_token': 7}, 'bos_token: 7 is not in the vocabulary'),
    ({'pad_token': ['x']}, r"pad_token: \['x'\] is not in"),
  ],
)
def test_ids_that_are_not_there(tmp_path, config, message):
  with pytest.raises(UserError, match=message):
    open_tokenizer(made.qwen_folder(tmp_path / 'q', **config))


def test_lone_surrogate_is_refused(opened):
  with pytest.raises(UserError, match='surrogates not allowed at character 2'):
    opened['qwen'].encode('ab\udc80')
