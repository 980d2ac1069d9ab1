"""What is in a tokenizer.json, checked before any of it is used."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from llamax.core.errors import UserError
from llamax.core.strict_json import parse_object

_MAX_IDS = 1 << 22
_DEPTH = 64


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """pieces: by id. added: id -> special, of the tokens beside the vocabulary. style: 'bytes' or 'spaces'."""

  pieces: tuple[str, ...]
  added: dict[int, bool]
  style: str
  unk_id: int


def parse_document(content: bytes, path: str) -> dict[str, Any]:
  """The JSON object of a file of a tokenizer; UserError for anything else."""
  return parse_object(content, lambda field, problem: wrong(path, field, problem))


def wrong(path: str, field: str, problem: str) -> UserError:
  return UserError(f'tokenizer {path!r}: {shown(field)}: {problem}')


def shown(value: object) -> str:
  """What a file says, fit for one line of a terminal."""
  text = value if isinstance(value, str) else repr(value)
  return ''.join(c if c.isprintable() else f'\\x{ord(c):02x}' for c in text[:80])


def read_vocabulary(document: Mapping[str, Any], path: str) -> Vocabulary:
  """Of a tokenizer.json. Raises UserError: no BPE, ids with holes, one that two pieces have."""
  model = document.get('model')
  # Old files do not name their type.
  if not isinstance(model, Mapping) or model.get('type', 'BPE') != 'BPE':
    found = model.get('type') if isinstance(model, Mapping) else model
    raise wrong(path, 'model.type', f'is {shown(found)}; want BPE, as LLaMA, Mistral, Qwen have it')
  for name in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix'):
    if model.get(name):
      raise wrong(path, f'model.{name}', f'is {shown(model[name])}; want none')
  names = model.get('vocab')
  if not isinstance(names, Mapping) or not names:
    raise wrong(path, 'model.vocab', 'is no table of pieces')
  ids: dict[int, str] = {}
  for name, token in names.items():
    _claim(ids, name, token, 'model.vocab', path)
  added = _added(document.get('added_tokens'), names, ids, path)
  if sorted(ids) != list(range(len(ids))):
    hole = next(i for i in range(len(ids)) if i not in ids)
    raise wrong(path, 'model.vocab', f'has no piece of id {hole}, but ids up to {max(ids)}: want all of them')
  unk = model.get('unk_token')
  if unk is not None and (not isinstance(unk, str) or unk not in names):
    raise wrong(path, 'model.unk_token', f'{shown(unk)} is not in the vocabulary')
  pieces = tuple(ids[i] for i in range(len(ids)))
  return Vocabulary(pieces, added, _style(document, path), names[unk] if unk is not None else -1)


def _claim(ids: dict[int, str], name: str, token: Any, where: str, path: str) -> int:
  if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < _MAX_IDS:
    raise wrong(path, where, f'{shown(name)} has id {shown(token)}; want 0 to {_MAX_IDS - 1}')
  if ids.setdefault(token, name) != name:
    raise wrong(path, where, f'{shown(ids[token])}, {shown(name)} both have id {token}')
  return token


def _added(tokens: Any, names: Mapping[str, int], ids: dict[int, str], path: str) -> dict[int, bool]:
  added: dict[int, bool] = {}
  if tokens is not None and not isinstance(tokens, list):
    raise wrong(path, 'added_tokens', 'is no list')
  for token in tokens or ():
    if not isinstance(token, Mapping) or not isinstance(token.get('content'), str) or not token['content']:
      raise wrong(path, 'added_tokens', f'{shown(token)} has no content')
    content, number = token['content'], token.get('id')
    if names.get(content, number) != number:
      raise wrong(path, 'added_tokens', f'{shown(content)} has id {shown(number)}, in vocab {names[content]}')
    added[_claim(ids, content, number, 'added_tokens', path)] = bool(token.get('special'))
  return added


def _style(document: Mapping[str, Any], path: str) -> str:
  """How a piece spells bytes: by GPT-2's alphabet, or as text with a sign for the space."""
  kinds = _types(document.get('pre_tokenizer')) | _types(document.get('decoder'))
  if 'ByteLevel' in kinds:
    return 'bytes'
  if kinds & {'ByteFallback', 'Metaspace'}:
    return 'spaces'
  raise wrong(path, 'decoder', 'is neither ByteLevel nor ByteFallback nor Metaspace: no way to spell any text')


def _types(component: Any, depth: int = 0) -> set[str]:
  if depth > _DEPTH:
    return set()
  if isinstance(component, list):
    return set().union(*(_types(inner, depth + 1) for inner in component))
  if not isinstance(component, Mapping):
    return set()
  inner = _types([component.get('pretokenizers'), component.get('decoders')], depth + 1)
  return inner | ({component['type']} if isinstance(component.get('type'), str) else set())
