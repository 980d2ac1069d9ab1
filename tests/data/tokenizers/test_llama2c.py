"""A tokenizer.bin gives the ids that llama2.c gives."""

import struct

import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from llamax.data.tokenizers import llama2c, probe, spelled
from tests.data.tokenizers import made


def read(content):
  """(max_token_length, [(score, bytes)]), as run.c reads it."""
  longest, at, entries = struct.unpack_from('<I', content)[0], 4, []
  while at < len(content):
    score, length = struct.unpack_from('<fI', content, at)
    entries.append((score, content[at + 8 : at + 8 + length]))
    at += 8 + length
  return longest, entries


def encode(entries, text):
  """run.c's own algorithm: characters, else bytes; then the best pair is joined, again and again."""
  ids = {piece: i for i, (_, piece) in reversed(list(enumerate(entries)))}
  tokens = [ids[b' ']] if text else []
  for char in text:
    piece = char.encode()
    tokens += [ids[piece]] if piece in ids else [byte + 3 for byte in piece]
  while True:
    best, where = -1e10, None
    for i in range(len(tokens) - 1):
      joined = ids.get(entries[tokens[i]][1] + entries[tokens[i + 1]][1])
      if joined is not None and entries[joined][0] > best:
        best, where = entries[joined][0], (i, joined)
    if where is None:
      return tokens
    tokens[where[0] : where[0] + 2] = [where[1]]


def content_of(tokenizer, vocab_size=0):
  return llama2c.write(spelled.pieces_of(tokenizer).pieces, vocab_size)


def test_ids_are_those_of_llama2c(opened, tmp_path):
  model = opened['llama']
  content = content_of(model, 425)
  longest, entries = read(content)
  assert len(entries) == 425 and longest == max(len(piece) for _, piece in entries)
  assert [piece for _, piece in entries[:4]] == [b'<unk>', b'\n<s>\n', b'\n</s>\n', b'<0x00>']
  assert entries[424][1] == b'[PAD424]'
  (tmp_path / 'tokenizer.bin').write_bytes(content)
  found = open_tokenizer(tmp_path)
  assert found.vocab_size == model.vocab_size == 420
  assert probe.difference(model, found) is None
  for text in [*probe.TEXTS, made.text()[-800:]]:
    if '▁' not in text:  # run.c has no such sign for the space
      assert found.encode(text) == encode(entries, text)


def test_saved_as_a_model(opened, tmp_path):
  (tmp_path / 'tokenizer.bin').write_bytes(content_of(opened['llama']))
  found = open_tokenizer(tmp_path / 'tokenizer.bin')
  found.save(tmp_path / '.')
  assert open_tokenizer(tmp_path).fingerprint == found.fingerprint
  assert open_tokenizer(tmp_path).path.endswith('tokenizer.model')


def test_the_names_without_line_breaks_are_known(opened):
  content = content_of(opened['llama']).replace(
    struct.pack('<i', 5) + b'\n<s>\n', struct.pack('<i', 3) + b'<s>'
  ).replace(struct.pack('<i', 6) + b'\n</s>\n', struct.pack('<i', 4) + b'</s>')  # fmt: skip
  assert len(content) == len(content_of(opened['llama'])) - 4
  assert llama2c.as_model(content, 'x') == llama2c.as_model(content_of(opened['llama']), 'x')


def entry(piece, score=0.0, length=None):
  return struct.pack('<fi', score, len(piece) if length is None else length) + piece


HEAD = struct.pack('<i', 7) + entry(b'<unk>') + entry(b'<s>') + entry(b'</s>')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (HEAD + b'\0' * 7, 'piece 3: ends at byte'),
    (HEAD + entry(b'abc')[:-1], 'piece 3: has 3 bytes'),
    (HEAD + entry(b'abcdefgh'), 'piece 3: has 8 bytes; want 1 to 7'),
    (HEAD + entry(b''), 'piece 3: has 0 bytes'),
    (HEAD + entry(b'a', length=-1), 'piece 3: has -1 bytes'),
    (HEAD + entry(b'a', length=1 << 30), 'piece 3: has 1073741824 bytes'),
    (HEAD + entry(b'\xff'), 'piece 3: is not UTF-8'),
    (HEAD + entry(b'a', float('nan')), 'piece 3: has no number'),
    (struct.pack('<i', 7) + entry(b'<unk>') + entry(b'</s>'), 'pieces 0, 1, 2: are not'),
    (struct.pack('<i', -1) + entry(b'<unk>'), 'piece 0: has 5 bytes; want 1 to -1'),
    (HEAD + entry(b'a') + entry(b'a'), 'is not a SentencePiece model'),
  ],
)
def test_refused(tmp_path, content, message):
  (tmp_path / 'tokenizer.bin').write_bytes(content)
  with pytest.raises(UserError, match=message):
    open_tokenizer(tmp_path)
