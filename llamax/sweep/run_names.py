"""The name of a run, which is the name of its folder: short, safe, the same whatever else the sweep has."""

import hashlib
import re
from collections import Counter
from typing import Any

from llamax.core.config import fields_of
from llamax.sweep.space import LONGEST_NAME, Point


def run_name(point: Point) -> str:
  """`learning_rate=0.001,d_model=64`: what the point sets, beside what `named` or `fixed` speak for.

  It depends on the point alone, so points that are added later rename no run. A key is shortened to its last
  word where no other key of a config ends in that.
  """
  loud = {key: value for key, value in point.values.items() if key not in point.quiet}
  if not loud and not point.name:
    loud = dict(point.values)
  parts = [point.name] if point.name else []
  parts += [f'{_short(key)}={_words(value)}' for key, value in loud.items()]
  whole = ','.join(parts) or 'base'
  # Whatever was left out or replaced comes back as a few letters that tell such names apart.
  safe = re.sub(r'[^A-Za-z0-9._=+,-]', '-', whole).lstrip('.-,=+') or 'run'
  if safe == whole and len(safe) <= LONGEST_NAME:
    return safe
  digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
  return f'{safe[: LONGEST_NAME - 9]}-{digest}'


def _short(key: str) -> str:
  last = key.rpartition('.')[2]
  return last if _LAST_WORDS[last] == 1 else key


def _words(value: Any) -> str:
  if isinstance(value, bool) or value is None:
    return str(value).lower()
  if isinstance(value, tuple):
    return '+'.join(map(_words, value))
  return str(value)


_LAST_WORDS = Counter(key.rpartition('.')[2] for key in fields_of())
