"""What a sweep shows while it goes on: lines that stay, below them one that is redrawn on a terminal."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from llamax.observe.progress import human_time
from llamax.sweep.watch import Watched

_QUIET_SECONDS = 60.0  # between lines of status where none can be redrawn


class Display:
  """Texts on a stream, standard output unless another is given."""

  def __init__(self, stream: TextIO | None = None):
    self._stream = stream or sys.stdout
    self._redraws = self._stream.isatty()
    self._status, self._told = '', time.monotonic()

  def say(self, text: str) -> None:
    """A line that stays."""
    self._clear()
    self._write(text + '\n')
    if self._redraws:
      self._write(self._status)

  def status(self, text: str) -> None:
    """How things stand: replaces what was said before, or comes once a minute."""
    if self._redraws:
      self._clear()
      self._status = text[: shutil.get_terminal_size().columns - 1]
      self._write(self._status)
    elif time.monotonic() - self._told >= _QUIET_SECONDS:
      self._told = time.monotonic()
      self._write(text + '\n')

  def close(self) -> None:
    self._clear()
    self._status = ''

  def _clear(self) -> None:
    if self._status:
      self._write('\r\x1b[K')

  def _write(self, text: str) -> None:
    encoding = getattr(self._stream, 'encoding', None) or 'utf-8'
    self._stream.write(text.encode(encoding, 'replace').decode(encoding))
    self._stream.flush()


class Pace:
  """How long the rest of a sweep takes, by what was done since it was started.

  work: FLOPs of each run as far as they are known; of the others, the mean.
  """

  def __init__(self, work: Mapping[str, float], total: int):
    self._mean = sum(work.values()) / len(work) if work else 1.0
    self._work, self._total = work, total
    self._first: dict[str, float] = {}  # share of the run that was done when it was first seen
    self._share: dict[str, float] = {}
    self._start = time.monotonic()

  def seen(self, name: str, share: float) -> None:
    """`share` of a run, from 0 to 1, is done."""
    self._first.setdefault(name, share)
    self._share[name] = share

  def over(self, name: str) -> None:
    """It needs no more work, however far it came."""
    self._share[name] = 1.0

  def seconds_left(self) -> float | None:
    """None while nothing can be said."""
    done = sum(self._of(name) * (self._share[name] - first) for name, first in self._first.items())
    if done <= 0:
      return None
    known = set(self._share) | set(self._work)
    whole = sum(map(self._of, known)) + self._mean * max(0, self._total - len(known))
    left = whole - sum(self._of(name) * share for name, share in self._share.items())
    return left * (time.monotonic() - self._start) / done

  def _of(self, name: str) -> float:
    return self._work.get(name, self._mean)


def status_line(
  done: int, total: int, failed: int, active: Sequence[tuple[Watched, int]], left: float | None
) -> str:
  """'3/24 done, 1 failed | learning_rate=0.001 340/1000 loss 3.21 | ... | 14m02s left'."""
  parts = [f'{done}/{total} done' + (f', {failed} failed' if failed else '')]
  for watched, num_steps in active:
    loss = watched.latest.get('loss')
    told = f' loss {loss:.4f}' if loss is not None else ''
    parts.append(f'{watched.name} {watched.step}/{num_steps}{told}')
  if left is not None:
    parts.append(f'{human_time(left)} left')
  return ' | '.join(parts)
