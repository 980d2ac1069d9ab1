"""Typed fields of nested dataclasses: reading, naming, refusing values."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from llamax.core.errors import UserError, nearest


def fields_of(cls: type, prefix: str = '') -> dict[str, Any]:
  """Dotted key -> type, for every leaf of a config class."""
  hints: dict[str, Any] = typing.get_type_hints(cls)
  leaves: dict[str, Any] = {}
  for field in dataclasses.fields(cls):
    kind = hints[field.name]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      leaves |= fields_of(kind, f'{prefix}{field.name}.')
    else:
      leaves[prefix + field.name] = kind
  return leaves


def flatten(mapping: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested mappings -> {dotted key: value}."""
  flat: dict[str, Any] = {}
  for key, value in mapping.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{dotted key: value} -> nested dicts."""
  nested: dict[str, Any] = {}
  for key, value in flat.items():
    *sections, last = key.split('.')
    inner = nested
    for section in sections:
      inner = inner.setdefault(section, {})
    inner[last] = value
  return nested


def unknown_key(key: str, cls: type) -> UserError:
  """The error for a key that no field has: points to the same word elsewhere, else to close spellings."""
  known = fields_of(cls)
  last = key.rsplit('.', 1)[-1]
  same_word = [k for k in known if k.rsplit('.', 1)[-1] == last]
  if same_word:
    return UserError(f'config has no key {key!r}. Did you mean {" or ".join(map(repr, same_word))}?')
  return UserError(f'config has no key {key!r}.{nearest(key, known)}')


def read_number(key: str, text: str, kind: type) -> int | float:
  """'1e6' as an integer too, as long as nothing is lost."""
  try:
    return coerce(key, int(text) if kind is int else float(text), kind)
  except ValueError as plain_error:
    if isinstance(plain_error, UserError):
      raise
  try:
    return coerce(key, float(text), kind)
  except ValueError as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f'{key}={text!r}: want {type_name(kind)}') from None


def strip_optional(kind: Any) -> tuple[Any, bool]:
  if isinstance(kind, types.UnionType):
    inner = [a for a in typing.get_args(kind) if a is not type(None)]
    return inner[0], True
  return kind, False


def type_name(kind: Any) -> str:
  bare, optional = strip_optional(kind)
  if typing.get_origin(bare) is tuple:
    name = f'a tuple of {typing.get_args(bare)[0].__name__}'
  else:
    name = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'a string'}[bare]
  return name + (' or None' if optional else '')


def coerce(key: str, value: Any, kind: Any) -> Any:
  """`value` as the field's type where nothing is lost by it; else UserError."""
  bare, optional = strip_optional(kind)
  wrong = UserError(f'{key}={value!r} is {type(value).__name__}; want {type_name(kind)}')
  if value is None:
    if optional:
      return None
    raise wrong
  if typing.get_origin(bare) is tuple:
    if isinstance(value, str) or not isinstance(value, (tuple, list)):
      raise wrong
    return tuple(coerce(key, item, typing.get_args(bare)[0]) for item in value)
  if bare in (bool, str):
    if not isinstance(value, bare):
      raise wrong
    return value
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise wrong
  if not math.isfinite(value):
    raise UserError(f'{key}={value!r} is not finite')
  if bare is int:
    if int(value) != value:
      raise wrong
    return int(value)
  return float(value)


def later_fields(cls: type, prefix: str = '') -> dict[str, Any]:
  """Dotted key -> value, for the fields that a config written by an earlier version lacks."""
  found = {prefix + name: value for name, value in _later(cls).items()}
  for name, kind in typing.get_type_hints(cls).items():
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      found |= later_fields(kind, f'{prefix}{name}.')
  return found


def _later(cls: type) -> dict[str, Any]:
  return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}


def build(cls: type, mapping: Any, root: type, prefix: str = '') -> Any:
  """An instance of a config class from a mapping that has each of its keys once; else UserError.

  A field with a default may be absent: configs were written before it was there.

  root: the outermost class, whose keys are offered for a misspelt one. prefix: of `cls` within it.
  """
  if not isinstance(mapping, Mapping):
    raise UserError(f'config section {prefix.rstrip(".")!r} is {type(mapping).__name__}; want a mapping')
  hints: dict[str, Any] = typing.get_type_hints(cls)
  for key in mapping:
    if key not in hints:
      raise unknown_key(f'{prefix}{key}', root)
  values = dict(_later(cls))
  for name, kind in hints.items():
    key = prefix + name
    if name not in mapping:
      if name in values:
        continue
      raise UserError(f'config lacks {key!r}; start from configs/base.py, which has every key')
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      values[name] = build(kind, mapping[name], root, f'{key}.')
    else:
      values[name] = coerce(key, mapping[name], kind)
  return cls(**values)
