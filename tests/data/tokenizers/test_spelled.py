"""A SentencePiece model as tokenizer.json, and back, gives the same ids."""

import dataclasses
import io
import json

import pytest
import sentencepiece as spm
from hypothesis import given, settings
from hypothesis import strategies as st

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from llamax.data.tokenizers import model_proto, probe, spelled
from llamax.data.tokenizers.huggingface import JsonTokenizer
from llamax.data.tokenizers.sentencepiece_file import SentencePieceTokenizer
from tests.data.tokenizers import made

_TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=60) | st.text(
  st.sampled_from(' \n\t\r\0▁<s>0x中é😀abdefinotru1'), max_size=50
)


@pytest.fixture(scope='module')
def written(opened):
  """Name -> (the model, its tokenizer.json)."""
  return {
    name: (opened[name], JsonTokenizer('x', json.dumps(spelled.document_of(opened[name])).encode()))
    for name in ('llama', 'plain')
  }


@pytest.mark.parametrize('name', ['llama', 'plain'])
def test_ids_are_the_same(written, name):
  model, made_of_it = written[name]
  assert probe.difference(model, made_of_it) is None
  assert model.encode(made.text()) == made_of_it.encode(made.text())
  for known in ('bos_id', 'eos_id', 'unk_id', 'adds_bos', 'adds_space', 'vocab_size'):
    assert getattr(model, known) == getattr(made_of_it, known), known


@given(text=_TEXT)
@settings(max_examples=300, deadline=None)
def test_ids_of_any_text_are_the_same(written, text):
  for model, made_of_it in written.values():
    assert model.encode(text) == made_of_it.encode(text)
    assert model.decode(model.encode(text)) == made_of_it.decode(model.encode(text))


@pytest.mark.parametrize('name', ['llama', 'plain'])
def test_back_to_sentencepiece(written, name):
  model, made_of_it = written[name]
  again = SentencePieceTokenizer('y', spelled.model_of(made_of_it))
  assert probe.difference(model, again) is None
  assert again.encode(made.text()) == model.encode(made.text())
  kinds = [[piece.type for piece in spelled.pieces_of(tok).pieces] for tok in (model, again)]
  assert kinds[0] == kinds[1]


def test_without_byte_pieces(tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(made.llama_model(byte_fallback=False, vocab_size=120))
  model = open_tokenizer(tmp_path)
  document = spelled.document_of(model)
  found = JsonTokenizer('x', json.dumps(document).encode())
  for text in ('Once upon', 'what ⁂⁂ is § this', '⁂', 'a ⁂ b'):
    assert model.encode(text) == found.encode(text)
  assert model.unk_id in model.encode('⁂')


def test_vocabulary_of_transformers_converter(opened, kinds):
  converter = pytest.importorskip('transformers.convert_slow_tokenizer')
  theirs = converter.SentencePieceExtractor(str(kinds['llama'] / 'tokenizer.model'))
  vocabulary = {piece.piece: i for i, piece in enumerate(theirs.proto.pieces)}
  merges = converter.generate_merges(vocabulary, [(p.piece, p.score) for p in theirs.proto.pieces])
  found = spelled.document_of(opened['llama'])['model']
  assert found['vocab'] == vocabulary
  assert sorted(map(tuple, found['merges'])) == sorted(merges)


def _changed(tokenizer, **fields):
  model = dataclasses.replace(model_proto.read_proto(tokenizer.model), **fields)
  content = model_proto.write_proto(model, unk_id=0, bos_id=1, eos_id=2)
  return SentencePieceTokenizer('x', content)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model_type': 1}, 'its model_type is 1; want 2'),
    ({'remove_extra_whitespaces': True}, 'remove_extra_whitespaces is set'),
    ({'escape_whitespaces': False}, 'escape_whitespaces is off'),
    ({'whitespace_as_suffix': True}, 'whitespace_as_suffix is set'),
  ],
)
def test_other_rules_are_refused(opened, fields, message):
  with pytest.raises(UserError, match=f'x cannot be written as another kind of tokenizer: {message}'):
    spelled.document_of(_changed(opened['llama'], **fields))


def test_tables_of_characters_are_refused():
  out = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(['hello world'] * 9), model_writer=out, vocab_size=20, model_type='bpe',
    minloglevel=2, hard_vocab_limit=False, normalization_rule_name='nmt_nfkc',
  )  # fmt: skip
  with pytest.raises(UserError, match='precompiled_charsmap'):
    spelled.document_of(SentencePieceTokenizer('x', out.getvalue()))


def test_long_pieces_are_refused(opened):
  pieces = (*model_proto.read_proto(opened['llama'].model).pieces, model_proto.Piece('a' * 1025, -9e9))
  with pytest.raises(UserError, match='a piece has 1025 characters; want at most 1024'):
    spelled.document_of(_changed(opened['llama'], pieces=pieces))


def test_a_byte_level_vocabulary_is_refused(opened):
  with pytest.raises(UserError, match='is a byte-level BPE'):
    spelled.model_of(opened['qwen'])


def test_a_vocabulary_without_unk_is_refused(opened):
  document = spelled.document_of(opened['llama'])
  document['model']['unk_token'] = None
  with pytest.raises(UserError, match=r'model\.unk_token is missing'):
    spelled.model_of(JsonTokenizer('x', json.dumps(document).encode()))


def test_scores_count_not_places(opened):
  pieces = list(model_proto.read_proto(opened['llama'].model).pieces)
  first = next(i for i, piece in enumerate(pieces) if piece.type == model_proto.NORMAL)
  model = _changed(opened['llama'], pieces=(*pieces[:first], *reversed(pieces[first:])))
  found = JsonTokenizer('x', json.dumps(spelled.document_of(model)).encode())
  assert model.encode(made.text()) == found.encode(made.text()) != opened['llama'].encode(made.text())
  assert probe.difference(model, SentencePieceTokenizer('y', spelled.model_of(found))) is None
