"""Starts the runs of a sweep on this machine, a few at a time, until none is left to start."""

import dataclasses
import functools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

from llamax.checkpoint.holder import now_utc
from llamax.core import exits
from llamax.core.storage import needed
from llamax.observe.progress import human_time
from llamax.sweep.display import Display, Pace, status_line
from llamax.sweep.ending import OUTPUT, Endings
from llamax.sweep.locks import Lock, claim
from llamax.sweep.plan import PlannedRun, run_folder
from llamax.sweep.prune import Policy
from llamax.sweep.slots import Slot
from llamax.sweep.state import (
  FAILED,
  FINISHED,
  PRUNED,
  STOPPED,
  SweepLedger,
  ledger_states,
  to_be_ended,
)
from llamax.sweep.watch import Watched, last_words
from llamax.train.child import Child, deaf, listening
from llamax.train.supervise import in_words

_TICK_SECONDS = 0.1
_LOOK_SECONDS = 2.0  # between looks at what the runs have written
_LAST_LINES = 5  # of a failed run's log


class Queue(Protocol):
  """Where runs come from: a plan (planned.py) or a study (search.py)."""

  def __len__(self) -> int: ...
  def names(self) -> list[str]: ...
  def next(self, skip: Collection[str]) -> tuple[PlannedRun, Lock] | None: ...
  def ended(self, name: str, state: str, watched: Watched) -> None: ...
  def why_prune(self, watched: Watched) -> str | None: ...


@dataclasses.dataclass
class Active:
  """A run under way."""

  run: PlannedRun
  slot: Slot
  child: Child
  lock: Lock
  watched: Watched
  attempt: int
  since: float
  pruned: bool = False


