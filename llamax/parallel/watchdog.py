"""Gives a host up that makes no progress: a thread beside the training, which says who is stuck in what."""

import contextlib
import faulthandler
import operator
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llamax.core import exits
from llamax.core.config import WatchdogConfig
from llamax.parallel.peers import Peers, Record

TICK = 0.5  # seconds between looks
# Phase -> the budget in the config. Those of peers.LOCAL wait for no other process.
BUDGETS = {
  'start': 'compile_seconds',
  'restore': 'save_seconds',
  'compile': 'compile_seconds',
  'first_batch': 'first_step_seconds',
  'first_step': 'first_step_seconds',
  'data': 'step_seconds',
  'step': 'step_seconds',
  'log': 'step_seconds',
  'save': 'save_seconds',
  'write': 'save_seconds',
  'eval': 'eval_seconds',
  'sample': 'eval_seconds',
  'report': 'eval_seconds',
}
# Functions of jax, orbax, llamax in which a host waits for others.
WAITERS = {
  'block_until_ready',
  'device_get',
  '_value',
  '_multi_slice',
  'by_first',
  'sync_global_processes',
  'sync_global_devices',
  'wait_at_barrier',
  'wait_for_barrier',
  'blocking_key_value_get',
}
_GRACE = 20.0  # past a budget, until a thread that keeps Python's lock for good ends the process from C


class Watchdog:
  """`enter` and `phase` say what the training is at; the thread counts how long it has been at it.

  Time in which the thread itself did not run (Ctrl-Z, a closed laptop, a debugger) does not count.

  Args:
    folder: where the stacks of a stuck host go, as stacks-<process>.txt.
    peers: the other processes; they must agree on who is stuck before this one ends. None: there are none.
    clock, end: for tests.
  """

  def __init__(
    self,
    cfg: WatchdogConfig,
    folder: Path,
    peers: Peers | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    end: Callable[[int], Any] = os._exit,
  ):
    self._cfg, self._folder, self._peers = cfg, folder, peers
    self._clock, self._end = clock, end
    self._at: tuple[str, int] = ('start', -1)
    self._beside: tuple[str, Callable[[], int | None]] = ('write', lambda: None)
    self._spells: list[tuple[tuple[str, int], float]] = [(self._at, 0.0)]  # phase, counted seconds
    self._paces: deque[float] = deque(maxlen=101)  # seconds per step
    self._step_since = (-1, 0.0)
    self._step_budget = ''  # of the phase in which that step was first seen
    self._counted = 0.0
    self._last = clock()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._keep, name='watchdog', daemon=True)

  def __enter__(self) -> 'Watchdog':
    if self._cfg.enabled:
      if self._peers:
        self._peers.look = self.describe
        self._peers.before_end = self.dump
      self._thread.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._closed.set()
    if self._thread.is_alive():
      self._thread.join()
    if self._peers:
      faulthandler.cancel_dump_traceback_later()

  def enter(self, phase: str, step: int) -> None:
    """The training is at `phase` (one of BUDGETS) from now on; step: updates done or under way."""
    self._at = (phase, step)

  @contextlib.contextmanager
  def phase(self, phase: str) -> Iterator[None]:
    """`enter` for the length of a block; what it interrupts begins anew."""
    name, step = self._at
    self._at = (phase, step)
    try:
      yield
    finally:
      self._at = (name, step)

  def watch(self, phase: str, step: Callable[[], int | None]) -> None:
    """Something that goes on beside the training: `step()` says of which step, None while there is nothing."""
    self._beside = (phase, step)

  def describe(self, record: Record) -> None:
    """Writes into the record that the others see what the training is at, or what is past its budget."""
    over, record.phase, record.step, record.seconds = self._worst()
    record.stuck = over > 0
    record.waits = record.stuck and _waits(record.phase == self._at[0])

  def dump(self) -> None:
    """The stacks of all threads, to standard error, to a file beside the checkpoints."""
    with contextlib.suppress(Exception):
      sys.stderr.flush()
      faulthandler.dump_traceback(file=2, all_threads=True)
    # The disk may be what is stuck.
    writer = threading.Thread(target=self._dump_to_file, daemon=True)
    writer.start()
    writer.join(timeout=2)

  def _dump_to_file(self) -> None:
    rank = self._peers.rank if self._peers else 0
    with contextlib.suppress(OSError), open(self._folder / f'stacks-{rank}.txt', 'w') as file:
      file.write(f'{self._doing()}\n')
      file.flush()
      faulthandler.dump_traceback(file=file, all_threads=True)

  def _doing(self) -> str:
    record = Record(0, '', 0)
    self.describe(record)
    return record.doing

  def _keep(self) -> None:
    while not self._closed.wait(TICK):
      self.look()

  def look(self) -> None:
    """One look: counts the time since the last one, ends a process that is past its budget."""
    now = self._clock()
    # A gap means that this thread, likely the whole process, stood still.
    passed, self._last = min(now - self._last, 4 * TICK), now
    self._counted += passed
    phase, step = self._beside[0], self._beside[1]()
    now_at = [self._at] if step is None else [self._at, (phase, step)]
    before = self._spells
    self._spells = [
      # Of the training it is the object that counts: the same phase may have been entered again.
      (at, before[i][1] + passed) if i < len(before) and same(before[i][0], at) else (at, 0.0)
      for i, (at, same) in enumerate(zip(now_at, (operator.is_, operator.eq), strict=False))
    ]
    self._note_pace(*self._at)
    over, phase, step, seconds = self._worst()
    if self._peers and over < _GRACE:
      # What this thread can no longer do while another keeps Python's lock, C does.
      faulthandler.dump_traceback_later(_GRACE - over, file=2, exit=True)
    elif over > 0:
      self._alone(Record(0, '', 0, phase=phase, step=step, seconds=seconds))

  def _note_pace(self, phase: str, step: int) -> None:
    before, since = self._step_since
    if step == before:
      return
    # A step that compiled, or came after a restore, says nothing of the next ones.
    if 0 <= before < step and BUDGETS[phase] == self._step_budget == 'step_seconds':
      self._paces.append((self._counted - since) / (step - before))
    self._step_since, self._step_budget = (step, self._counted), BUDGETS[phase]

  def _alone(self, record: Record) -> None:
    self.dump()
    told = f'llamax: this process is stuck {record.doing}; the stacks are in {self._folder}/stacks-0.txt'
    with contextlib.suppress(OSError):
      os.write(2, f'{told}. The same command goes on from the newest checkpoint.\n'.encode())
    with contextlib.suppress(Exception):
      sys.stdout.flush()
    self._end(exits.LOST)

  def _worst(self) -> tuple[float, str, int, float]:
    """(seconds past its budget, phase, step, seconds in it): of the training, or of what is past its budget."""
    spells = [(seconds - self._budget(at[0]), *at, seconds) for at, seconds in self._spells]
    late = max(spells)
    return late if late[0] > 0 else spells[0]

  def _budget(self, phase: str) -> float:
    budget = getattr(self._cfg, BUDGETS[phase])
    if BUDGETS[phase] == 'step_seconds' and self._paces:
      budget = max(budget, self._cfg.step_factor * statistics.median(self._paces))
    return budget


def _waits(training: bool) -> bool:
  """Whether the thread of the training (False: one of the others) stands in a call that waits for others."""
  frames = sys._current_frames()
  main = threading.main_thread().ident
  for ident, frame in frames.items():
    current: Any = frame if (ident == main) == training else None
    while current is not None:
      if current.f_code.co_name in WAITERS:
        return True
      current = current.f_back
  return False
