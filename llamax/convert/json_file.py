"""JSON that someone else wrote: bounded, never executed, every field checked as it is taken."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamax.convert.errors import FormatError, printable
from llamax.convert.source import File

LIMIT = 1 << 24  # bytes of a config
_DEPTH = 64
_MAX_INT = (1 << 31) - 1


def read_json(path: str | os.PathLike, limit: int = LIMIT) -> dict[str, Any]:
  """The object in a file; FormatError for anything else, also for a key that stands there twice."""
  file = File(path)
  if file.size > limit:
    raise FormatError(path, 'file', f'has {file.size:,} bytes; want at most {limit:,}')
  return parse(file.read(0, file.size, 'file'), path)


def parse(content: bytes, path: str | os.PathLike) -> dict[str, Any]:
  """The object that a JSON text is. Raises FormatError."""

  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
      if key in found:
        raise FormatError(path, key, 'stands there twice')
      found[key] = value
    return found

  try:
    found = json.loads(content.decode(), object_pairs_hook=once, parse_int=_whole)
  except UnicodeDecodeError as error:
    raise FormatError(path, f'byte {error.start}', 'is not UTF-8') from None
  except RecursionError:
    raise FormatError(path, 'file', 'is nested too deeply') from None
  except json.JSONDecodeError as error:
    raise FormatError(path, f'line {error.lineno}', f'is not JSON ({error.msg})') from None
  except ValueError as error:
    if isinstance(error, FormatError):
      raise
    raise FormatError(path, 'file', f'is not JSON ({printable(error)})') from None
  if not isinstance(found, dict):
    raise FormatError(path, 'file', f'holds {type(found).__name__}; want an object')
  if _depth(found) > _DEPTH:
    raise FormatError(path, 'file', 'is nested too deeply')
  return found


def _whole(text: str) -> int | float:
  # int() of a long text takes time that grows with its square.
  return int(text) if len(text) < 20 else math.inf


def _depth(value: Any) -> int:
  level, deepest = [value], 0
  while level and deepest <= _DEPTH:
    deepest += 1
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
    ]
  return deepest


class Fields:
  """Takes checked values out of an object of a file. Each method raises FormatError naming the field."""

  def __init__(self, path: str | os.PathLike, found: Mapping[str, Any], prefix: str = ''):
    self.path, self._found, self._prefix = Path(path), found, prefix
    self.taken: set[str] = set()

  def _take(self, name: str, default: Any) -> Any:
    self.taken.add(name)
    value = self._found.get(name)
    if value is not None:
      return value
    if default is _NEEDED:
      raise self.wrong(name, 'is missing')
    return default

  def wrong(self, name: str, problem: str) -> FormatError:
    return FormatError(self.path, f'{self._prefix}{name}', problem)

  def count(self, name: str, default: Any = None, least: int = 1) -> int:
    """A whole number from `least` to 2^31 - 1; `default` where it is absent or null (None: it is needed)."""
    value = self._take(name, _NEEDED if default is None else default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MAX_INT:
      raise self.wrong(name, f'is {printable(repr(value))}; want a whole number from {least}')
    return value

  def number(self, name: str, default: Any = None) -> float:
    """A finite number above 0."""
    value = self._take(name, _NEEDED if default is None else default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
      raise self.wrong(name, f'is {printable(repr(value))}; want a number above 0')
    return float(value)

  def flag(self, name: str, default: bool) -> bool:
    value = self._take(name, default)
    if not isinstance(value, bool):
      raise self.wrong(name, f'is {printable(repr(value))}; want true or false')
    return value

  def text(self, name: str, default: Any = None) -> str:
    value = self._take(name, _NEEDED if default is None else default)
    if not isinstance(value, str):
      raise self.wrong(name, f'is {printable(repr(value))}; want a text')
    return value

  def inner(self, name: str) -> 'Fields | None':
    """The object of this name, or None where it is absent."""
    value = self._take(name, {})
    if not isinstance(value, dict):
      raise self.wrong(name, f'is {printable(repr(value))}; want an object')
    return Fields(self.path, value, f'{self._prefix}{name}.') if value else None

  def raw(self, name: str) -> Any:
    return self._take(name, None)

  def left(self) -> list[str]:
    """The fields that nobody took."""
    return sorted(set(self._found) - self.taken)


_NEEDED = object()
