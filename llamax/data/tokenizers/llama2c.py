"""llama2.c's tokenizer.bin: a SentencePiece vocabulary as pieces with scores."""

import struct
from collections.abc import Sequence

from llamax.data.tokenizers.json_file import wrong
from llamax.data.tokenizers.model_proto import BYTE, CONTROL, NORMAL, UNKNOWN, ModelProto, Piece, write_proto

NAME = 'tokenizer.bin'
_UNK, _BOS, _EOS = 0, 1, 2  # fixed in llama2.c
_MAX_PIECE = 1 << 10


def looks_like(content: bytes) -> bool:
  return content[8:17] == struct.pack('<i', 5) + b'<unk>'


def as_model(content: bytes, path: str) -> bytes:
  """The SentencePiece model that gives the ids of llama2.c. Raises UserError: a damaged file."""
  entries = parse(content, path)
  texts = [text for text, _ in entries]
  if [text.strip() for text in texts[:3]] != ['<unk>', '<s>', '</s>']:
    raise wrong(path, 'pieces 0, 1, 2', 'are not <unk>, <s>, </s>')
  while len(texts) > 3 and texts[-1] == padding(len(texts) - 1):
    texts.pop()
  pieces = []
  for i, text in enumerate(texts):
    kind = {_UNK: UNKNOWN, _BOS: CONTROL, _EOS: CONTROL}.get(i, BYTE if is_byte(text) else NORMAL)
    name = text.strip() if i in (_UNK, _BOS, _EOS) else text.replace(' ', '\u2581')
    pieces.append(Piece(name, entries[i][1], kind))
  return write_proto(ModelProto(tuple(pieces)), unk_id=_UNK, bos_id=_BOS, eos_id=_EOS)


def parse(content: bytes, path: str) -> list[tuple[str, float]]:
  """(piece, score) by id."""
  if len(content) < 4:
    raise wrong(path, 'max_token_length', f'wants 4 bytes, the file has {len(content)}')
  longest = struct.unpack_from('<i', content)[0]
  entries: list[tuple[str, float]] = []
  at = 4
  while at < len(content):
    field = f'piece {len(entries)}'
    if len(content) - at < 8:
      raise wrong(path, field, f'ends at byte {len(content)}: is the file whole?')
    score, length = struct.unpack_from('<fi', content, at)
    at += 8
    if not 0 < length <= min(longest, _MAX_PIECE) or length > len(content) - at:
      raise wrong(path, field, f'has {length} bytes; want 1 to {min(longest, _MAX_PIECE)} that are there')
    if score != score:
      raise wrong(path, field, 'has no number as its score')
    try:
      entries.append((content[at : at + length].decode(), score))
    except UnicodeDecodeError:
      raise wrong(path, field, 'is not UTF-8') from None
    at += length
  return entries


def write(pieces: Sequence[Piece], vocab_size: int) -> bytes:
  """The file of the pieces of a SentencePiece model, filled up to `vocab_size`, as many as llama2.c reads."""
  texts = [piece.text.replace('\u2581', ' ') for piece in pieces]
  texts[_BOS], texts[_EOS] = f'\n{texts[_BOS]}\n', f'\n{texts[_EOS]}\n'
  scores = [piece.score for piece in pieces]
  for i in range(len(pieces), vocab_size):
    texts.append(padding(i))
    scores.append(-1e9)
  encoded = [text.encode() for text in texts]
  out = [struct.pack('<i', max(map(len, encoded)))]
  out += [struct.pack('<fi', score, len(text)) + text for score, text in zip(scores, encoded, strict=True)]
  return b''.join(out)


def padding(token: int) -> str:
  """The name of an id that a model has, its tokenizer not; llama.cpp's."""
  return f'[PAD{token}]'


def is_byte(text: str) -> bool:
  return len(text) == 6 and text.startswith('<0x') and text.endswith('>') and text[3:5].isalnum()
