"""One line of a doctor's report."""

from dataclasses import dataclass
from typing import Any

OK, WARN, FAIL = 'ok', 'warn', 'FAIL'


@dataclass(frozen=True)
class Finding:
  """What was looked at, how it is, what to do about it.

  Args:
    item: one or two words; a report may have several findings of one item.
    verdict: OK; WARN: a run may suffer; FAIL: it would not start, or not go on.
    todo: what to do, unless OK.
    value: what has to be the same on all workers of a run, as JSON has it; None: nothing.
  """

  item: str
  verdict: str
  text: str
  todo: str = ''
  value: Any = None

  def __post_init__(self) -> None:
    assert self.verdict in (OK, WARN, FAIL) and (self.verdict == OK or self.todo), self


def one_line(text: str, most: int = 300) -> str:
  """`text` as one line that a terminal can show, whatever wrote it."""
  line = ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())
  return line if len(line) <= most else line[: most - 1] + '…'
