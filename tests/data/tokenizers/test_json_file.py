"""What a tokenizer.json may not say is refused by name."""

import json

import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizers.byte_level import added_token
from llamax.data.tokenizers.json_file import parse_document, read_vocabulary
from tests.data.tokenizers import made


def change(**fields):
  """Takes a small valid document, with other values of these fields."""
  document = {
    'added_tokens': [added_token(3, '<s>', True)],
    'decoder': {'type': 'ByteLevel'},
    'model': {'type': 'BPE', 'vocab': {'a': 0, 'b': 1, 'ab': 2}, 'merges': [['a', 'b']]},
  }
  for name, value in fields.items():
    if name in document or name == 'pre_tokenizer':
      document[name] = value
    else:
      document['model'][name] = value
  return document


def test_a_valid_one():
  found = read_vocabulary(change(), 'x')
  assert (found.pieces, found.added, found.style, found.unk_id) == (
    ('a', 'b', 'ab', '<s>'),
    {3: True},
    'bytes',
    -1,
  )


@pytest.mark.parametrize(
  ('document', 'message'),
  [
    (change(model=None), r"tokenizer 'x': model.type: is None; want BPE"),
    (change(type='Unigram'), 'model.type: is Unigram; want BPE'),
    (change(dropout=0.1), 'model.dropout: is 0.1; want none'),
    (change(continuing_subword_prefix='##'), 'continuing_subword_prefix: is ##; want none'),
    (change(vocab=['a']), 'model.vocab: is no table of pieces'),
    (change(vocab={}), 'model.vocab: is no table'),
    (change(vocab={'a': 0, 'b': 1}), 'has no piece of id 2, but ids up to 3'),
    (change(vocab={'a': 0, 'b': 1, 'ab': -1}), 'ab has id -1; want 0 to'),
    (change(vocab={'a': 0, 'b': 1, 'ab': 4294967295}), 'ab has id 4294967295'),
    (change(vocab={'a': 0, 'b': 1, 'ab': 2.0}), 'ab has id 2.0'),
    (change(vocab={'a': 0, 'b': 1, 'ab': True}), 'ab has id True'),
    (change(vocab={'a': 0, 'b': 1, 'ab': 1}), 'b, ab both have id 1'),
    (change(added_tokens={}), 'added_tokens: is no list'),
    (change(added_tokens=[{'id': 3}]), 'added_tokens: .* has no content'),
    (change(added_tokens=[added_token(1, 'c', True)]), 'b, c both have id 1'),
    (change(added_tokens=[added_token(3, 'a', True)]), 'added_tokens: a has id 3, in vocab 0'),
    (change(added_tokens=[added_token(5, '<s>', True)]), 'has no piece of id 3'),
    (change(unk_token='zz'), 'model.unk_token: zz is not in the vocabulary'),
    (change(decoder={'type': 'WordPiece'}), 'is neither ByteLevel nor ByteFallback nor Metaspace'),
    (change(vocab={'a\x1b[31m': 0, 'b': 0}), r'a\\x1b\[31m, b both'),
  ],
)
def test_refused(document, message):
  with pytest.raises(UserError, match=message):
    read_vocabulary(document, 'x')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"a": 1, "b": 2, "b": 3}', "tokenizer 'x': b: stands there twice"),
    (b'[1]', 'file: holds list; want an object'),
    (b'{"a": ', 'line 1: is not JSON'),
    (b'{"a": "\xff"}', 'byte 7: is not UTF-8'),
    (b'{"a":' * 100_000, 'file: is nested too deeply'),
  ],
)
def test_what_is_no_object(content, message):
  with pytest.raises(UserError, match=message):
    parse_document(content, 'x')


def test_long_numbers_cost_no_time():
  assert parse_document(b'{"a": ' + b'9' * 1_000_000 + b'}', 'x')['a'] == float('inf')


def test_style_is_found_anywhere():
  for style, part in (('bytes', {'type': 'ByteLevel'}), ('spaces', {'type': 'Metaspace'})):
    inside = {'type': 'Sequence', 'pretokenizers': [{'type': 'Sequence', 'pretokenizers': [part]}]}
    assert read_vocabulary(change(decoder=None, pre_tokenizer=inside), 'x').style == style


def test_pieces_of_a_real_one():
  document = json.loads(json.dumps(made.byte_bpe('gpt-2', [('<s>', True)])))
  found = read_vocabulary(document, 'x')
  assert len(found.pieces) == len(document['model']['vocab']) + 1 and found.added == {
    len(found.pieces) - 1: True
  }
