"""When a run stops, when it saves by the clock: each process is told by itself, all act at one step."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax

from llamax.checkpoint.manager import Checkpoints
from llamax.parallel.agreement import Agreement
from llamax.train.early import Early

_NUMBERS = ('signal', 'age', 'clock', 'save', 'saving')  # the times in tenths of a second
_MARGIN = 1.25  # what a save may take longer than the last one
_SPARE_SECONDS = 2.0  # for the steps until it begins, the end of the process after it


@dataclasses.dataclass(frozen=True)
class Wishes:
  """What all processes know alike before a step.

  signal: SIGINT or SIGTERM, come to any of them; 0: none. now: seconds on the clock of process 0, from its
  start. time_to_save: whether a save fits in what is left of checkpoint.grace_seconds. saving: whether a save
  is under way on any of them.
  """

  signal: int
  now: float
  time_to_save: bool
  saving: bool


class Stopping:
  """Asked for its `wishes` once per step; `tell` comes after each step that was dispatched."""

  def __init__(
    self,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    grace_seconds: float,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._agreement = Agreement(mesh, _NUMBERS)
    self._checkpoints, self._grace, self._clock = checkpoints, grace_seconds, clock
    self._begun = clock()
    self._signal, self._signalled = 0, 0.0
    self._alone = jax.process_count() == 1

  def note(self, number: int) -> None:
    """From a signal handler: `number` has come to this process."""
    if not self._signal:
      self._signalled = self._clock()
    self._signal = max(self._signal, number)

  def tell(self, after: Any) -> None:
    """Tells the other processes. after: an array of the step that was just dispatched."""
    now, first = self._clock(), jax.process_index() == 0
    age = now - self._signalled if self._signal else 0.0
    numbers = {
      'signal': self._signal,
      'age': _tenths(age),
      'clock': _tenths(now - self._begun) if first else 0,
      'save': _tenths(self._checkpoints.last_seconds or 0.0) if first else 0,
      'saving': 0 if self._checkpoints.finished() else 1,
    }
    self._agreement.send(numbers, after)

  def wishes(self) -> Wishes:
    if self._alone:
      self.tell(None)
    agreed = self._agreement.read()
    needed = _MARGIN * agreed['save'] / 10 + _SPARE_SECONDS
    known = agreed['save'] > 0
    return Wishes(
      signal=agreed['signal'],
      now=agreed['clock'] / 10,
      # Ctrl-C has all the time it wants; a first save is tried.
      time_to_save=agreed['signal'] != signal.SIGTERM
      or not known
      or agreed['age'] / 10 + needed <= self._grace,
      saving=agreed['saving'] > 0,
    )

  def asked(self, after: Any) -> bool:
    """Whether any process was asked to stop, for work between two steps: all come here alike, then `tell`.

    Args:
      after: an array of the work that was just dispatched.
    """
    asked = self.wishes().signal != 0
    self.tell(after)
    return asked


def _tenths(seconds: float) -> int:
  return min(int(10 * seconds), 2**31 - 1)


@contextmanager
def signals(note: Callable[[int], None], say: Callable[[str], None]) -> Iterator[None]:
  """Hands SIGINT, SIGTERM to `note`; a second Ctrl-C ends the process at once."""

  def handle(number, frame):
    del frame
    note(number)
    more = '; once more ends at once' if number == signal.SIGINT else ''
    if more:
      signal.signal(number, before[number])
    with suppress(RuntimeError):  # The signal came amid another line.
      say(f'{signal.Signals(number).name}: finishing this step, then saving{more}')

  try:
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
  except ValueError:  # Not the main thread (a notebook's server): signals are not ours to take.
    yield
    return
  early = before[signal.SIGTERM]
  if isinstance(early, Early):
    before[signal.SIGTERM] = early.hand_over()
    if early.asked:  # What it raised was lost on the way.
      note(signal.SIGTERM)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
