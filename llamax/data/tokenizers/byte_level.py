"""Vocabularies whose pieces are spelled byte by byte: GPT-2's alphabet, the ways to cut a text into words."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

_SPLIT_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
  r'\s+(?!\S)|\s+'
)
_SPLIT_QWEN2 = _SPLIT_LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
_SPLIT_TEKKEN = (
  r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|'
  r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|'
  r' ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def byte_level(use_regex: bool) -> dict[str, Any]:
  return {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': use_regex}


def _split(pattern: str) -> dict[str, Any]:
  split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
  return {'type': 'Sequence', 'pretokenizers': [split, byte_level(False)]}


# llama.cpp's name of a way to cut text -> (normalizer, pre_tokenizer, ignore_merges) of tokenizer.json.
# ignore_merges: a word that is in the vocabulary is one piece, whatever the merges would make of it.
CUTS: dict[str, tuple[dict | None, dict, bool]] = {
  'llama-bpe': (None, _split(_SPLIT_LLAMA3), True),
  'qwen2': ({'type': 'NFC'}, _split(_SPLIT_QWEN2), False),
  'gpt-2': (None, byte_level(True), False),
  'smollm': (
    None,
    {
      'type': 'Sequence',
      'pretokenizers': [{'type': 'Digits', 'individual_digits': True}, byte_level(True)],
    },
    False,
  ),
  'tekken': (None, _split(_SPLIT_TEKKEN), True),
}


def byte_alphabet() -> dict[int, str]:
  """Byte -> the visible character that GPT-2 writes for it."""
  visible = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in visible]
  return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_CHARS = byte_alphabet()
# A byte is the character of its number in latin-1. What is not of the alphabet becomes what latin-1 lacks.
_BYTES = dict.fromkeys(range(256), '\uffff') | {ord(char): chr(byte) for byte, char in _CHARS.items()}


def bytes_of(piece: str) -> bytes:
  """The bytes that a piece spells; one with a character outside of the alphabet spells itself."""
  try:
    return piece.translate(_BYTES).encode('latin-1')
  except UnicodeEncodeError:
    return piece.encode()


def piece_of(content: bytes) -> str:
  return content.decode('latin-1').translate(_CHARS)


def cut_of(document: Mapping[str, Any]) -> str | None:
  """llama.cpp's name for the way that a tokenizer.json cuts text; None: none of those known here."""
  found = _essence(document.get('pre_tokenizer'))
  return next((name for name, (_, cut, _) in CUTS.items() if _essence(cut) == found), None)


def _essence(component: Any) -> Any:
  """A pre_tokenizer without what changes no id."""
  if isinstance(component, Mapping):
    kept = {key: _essence(value) for key, value in component.items() if key != 'trim_offsets'}
    if kept.get('type') == 'Sequence' and len(kept.get('pretokenizers', ())) == 1:
      return kept['pretokenizers'][0]
    return kept
  return [_essence(inner) for inner in component] if isinstance(component, list) else component


def make_document(
  vocabulary: Mapping[str, int],
  merges: Sequence[tuple[str, str]],
  added: Sequence[tuple[int, str, bool]],
  cut: str,
  bos: tuple[int, str] | None,
) -> dict[str, Any]:
  """A tokenizer.json of byte-level BPE.

  Args:
    added: (id, content, special) of the tokens beside the vocabulary.
    cut: a key of CUTS.
    bos: (id, content) of what every text begins with, where there is such a token.
  """
  normalizer, pre_tokenizer, ignore_merges = copy.deepcopy(CUTS[cut])
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [added_token(*token) for token in added],
    'normalizer': normalizer,
    'pre_tokenizer': pre_tokenizer,
    'post_processor': template(bos) if bos else None,
    'decoder': byte_level(True),
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': False,
      'ignore_merges': ignore_merges,
      'vocab': dict(vocabulary),
      'merges': [list(pair) for pair in merges],
    },
  }


def added_token(token: int, content: str, special: bool) -> dict[str, Any]:
  about = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  return {'id': token, 'content': content, **about, 'special': special}


def template(bos: tuple[int, str]) -> dict[str, Any]:
  """A post_processor that puts `bos`, (id, content), before every text."""
  token, content = bos
  first, text = {'SpecialToken': {'id': content, 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}
  second = [{'SpecialToken': {'id': content, 'type_id': 1}}, {'Sequence': {'id': 'B', 'type_id': 1}}]
  special = {content: {'id': content, 'ids': [token], 'tokens': [content]}}
  return {
    'type': 'TemplateProcessing',
    'single': [first, text],
    'pair': [first, text, *second],
    'special_tokens': special,
  }


def all_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
  """Every way to put a piece together from two, by the rank of the piece.

  tiktoken joins whatever gives a piece of lower rank; listed like this, merges do the same.
  """
  merges: list[tuple[bytes, bytes]] = []
  for piece in sorted(ranks, key=ranks.__getitem__):
    cuts = [i for i in range(1, len(piece)) if piece[:i] in ranks and piece[i:] in ranks]
    pairs = [(piece[:i], piece[i:]) for i in cuts]
    merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
  return merges
