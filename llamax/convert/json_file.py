"""JSON that someone else wrote: bounded, never executed, every field checked as it is taken."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamax.convert.errors import FormatError, printable
from llamax.convert.source import File
from llamax.core.strict_json import parse_object

LIMIT = 1 << 24  # bytes of a config
_MAX_INT = (1 << 31) - 1


def read_json(path: str | os.PathLike, limit: int = LIMIT) -> dict[str, Any]:
  """The object in a file; FormatError for anything else, also for a key that stands there twice."""
  file = File(path)
  if file.size > limit:
    raise FormatError(path, 'file', f'has {file.size:,} bytes; want at most {limit:,}')
  return parse(file.read(0, file.size, 'file'), path)


def parse(content: bytes, path: str | os.PathLike) -> dict[str, Any]:
  """The object that a JSON text is. Raises FormatError."""
  return parse_object(content, lambda field, problem: FormatError(path, field, problem))


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
