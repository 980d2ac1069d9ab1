"""GPT-2's alphabet; ways to cut a text are told by what they do."""

import json

import pytest

from llamax.data.tokenizers import byte_level


def test_alphabet_is_that_of_tokenizers():
  from tokenizers import pre_tokenizers

  assert sorted(byte_level.byte_alphabet().values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
  cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  for text in (' \n\tab\x7f', 'é中😀\u00ad\u0100'):
    ((piece, _),) = cut.pre_tokenize_str(text)
    assert byte_level.piece_of(text.encode()) == piece and byte_level.bytes_of(piece) == text.encode()


def test_all_bytes_come_back():
  content = bytes(range(256))
  assert byte_level.bytes_of(byte_level.piece_of(content)) == content
  assert byte_level.bytes_of('a b') == b'a b'  # a space is not of the alphabet


@pytest.mark.parametrize('name', byte_level.CUTS)
def test_a_cut_is_recognised(name):
  cut = json.loads(json.dumps(byte_level.CUTS[name][1]))
  assert byte_level.cut_of({'pre_tokenizer': cut}) == name
  assert byte_level.cut_of({'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [cut]}}) == name
  for part in cut.get('pretokenizers', [cut]):
    part['trim_offsets'] = False
  assert byte_level.cut_of({'pre_tokenizer': cut}) == name
  cut.get('pretokenizers', [cut])[-1]['add_prefix_space'] = True
  assert byte_level.cut_of({'pre_tokenizer': cut}) is None


def test_unknown_cuts():
  assert byte_level.cut_of({}) is None
  assert byte_level.cut_of({'pre_tokenizer': {'type': 'Whitespace'}}) is None


def test_cuts_are_those_of_transformers():
  qwen = pytest.importorskip('transformers.models.qwen2.tokenization_qwen2')
  assert byte_level.CUTS['qwen2'][1]['pretokenizers'][0]['pattern'] == {'Regex': qwen.PRETOKENIZE_REGEX}
  slow = pytest.importorskip('transformers.convert_slow_tokenizer')
  default = slow.TikTokenConverter.__init__.__defaults__[1]
  assert byte_level.CUTS['llama-bpe'][1]['pretokenizers'][0]['pattern'] == {'Regex': default}


def test_merges_put_pieces_together_in_every_way():
  ranks = {b'a': 0, b'b': 1, b'ab': 2, b'ba': 3, b'aba': 4, b'xyz': 5}
  assert byte_level.all_merges(ranks) == [(b'a', b'b'), (b'b', b'a'), (b'a', b'ba'), (b'ab', b'a')]