class Runner:
  """Keeps `slots` busy with the runs of `queue`; what it knows when it starts anew is on the disk.

  Args:
    command: a run's name, its point -> what is to be started, which must take SIGTERM as a wish to stop.
    objective: what `queue` judges by, in the runs' metrics.
    policy: says why a run is given up.
    num_steps: those of a run. most: runs to start, then no more.
    end: a run's name -> what ends one that outlives its command, a job elsewhere (ending.py); None: a SIGTERM
      to the command does.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    queue: Queue,
    slots: Sequence[Slot],
    *,
    command: Callable[[PlannedRun], Sequence[str]],
    ledger: SweepLedger,
    display: Display,
    objective: str,
    policy: Policy,
    num_steps: Callable[[str], int],
    pace: Pace,
    most: int | None = None,
    end: Callable[[str], Sequence[Sequence[str]]] | None = None,
  ):
    self._folder, self._queue, self._free = Path(folder), queue, list(slots)
    self._command, self._ledger, self._display = command, ledger, display
    self._objective, self._policy = objective, policy
    self._num_steps, self._pace, self._most = num_steps, pace, most
    self._endings = Endings(folder, end, display.say, ledger.given_back) if end else None
    self._active: list[Active] = []
    self._left: set[str] = set()  # ended by someone else's wish: not to be started again by us
    self._asked: list[int] = []
    self._looked = 0.0
    self._started = 0

  def run(self) -> int | None:
    """Returns when all that can be started has ended: the signal that asked to stop, None for none.

    Raises:
      UserError, Stop: a run cannot be started, the ledger cannot be written; then all runs have been stopped.
    """
    with listening(functools.partial(_note, self._asked)):
      try:
        self._loop()
      finally:
        self._stop_all()
    return self._asked[0] if self._asked else None

  def _loop(self) -> None:
    heard, more, searched = 0, True, 0.0
    if self._endings is not None:  # Whoever gave them up was killed before they had ended.
      for name in to_be_ended(self._folder, self._queue.names()):
        if (lock := claim(self._folder, name)) is not None:  # Else someone is about it.
          self._endings.begin(name)
          lock.release()
    while self._active or self._endings or (more and not self._asked):
      if len(self._asked) > heard:
        heard = len(self._asked)
        self._pass_on(self._asked[-1], again=heard > 1)
      if self._reap():
        more = True
      if self._endings:
        self._endings.look([active.run.name for active in self._active])
      now = time.monotonic()
      # Another process that shares the work may have left a run.
      if self._free and not self._asked and (more or now - searched > _LOOK_SECONDS):
        more, searched = self._start_next(), now
      if now - self._looked > _LOOK_SECONDS:
        self._looked = now
        self._look()
      if self._active or self._endings:
        time.sleep(_TICK_SECONDS)

  def _start_next(self) -> bool:
    """Starts a run in a free slot; False: there is none to start."""
    if self._most is not None and self._started >= self._most:
      return False
    found = self._queue.next(self._left | {active.run.name for active in self._active})
    if found is None:
      return False
    run, lock = found
    slot = self._free.pop(0)
    before = ledger_states(self._folder, [run.name])[run.name]
    attempt, watched = before.attempts + 1, Watched(self._folder, run.name, self._objective)
    if before.pruned_at is not None:
      watched.look()
      watched.judged_after = max(before.pruned_at, watched.step)
    folder = run_folder(self._folder, run.name)
    command = self._command(run)
    with needed(folder):
      folder.mkdir(parents=True, exist_ok=True)
      log = open(folder / OUTPUT, 'ab', buffering=0)  # noqa: SIM115
    with log, deaf(), slot.here():
      log.write(f'--- attempt {attempt}, {now_utc()}\n'.encode())
      # Before it starts: who finds no such line may start it.
      self._ledger.started(run.name, attempt, slot.index)
      child = Child(command, environment={**os.environ, **slot.environment}, output=log.fileno())
    self._started += 1
    self._active.append(Active(run, slot, child, lock, watched, attempt, time.monotonic()))
    again = f' (attempt {attempt})' if attempt > 1 else ''
    self._display.say(f'{run.name}: started{again}')
    return True

  def _reap(self) -> bool:
    """Takes note of runs that have ended; False: none has."""
    ended = [(active, code) for active in self._active if (code := active.child.poll()) is not None]
    for active, code in ended:
      active.child.close(kill_leftovers=True)
      self._active.remove(active)
      self._free = sorted([*self._free, active.slot], key=lambda slot: slot.index)
      self._note_end(active, code)
      active.lock.release()
    return bool(ended)

  def _note_end(self, active: Active, code: int) -> None:
    name, seconds = active.run.name, time.monotonic() - active.since
    active.watched.look()
    state = FAILED
    if code == exits.DONE:
      state = FINISHED
    elif active.pruned:
      state = PRUNED
    elif why := self._policy(active.watched, code):
      state = PRUNED
      self._ledger.pruned(name, active.watched.step, why)
      self._display.say(f'{name}: given up, {why}')
    elif code in (exits.RESUME, exits.INTERRUPTED, exits.FENCED) or (self._asked and code < 0):
      state = STOPPED
      self._left.add(name)
    self._ledger.ended(name, active.attempt, code, seconds, state)
    self._queue.ended(name, state, active.watched)
    loss = active.watched.result
    result = f', {self._objective} {loss:.4f}' if loss is not None and state == FINISHED else ''
    self._display.say(f'{name}: {state} after {human_time(seconds)}{result}')
    if state == FAILED:
      log = run_folder(self._folder, name) / OUTPUT
      said = ''.join(f'\n    {line}' for line in last_words(log, _LAST_LINES))
      self._display.say(f'  {in_words(code)}; {log} ends with:{said}')

  def _look(self) -> None:
    """Reads what the runs have written; gives up those that are to be."""
    for active in self._active:
      if not active.watched.look() or active.pruned or self._asked:
        continue
      why = self._policy(active.watched) or self._queue.why_prune(active.watched)
      if why:
        # First on the disk: a run that was stopped for it must not be started again.
        self._ledger.pruned(active.run.name, active.watched.step, why, elsewhere=self._endings is not None)
        active.pruned = True
        self._give_up(active)
        self._display.say(f'{active.run.name}: given up, {why}')
    self._show()

  def _give_up(self, active: Active) -> None:
    if self._endings is None:
      active.child.signal(signal.SIGTERM)
    else:  # Its own command ends once the job has.
      self._endings.begin(active.run.name)

  def _show(self) -> None:
    states = ledger_states(self._folder, self._queue.names()).values()
    for state in states:
      if state.state in (FINISHED, PRUNED, FAILED):
        self._pace.over(state.name)
    for active in self._active:
      self._pace.seen(active.run.name, min(1.0, active.watched.step / self._num_steps(active.run.name)))
    counted = Counter(state.state for state in states)
    running = [(active.watched, self._num_steps(active.run.name)) for active in self._active]
    done = counted[FINISHED] + counted[PRUNED]
    left = self._pace.seconds_left()
    self._display.status(status_line(done, len(self._queue), counted[FAILED], running, left))

  def _pass_on(self, number: int, again: bool) -> None:
    names = ', '.join(active.run.name for active in self._active)
    if names:
      how = 'ending at once' if again else 'runs save, then end; the same command goes on'
      if self._endings is not None:
        how = 'the jobs go on; the same command follows them again'
      self._display.say(f'{signal.Signals(number).name}: {how} ({names})')
    for active in self._active:
      if again:
        active.child.kill()
      else:
        active.child.signal(number)
    if again and self._endings:
      self._endings.drop()
    elif self._endings:
      self._display.say('waiting for the jobs that were given up to end; asked again: not waiting')

  def _stop_all(self) -> None:
    """Whatever went wrong here: no run stays behind, each has its time to save."""
    for active in self._active:
      active.child.signal(signal.SIGTERM)
    for active in self._active:
      active.child.wait()
      active.child.close(kill_leftovers=True)
      active.lock.release()
    if self._endings:
      self._endings.wait()


def _note(asked: list[int], number: int, frame: object) -> None:
  del frame
  asked.append(number)
