"""The error that a user can mend, told apart from a bug of ours."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """What the user gave cannot work: the message says what was found, what was wanted, where, what to do.

  The command line prints the message without a traceback, then exits with code 2.
  """


def nearest(word: str, known: Iterable[str], count: int = 1) -> str:
  """' Did you mean ...?' for the known words closest to `word`, or the whole list when nothing is close."""
  known = sorted(known)
  close = difflib.get_close_matches(word, known, n=count, cutoff=0.5)
  if close:
    return f' Did you mean {" or ".join(repr(c) for c in close)}?'
  return f' Known: {", ".join(known)}.'


def pick(table: dict, name: str, where: str):
  """`table[name]`; an unknown name is a UserError that points to the nearest known one."""
  if name not in table:
    raise UserError(f'{where}={name!r} is not known.{nearest(name, table)}')
  return table[name]


def divisors_near(n: int, wanted: int) -> str:
  """The divisors of `n` on both sides of `wanted`, for a message ('4 or 8')."""
  divisors = [d for d in range(1, n + 1) if n % d == 0]
  below = [d for d in divisors if d <= wanted][-1:]
  above = [d for d in divisors if d > wanted][:1]
  return ' or '.join(str(d) for d in below + above)


def multiples_near(base: int, wanted: int) -> str:
  """The positive multiples of `base` on both sides of `wanted`, for a message ('24 or 32')."""
  below = wanted // base * base
  return ' or '.join(str(m) for m in (below, below + base) if m > 0)
