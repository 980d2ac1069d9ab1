"""Llama 3's tokenizer.model: lines of a piece in base64 with its rank, as tiktoken has them."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable

from llamax.core.errors import UserError
from llamax.data.format import TOKENIZER
from llamax.data.tokenizers.byte_level import all_merges, make_document, piece_of
from llamax.data.tokenizers.huggingface import JsonTokenizer
from llamax.data.tokenizers.isolated import require_harmless
from llamax.data.tokenizers.json_file import wrong

LINE = re.compile(rb'([A-Za-z0-9+/]+={0,2}) (\d{1,9})')
CUT = 'llama-bpe'
# Ids after the ranks. The file does not name them; Meta's programs do.
_NAMED = {
  0: '<|begin_of_text|>',
  1: '<|end_of_text|>',
  4: '<|finetune_right_pad_id|>',
  6: '<|start_header_id|>',
  7: '<|end_header_id|>',
  8: '<|eom_id|>',
  9: '<|eot_id|>',
  10: '<|python_tag|>',
}
NUM_SPECIAL = 256
_MAX_PIECE = 256  # bytes; Llama 3 has 128 spaces


def special_tokens() -> list[str]:
  """Names of the ids after the ranks, in order."""
  numbers = iter(range(NUM_SPECIAL))
  return [_NAMED.get(i) or f'<|reserved_special_token_{next(numbers)}|>' for i in range(NUM_SPECIAL)]


def open_ranks(path: str, content: bytes) -> JsonTokenizer:
  """Raises UserError: a line that is none, ranks with holes, a byte without a rank."""
  ranks = parse_ranks(content, path)
  document = document_of(ranks)
  made = json.dumps(document).encode()
  require_harmless(made, 'json', path)
  names = special_tokens()
  return JsonTokenizer(
    path,
    made,
    kind='ranks',
    files={TOKENIZER: content},
    fingerprint=hashlib.sha256(content).hexdigest(),
    special={'bos_token': names[0], 'eos_token': names[1], 'pad_token': names[4]},
  )


def document_of(ranks: dict[bytes, int]) -> dict:
  """The tokenizer.json that gives the same ids."""
  names = {piece: piece_of(piece) for piece in ranks}
  vocabulary = {names[piece]: rank for piece, rank in ranks.items()}
  merges = [(names[a], names[b]) for a, b in all_merges(ranks)]
  added = [(len(ranks) + i, name, True) for i, name in enumerate(special_tokens())]
  return make_document(vocabulary, merges, added, CUT, added[0][:2])


def parse_ranks(content: bytes, path: str) -> dict[bytes, int]:
  ranks: dict[bytes, int] = {}
  for number, line in enumerate(content.splitlines(), 1):
    if not line:
      continue
    found = LINE.fullmatch(line)
    try:
      piece = base64.b64decode(found[1], validate=True) if found else b''
    except binascii.Error:
      piece = b''
    if not found or not 0 < len(piece) <= _MAX_PIECE:
      raise wrong(path, f'line {number}', f'want a piece of 1 to {_MAX_PIECE} bytes in base64, its rank')
    rank = int(found[2])
    if piece in ranks:
      raise wrong(path, f'line {number}', f'the piece of rank {ranks[piece]} again')
    ranks[piece] = rank
  if sorted(ranks.values()) != list(range(len(ranks))):
    raise wrong(path, 'ranks', f'are not 0 to {len(ranks) - 1}, each once')
  missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
  if missing:
    raise wrong(path, 'ranks', f'has no piece for the byte {missing[0]}: no way to spell any text')
  return ranks


def write_ranks(pieces: Iterable[bytes]) -> bytes:
  """The file of pieces in the order of their ids."""
  return b''.join(b'%s %d\n' % (base64.b64encode(piece), i) for i, piece in enumerate(pieces))


def as_ranks(tokenizer: JsonTokenizer) -> bytes:
  """The ranks that give the ids of a byte-level tokenizer. Raises UserError: there are none."""
  if tokenizer.kind == 'ranks':
    return tokenizer.files[TOKENIZER]
  from llamax.data.tokenizers.byte_level import cut_of

  cut, added = cut_of(tokenizer.document), sorted(tokenizer.vocabulary.added)
  count = tokenizer.vocab_size - len(added)
  cannot = f'{tokenizer.path} cannot be written as Llama 3 ranks: '
  if cut != CUT:
    raise UserError(f'{cannot}it cuts text as {cut or "no model known here"} does, Llama 3 otherwise')
  if added != list(range(count, tokenizer.vocab_size)) or len(added) != NUM_SPECIAL:
    raise UserError(f'{cannot}it has {len(added)} added tokens; want {NUM_SPECIAL} after all others')
  ends = {'bos': (tokenizer.bos_id, count), 'eos': (tokenizer.eos_id, count + 1)}
  for name, (found, wanted) in ends.items():
    if found != wanted:
      raise UserError(f'{cannot}its {name} is {found}, where Meta has {wanted} for a vocabulary of this size')
  return write_ranks(tokenizer.token_bytes(i) for i in range(count))
