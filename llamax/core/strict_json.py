"""The object of a JSON text that someone else wrote: no key twice, not too deep, no number that costs time."""

import json
import math
from collections.abc import Callable
from typing import Any

from llamax.core.errors import UserError

_DEPTH = 64


def parse_object(content: bytes, wrong: Callable[[str, str], UserError]) -> dict[str, Any]:
  """The object that a text is.

  Args:
    wrong: makes the error to raise of (where in the text, what is wrong there).
  """

  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
      if key in found:
        raise wrong(key, 'stands there twice')
      found[key] = value
    return found

  try:
    found = json.loads(content.decode(), object_pairs_hook=once, parse_int=_whole)
  except UserError:
    raise
  except UnicodeDecodeError as error:
    raise wrong(f'byte {error.start}', 'is not UTF-8') from None
  except RecursionError:
    raise wrong('file', 'is nested too deeply') from None
  except json.JSONDecodeError as error:
    raise wrong(f'line {error.lineno}', f'is not JSON ({error.msg})') from None
  if not isinstance(found, dict):
    raise wrong('file', f'holds {type(found).__name__}; want an object')
  if _depth(found) > _DEPTH:
    raise wrong('file', 'is nested too deeply')
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
