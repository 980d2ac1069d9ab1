"""Every byte of a text comes back, is counted once, in one go or piece by piece."""

import hashlib
import io
import os

import numpy as np
import pytest
import sentencepiece as spm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamax.core.errors import UserError
from llamax.data import tokenizer as module
from llamax.data.tokenizer import NAMES, open_tokenizer, tokenizer_path


@pytest.fixture(scope='module')
def tok(model_file):
  return open_tokenizer(model_file)


@pytest.fixture(scope='module')
def llama_like(tmp_path_factory):
  """A model as LLaMA's own: a space put before every text."""
  out = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(['hello world again and again'] * 20),
    model_writer=out,
    model_type='bpe',
    vocab_size=290,
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  path = tmp_path_factory.mktemp('llama') / 'tokenizer.model'
  path.write_bytes(out.getvalue())
  return open_tokenizer(path)


def test_special_ids_are_those_of_llama(tok, model_file):
  assert (tok.unk_id, tok.bos_id, tok.eos_id, tok.pad_id, tok.vocab_size) == (0, 1, 2, 0, 384)
  with open(model_file, 'rb') as f:
    assert tok.fingerprint == hashlib.sha256(f.read()).hexdigest()


def test_saved_model_is_the_same(tok, tmp_path):
  tok.save(tmp_path)
  assert open_tokenizer(tmp_path).fingerprint == open_tokenizer(tmp_path / 'tokenizer.model').fingerprint
  assert open_tokenizer(tmp_path).fingerprint == tok.fingerprint
  assert [p.name for p in tmp_path.iterdir()] == ['tokenizer.model']


def test_bos_and_eos_only_when_asked(tok):
  plain = tok.encode('def x')
  assert tok.encode('def x', bos=True) == [1, *plain]
  assert tok.encode('def x', eos=True) == [*plain, 2]
  assert tok.encode('', bos=True, eos=True) == [1, 2]


_TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=60) | st.text(
  st.sampled_from(' \n\t\r\0▁<s>0x中é😀abdef1'), max_size=40
)


@given(text=_TEXT)
@example(text='▁ ▁▁ a▁b')
@example(text='<s></s><unk><0x41>\ufeff')
@example(text='  leading, trailing  \n\n    \t\t')
@settings(max_examples=300, deadline=None)
def test_round_trip_counts_every_byte(tok, text):
  ids = tok.encode(text)
  assert tok.decode(ids) == text
  assert tok.byte_lengths[ids].sum() == len(text.encode())
  assert tok.unk_id not in ids
  assert tok.decode([tok.bos_id, *ids, tok.eos_id]) == text


@given(text=_TEXT)
@settings(max_examples=100, deadline=None)
def test_stream_gives_the_same_text_without_broken_characters(tok, text):
  stream = tok.stream()
  pieces = [stream.push(i) for i in tok.encode(text)]
  assert ''.join(pieces) + stream.flush() == text
  assert all('\ufffd' not in piece or '\ufffd' in text for piece in pieces)


def test_stream_holds_back_an_unfinished_character(tok):
  ids = tok.encode('😀')  # four byte pieces
  assert len(ids) == 4
  stream = tok.stream()
  assert [stream.push(i) for i in ids[:3]] == ['', '', '']
  assert stream.flush() == '\ufffd'


def test_decode_agrees_with_sentencepiece(tok, llama_like, stories):
  for model in (tok, llama_like):
    reference = spm.SentencePieceProcessor(model_file=model.path)
    for text in [*stories[:5], ' two  spaces ', 'hello world', '']:
      ids = model.encode(text, bos=True)
      assert ids[1:] == reference.encode(text)
      assert model.decode(ids) == reference.decode(ids) == text


def test_byte_lengths_of_each_kind(tok):
  assert tok.byte_lengths.dtype == np.int32 and tok.byte_lengths.shape == (384,)
  assert tok.byte_lengths[:3].tolist() == [0, 0, 0]
  (byte_id,) = {i for i in range(384) if tok.token_bytes(i) == b'\xff'}
  assert tok.byte_lengths[byte_id] == 1


def test_newlines_tabs_and_indentation_are_pieces(tok):
  assert len(tok.encode('\n')) == len(tok.encode('\t')) == len(tok.encode('\n    ')) == 1


def test_digits_stand_alone(tok):
  assert len(tok.encode('1234')) == 4


def test_long_text_is_cut_in_blocks_without_loss(tok, monkeypatch, stories):
  monkeypatch.setattr(module, '_BLOCK_CHARS', 50)
  text = ''.join(stories[:4]) + 'x' * 130
  ids = tok.encode(text)
  assert tok.decode(ids) == text and tok.byte_lengths[ids].sum() == len(text.encode())
  assert max(len(block) for block in module._blocks(text)) == 50
  assert ''.join(module._blocks(text)) == text


@pytest.mark.parametrize('content', [b'', b'no model', b'\0' * 64])
def test_what_is_no_model_is_refused(tmp_path, content):
  path = tmp_path / 'bad.model'
  path.write_bytes(content)
  with pytest.raises(UserError, match='is not a SentencePiece model'):
    open_tokenizer(path)


def test_missing_model_is_refused(tmp_path):
  with pytest.raises(UserError, match='cannot be read: No such file'):
    open_tokenizer(tmp_path / 'none.model')


def test_model_without_bos_is_refused(tmp_path):
  out = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(['hello world'] * 9),
    model_writer=out,
    model_type='char',
    vocab_size=12,
    hard_vocab_limit=False,
    bos_id=-1,
    minloglevel=2,
  )
  (tmp_path / 'm.model').write_bytes(out.getvalue())
  with pytest.raises(UserError, match='bos id -1'):
    open_tokenizer(tmp_path / 'm.model')


def test_lone_surrogate_is_refused(tok):
  with pytest.raises(UserError, match='surrogates not allowed at character 2'):
    tok.encode('ab\udc80')


def test_a_folder_has_one_tokenizer(tok, tmp_path):
  assert tokenizer_path(tmp_path) == str(tmp_path / 'tokenizer.model')
  with pytest.raises(UserError, match=r"tokenizer\.model' cannot be read: No such file"):
    open_tokenizer(tmp_path)
  for name in reversed(NAMES):
    (tmp_path / name).touch()
    assert tokenizer_path(tmp_path) == str(tmp_path / name)


def test_a_prompt_has_an_id_at_least(tok):
  assert tok.encode_prompt('') == [1]
  assert tok.encode_prompt('def') == tok.encode('def', bos=True)
  tok.adds_bos = False
  try:
    assert tok.encode_prompt('') == [1]
    assert tok.encode_prompt('def') == tok.encode('def')
  finally:
    tok.adds_bos = True


def test_a_pipe_is_no_tokenizer(tmp_path):
  os.mkfifo(tmp_path / 'tokenizer.model')
  with pytest.raises(UserError, match='is no regular file'):
    open_tokenizer(tmp_path)
