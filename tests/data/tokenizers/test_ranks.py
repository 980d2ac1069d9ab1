"""Llama 3's ranks give the ids of tiktoken; what is no such file is refused."""

import base64
import json

import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from llamax.data.tokenizers import byte_level, probe, ranks
from tests.data.tokenizers import made


def test_ids_are_those_of_tiktoken(kinds, opened):
  tiktoken = pytest.importorskip('tiktoken')
  lines = (kinds['ranks'] / 'tokenizer.model').read_bytes().splitlines()
  table = {base64.b64decode(piece): int(rank) for piece, rank in (line.split() for line in lines)}
  names = {name: len(table) + i for i, name in enumerate(ranks.special_tokens())}
  pattern = byte_level.CUTS['llama-bpe'][1]['pretokenizers'][0]['pattern']['Regex']
  theirs = tiktoken.Encoding('ours', pat_str=pattern, mergeable_ranks=table, special_tokens=names)
  tok = opened['ranks']
  assert tok.vocab_size == theirs.n_vocab
  for text in [*probe.TEXTS, made.text()]:
    ids = tok.encode(text)
    assert ids == theirs.encode(text, disallowed_special=())
    assert tok.decode(ids) == theirs.decode(ids) == text


def test_ids_are_those_of_transformers(kinds, opened):
  slow = pytest.importorskip('transformers.convert_slow_tokenizer')
  pytest.importorskip('tiktoken')
  theirs = slow.TikTokenConverter(
    str(kinds['ranks'] / 'tokenizer.model'), extra_special_tokens=ranks.special_tokens()
  ).converted()
  for text in [*probe.TEXTS, made.text()]:
    assert opened['ranks'].encode(text) == theirs.encode(text, add_special_tokens=False).ids
  assert theirs.get_vocab_size() == opened['ranks'].vocab_size


def test_special_ids_follow_the_ranks(opened):
  tok = opened['ranks']
  size = tok.vocab_size - 256
  named = {0: '<|begin_of_text|>', 1: '<|end_of_text|>', 6: '<|start_header_id|>', 9: '<|eot_id|>'}
  assert {i: tok.piece(size + i) for i in named} == named
  assert tok.piece(size + 11) == '<|reserved_special_token_3|>'
  assert tok.piece(size + 255) == '<|reserved_special_token_247|>'
  assert len(set(ranks.special_tokens())) == 256
  assert (tok.bos_id, tok.eos_id, tok.pad_id, tok.adds_bos) == (size, size + 1, size + 4, True)


def test_the_file_travels_as_it_is(kinds, opened, tmp_path):
  opened['ranks'].save(tmp_path)
  assert (tmp_path / 'tokenizer.model').read_bytes() == (kinds['ranks'] / 'tokenizer.model').read_bytes()
  assert open_tokenizer(tmp_path).fingerprint == opened['ranks'].fingerprint


def test_ranks_come_back_from_a_tokenizer_json(tmp_path):
  document = made.llama3_json()
  (tmp_path / 'tokenizer.json').write_text(json.dumps(document))
  tok = open_tokenizer(tmp_path)
  content = ranks.as_ranks(tok)
  vocabulary = document['model']['vocab']
  assert ranks.parse_ranks(content, 'x') == {byte_level.bytes_of(p): i for p, i in vocabulary.items()}
  again = ranks.open_ranks('x', content)
  assert probe.difference(tok, again) is None and ranks.as_ranks(again) == content


def _line(piece, rank):
  return b'%s %d\n' % (base64.b64encode(piece), rank)


GOOD = b''.join(_line(bytes([byte]), byte) for byte in range(256))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (GOOD + b'YWI=', 'line 257: want a piece'),
    (GOOD + b'YWI= -1', 'line 257: want a piece'),
    (GOOD + b'YW= 256', 'line 257: want a piece'),
    (GOOD + b'YWI= 256 1', 'line 257: want a piece'),
    (GOOD + b'YWI= 99999999999999', 'line 257: want a piece'),
    (GOOD + _line(b'a' * 257, 256), 'line 257: want a piece of 1 to 256 bytes'),
    (GOOD + _line(b'a', 256), 'line 257: the piece of rank 97 again'),
    (GOOD + _line(b'ab', 255), 'ranks: are not 0 to 256, each once'),
    (GOOD + _line(b'ab', 257), 'ranks: are not 0 to 256'),
    (_line(b'ab', 0) + b''.join(_line(bytes([b]), b) for b in range(1, 256)), 'has no piece for the byte 0'),
  ],
)
def test_refused(tmp_path, content, message):
  (tmp_path / 'tokenizer.model').write_bytes(content)
  with pytest.raises(UserError, match=message):
    open_tokenizer(tmp_path)


@pytest.mark.parametrize(
  ('document', 'message'),
  [
    (made.byte_bpe('qwen2', [('<s>', True), ('</s>', True)]), 'it cuts text as qwen2 does'),
    (made.byte_bpe('llama-bpe', [('<s>', True), ('</s>', True)]), 'it has 2 added tokens; want 256'),
    (made.byte_bpe('llama-bpe', [(f'<{i}>', True) for i in range(255)] + [('</s>', True)]), 'its bos is'),
  ],
)
def test_what_ranks_cannot_say(tmp_path, document, message):
  (tmp_path / 'tokenizer.json').write_text(json.dumps(document))
  with pytest.raises(UserError, match=message):
    ranks.as_ranks(open_tokenizer(tmp_path))


def test_a_word_of_the_vocabulary_is_one_piece(tmp_path):
  # No two pieces make it: tiktoken looks for the whole word first.
  (tmp_path / 'tokenizer.model').write_bytes(GOOD + _line(b'xyz', 256) + _line(b' xyz', 257))
  tok = open_tokenizer(tmp_path)
  assert tok.encode('xyz xyz xyzz') == [256, 257, 32, *b'xyzz']
  (tmp_path / 'hf').mkdir()
  (tmp_path / 'hf/tokenizer.json').write_text(json.dumps(tok.document))
  assert ranks.as_ranks(open_tokenizer(tmp_path / 'hf')) == GOOD + _line(b'xyz', 256) + _line(b' xyz', 257)
