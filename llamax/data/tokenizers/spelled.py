"""A SentencePiece BPE as a tokenizer.json, a tokenizer.json as a SentencePiece BPE."""

from collections.abc import Mapping, Sequence
from typing import Any

from llamax.core.errors import UserError
from llamax.data.tokenizer import SPACE
from llamax.data.tokenizers.byte_level import added_token, template
from llamax.data.tokenizers.huggingface import JsonTokenizer
from llamax.data.tokenizers.llama2c import is_byte
from llamax.data.tokenizers.model_proto import (
  BPE,
  BYTE,
  CONTROL,
  NORMAL,
  UNKNOWN,
  UNUSED,
  USER_DEFINED,
  ModelProto,
  Piece,
  read_proto,
  write_proto,
)
from llamax.data.tokenizers.sentencepiece_file import SentencePieceTokenizer

# The work for a piece grows with the square of its length.
_MAX_PIECE = 1 << 10


def pieces_of(tokenizer: SentencePieceTokenizer) -> ModelProto:
  """What the model file says. Raises UserError: another algorithm than BPE, other rules than LLaMA's."""
  cannot = f'{tokenizer.path} cannot be written as another kind of tokenizer: '
  try:
    model = read_proto(tokenizer.model)
  except ValueError as error:
    raise UserError(f'{cannot}{error}') from None
  if model.model_type != BPE:
    raise UserError(f'{cannot}its model_type is {model.model_type}; want {BPE} (BPE)')
  if model.charsmap:
    raise UserError(f'{cannot}it normalises characters by a table (precompiled_charsmap); want identity')
  for name in ('remove_extra_whitespaces', 'whitespace_as_suffix'):
    if getattr(model, name):
      raise UserError(f'{cannot}{name} is set; want it off, as LLaMA has it')
  if not model.escape_whitespaces:
    raise UserError(f'{cannot}escape_whitespaces is off; want it on, as LLaMA has it')
  longest = max(len(piece.text) for piece in model.pieces)
  if longest > _MAX_PIECE:
    raise UserError(f'{cannot}a piece has {longest} characters; want at most {_MAX_PIECE}')
  return model


def document_of(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
  """The tokenizer.json that gives the same ids."""
  model = pieces_of(tokenizer)
  names = [_name(piece) for piece in model.pieces]
  added = [
    added_token(i, name, piece.type in (CONTROL, UNKNOWN))
    for i, (name, piece) in enumerate(zip(names, model.pieces, strict=True))
    if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)
  ]
  prefix = [{'type': 'Prepend', 'prepend': SPACE}] if model.add_dummy_prefix else []
  spaces = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': SPACE}
  strip = [{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if model.add_dummy_prefix else []
  back = {'type': 'Replace', 'pattern': {'String': SPACE}, 'content': ' '}
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': added,
    'normalizer': {'type': 'Sequence', 'normalizers': [*prefix, spaces]},
    'pre_tokenizer': None,
    'post_processor': template((tokenizer.bos_id, names[tokenizer.bos_id])),
    'decoder': {
      'type': 'Sequence',
      'decoders': [back, {'type': 'ByteFallback'}, {'type': 'Fuse'}, *strip],
    },
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': names[tokenizer.unk_id],
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': True,
      'byte_fallback': any(piece.type == BYTE for piece in model.pieces),
      'ignore_merges': False,
      'vocab': {name: i for i, name in enumerate(names)},
      'merges': _merges(model.pieces),
    },
  }


def _name(piece: Piece) -> str:
  # A user-defined piece is looked for in the text as it is, before any space is replaced.
  return piece.text.replace(SPACE, ' ') if piece.type == USER_DEFINED else piece.text


def _merges(pieces: Sequence[Piece]) -> list[list[str]]:
  """Every way to put a piece together from two, those of the best score first, as SentencePiece joins them."""
  normal = {piece.text: piece.score for piece in pieces if piece.type == NORMAL}
  order = {piece.text: i for i, piece in enumerate(pieces)}
  merges: list[tuple[float, int, int, list[str]]] = []
  for text, score in normal.items():
    for cut in range(1, len(text)):
      pair = [text[:cut], text[cut:]]
      if pair[0] in normal and pair[1] in normal:
        merges.append((-score, order[text], len(text) - cut, pair))
  return [pair for *_, pair in sorted(merges, key=lambda merge: merge[:3])]


def model_of(tokenizer: JsonTokenizer) -> bytes:
  """The SentencePiece model that gives the ids of a tokenizer.json made from such a model.

  Raises:
    UserError: it spells bytes by another alphabet, so that no model of SentencePiece can give its ids.
  """
  vocabulary, document = tokenizer.vocabulary, tokenizer.document
  if vocabulary.style != 'spaces':
    raise UserError(
      f'{tokenizer.path} is a byte-level BPE, as Llama 3, Qwen have it: SentencePiece cannot give its ids'
    )
  if vocabulary.unk_id < 0:
    raise UserError(f'{tokenizer.path}: model.unk_token is missing; SentencePiece cannot do without')
  scores: dict[str, float] = {}
  merges = document['model'].get('merges') or []
  for rank, pair in enumerate(merges):
    scores.setdefault(''.join(pair if isinstance(pair, list) else str(pair).split(' ')), -float(rank))
  pieces = [
    _piece(vocabulary, i, text, scores, bos_or_eos=i in (tokenizer.bos_id, tokenizer.eos_id))
    for i, text in enumerate(vocabulary.pieces)
  ]
  model = ModelProto(tuple(pieces), add_dummy_prefix=tokenizer.adds_space)
  return write_proto(
    model, unk_id=vocabulary.unk_id, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=-1
  )


def _piece(vocabulary: Any, token: int, text: str, scores: Mapping[str, float], bos_or_eos: bool) -> Piece:
  if token == vocabulary.unk_id:
    return Piece(text, 0.0, UNKNOWN)
  if vocabulary.added.get(token) or bos_or_eos:
    return Piece(text, 0.0, CONTROL)
  if token in vocabulary.added:
    return Piece(text.replace(' ', SPACE), 0.0, USER_DEFINED)
  if is_byte(text):
    return Piece(text, 0.0, BYTE)
  if text in scores:
    return Piece(text, scores[text])
  # No merge gives it: a single character, or a piece that no text is ever spelled with.
  return Piece(text, -float(len(scores) + token), NORMAL if len(text) == 1 else UNUSED)
