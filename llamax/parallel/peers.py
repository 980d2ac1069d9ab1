"""What the processes of a run know of each other beside their programs: who lives, where, doing what.

Each one writes a record into the coordinator's key-value store every second. Process 0 reads them all, answers
with one verdict: who has gone silent, whether the run must end because of whom. Silence alone ends nothing (a
thread may hold Python's lock for long): jax's own heartbeat does, then the verdict says the name.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from llamax.core import exits
from llamax.core.errors import UserError

PERIOD = 1.0  # seconds between records
SILENT_SECONDS = 3.5  # without a record: worth a name when something has broken
_BROKEN_SECONDS = 12.0  # an error of a connection waits so long for the name of who broke it
_RECORD, _VERDICT = 'llamax/peer/', 'llamax/verdict'
# What jax raises where another process has gone away, in its own words.
_BROKEN = re.compile(
  r'gloo|UNAVAILABLE|DEADLINE|ABORTED|CANCELLED|connection|socket|coordination|heartbeat', re.I
)
# Phases in which a process waits for nobody: who is in one while others wait is the one they wait for.
LOCAL = ('start', 'first_batch', 'data', 'log', 'report', 'write')


@dataclasses.dataclass
class Record:
  """One process, as it last wrote of itself."""

  rank: int
  host: str
  pid: int
  beat: int = 0
  phase: str = 'start'
  step: int = -1
  seconds: float = 0.0  # in this phase
  stuck: bool = False  # past the budget of the phase
  waits: bool = False  # ... in a call that waits for others
  broken: str | None = None  # an error that another process may be the cause of
  ended: str | None = None  # ... that is its own
  left: bool = False  # done, in good order

  def __str__(self) -> str:
    return f'process {self.rank} (host {self.host}, pid {self.pid})'

  @property
  def doing(self) -> str:
    where = 'before the first step' if self.step < 0 else f'step {self.step}'
    return f'in phase {self.phase!r}, {where}, for {self.seconds:.0f} s'


def blame(records: dict[int, Record], silent: dict[int, float]) -> list[int]:
  """Whom the others wait for, when somebody is stuck: who no longer answers, else who is behind, else who is in
  a phase of its own, else whose stack waits for nobody. All of them where nothing tells them apart.
  """
  present = {rank: r for rank, r in records.items() if not r.left}
  unheard = [rank for rank in present if rank in silent]
  if unheard:
    return unheard
  behind = min(r.step for r in present.values())
  last = [rank for rank, r in present.items() if r.step == behind]
  alone = [rank for rank in last if present[rank].phase in LOCAL] or last
  return [rank for rank in alone if not present[rank].waits] or alone


class Peers:
  """This process among the `count` of the run; `start` begins the records, `close` ends them in good order.

  Args:
    client: of jax's coordinator. address: HOST:PORT of the coordinator, to see whether process 0 still is.
    end: ends this process at once with a code; never returns.
  """

  def __init__(self, client: Any, rank: int, count: int, address: tuple[str, int], end=os._exit):
    self.rank, self.count = rank, count
    self.record = Record(rank, socket.gethostname(), os.getpid())
    self.look: Callable[[Record], None] = lambda record: None  # fills in phase, step, seconds, stuck
    self.before_end: Callable[[], None] = lambda: None  # for a verdict about a stuck process: the stacks
    self.at_end: list[Callable[[], object]] = []  # before this process ends out of turn
    self._client, self._address, self._end = client, address, end
    self._closed = threading.Event()
    self._ending = threading.Lock()
    self._thread = threading.Thread(target=self._keep, name='peers', daemon=True)
    self._verdict: dict[str, Any] = {}
    self._contact = time.monotonic()  # when the coordinator last answered
    self._heard: dict[int, tuple[int, float]] = {}  # rank -> (beat, when it came)
    self._alarm: float | None = None  # since when process 0 knows of trouble

  def start(self) -> None:
    self._write()
    if self.rank != 0:  # Its name is to be known before it can die.
      first = self._client.blocking_key_value_get(f'{_RECORD}0', 60_000)
      self._verdict['first'] = str(Record(**json.loads(first)))
    self._thread.start()

  def close(self) -> None:
    """Before the coordinator is shut down: from now on nobody waits for records of this process."""
    if not self._closed.is_set():
      self._closed.set()
      self._thread.join(timeout=5)
      self.record.left = True
      with contextlib.suppress(Exception):
        self._write()

  def fail(self, error: BaseException) -> None:
    """Ends this process because of `error`, once the others know.

    An error of a connection waits until it is known who broke it: then the verdict ends this process.
    """
    told = f'{type(error).__name__}: {error}'.splitlines()[0][:500]
    own = isinstance(error, UserError | exits.Stop | KeyboardInterrupt) or not _BROKEN.search(str(error))
    if own:
      self.record.ended = told
    else:
      self.record.broken = told
    with contextlib.suppress(Exception):
      self._write()
      if own and self.rank == 0:
        self._publish(f'{self.record} ended: {told}')
    if not own:
      time.sleep(_BROKEN_SECONDS)  # The thread of records ends the process meanwhile.
    elif self.rank == 0:
      time.sleep(2.5 * PERIOD)  # The verdict goes with this process.
    self._leave(_code_of(error), error)

  def _leave(self, code: int, error: BaseException) -> None:
    if isinstance(error, UserError | exits.Stop):
      print(f'llamax: {error}', file=sys.stderr)
    else:
      traceback.print_exception(error)
    self.quit(code)

  def quit(self, code: int) -> None:
    """Ends the process without jax's farewell, which would wait for processes that no longer come."""
    with self._ending:
      # Any of it may be stuck itself.
      last = threading.Thread(target=self._last_acts, daemon=True)
      last.start()
      last.join(timeout=3)
      for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
          stream.flush()
      self._end(code)

  def _last_acts(self) -> None:
    for act in self.at_end:
      with contextlib.suppress(Exception):
        act()

  def lost(self, why: str) -> None:
    """Says `why` the run cannot go on, then ends this process with code LOST."""
    if self.record.ended is None:
      _shout(f'llamax: {why}. The same command, on all hosts, goes on from the newest checkpoint.')
      self.quit(exits.LOST)

  def aborting(self) -> None:
    """jaxlib is about to abort this process: ends it with a name where one is known. Asks nobody."""
    if self._verdict.get('stop'):
      self.lost(self._verdict['stop'])
    elif self.rank != 0 and (time.monotonic() - self._contact > SILENT_SECONDS or not _answers(self._address)):
      self.lost(self._first_gone())
    elif self._verdict.get('silent'):
      self.lost(f'{", ".join(self._verdict["silent"])}: gone, or cut off')
    faulthandler.dump_traceback(all_threads=True)

  def _first_gone(self) -> str:
    return (
      f'{self._verdict.get("first", "process 0")}: gone, or cut off, with the coordinator at {self._address[0]}'
    )

  def _keep(self) -> None:
    while not self._closed.wait(PERIOD):
      try:
        self._tick()
      except Exception:  # of whichever kind jaxlib makes of a lost connection
        if self.rank != 0 and not self._closed.is_set() and not _answers(self._address):
          self.lost(self._first_gone())

  def _tick(self) -> None:
    self.record.beat += 1
    self.look(self.record)
    self._write()
    if self.rank == 0:
      self._judge()
    else:
      with contextlib.suppress(KeyError):
        self._obey(json.loads(_get(self._client, _VERDICT)))
    self._contact = time.monotonic()

  def _obey(self, verdict: dict[str, Any]) -> None:
    fresh = verdict['beat'] != self._verdict.get('beat')
    if fresh:
      self._heard[0] = (verdict['beat'], time.monotonic())
    self._verdict = verdict
    if verdict['stop']:
      self._stop(verdict['stop'], verdict['stuck'])
    elif self.record.stuck and time.monotonic() - self._heard[0][1] > SILENT_SECONDS:
      # Its threads stand still while jaxlib, beside them, still says that it lives.
      self._stop(f'{verdict["first"]} no longer answers; {self.record} waits {self.record.doing}', True)

  def _stop(self, why: str, stuck: bool) -> None:
    if stuck:
      self.before_end()
    self.lost(why)

  def _judge(self) -> None:
    now, records = time.monotonic(), self._read()
    for rank, record in records.items():
      if self._heard.get(rank, (-1, 0.0))[0] != record.beat:
        self._heard[rank] = (record.beat, now)
    silent = {
      rank: now - since
      for rank, (_, since) in self._heard.items()
      if now - since > SILENT_SECONDS and not records[rank].left
    }
    self._verdict = {
      'beat': self.record.beat,
      'first': str(self.record),
      'silent': [str(records[rank]) for rank in silent],
      'stop': None,
      'stuck': False,
    }
    why, stuck = self._trouble(records, silent, now)
    if why is None:
      self._client.key_value_set(_VERDICT, json.dumps(self._verdict), allow_overwrite=True)
      return
    self._publish(why, stuck)
    if stuck:
      self.before_end()
    time.sleep(2.5 * PERIOD)  # The others read it from this process.
    self.lost(why)

  def _trouble(
    self, records: dict[int, Record], silent: dict[int, float], now: float
  ) -> tuple[str | None, bool]:
    """(why the run must end, or None; whether somebody is stuck)."""
    ended = [f'{r} ended: {r.ended}' for r in records.values() if r.ended]
    if ended:
      return '; '.join(ended), False
    broken = [r for r in records.values() if r.broken]
    stuck = [r for r in records.values() if r.stuck]
    if not broken and not stuck:
      self._alarm = None
      return None, False
    if broken and silent:
      names = ', '.join(str(records[rank]) for rank in silent)
      return f'{names}: gone, or cut off; {broken[0]} found its connection broken', False
    self._alarm = self._alarm or now
    if stuck and now - self._alarm > SILENT_SECONDS:  # All records are of after the alarm, or silent.
      guilty = blame(records, silent)
      named = '; '.join(
        f'{records[rank]} {"no longer answers; it was" if rank in silent else "is stuck"} {records[rank].doing}'
        for rank in guilty[:8]
      )
      return named, True
    if broken and now - self._alarm > _BROKEN_SECONDS / 2:
      return f'{broken[0]} failed: {broken[0].broken}', False
    return None, False

  def _publish(self, why: str, stuck: bool = False) -> None:
    self._verdict = self._verdict | {'beat': self.record.beat, 'first': str(self.record)}
    self._verdict |= {'stop': why, 'stuck': stuck}
    self._client.key_value_set(_VERDICT, json.dumps(self._verdict), allow_overwrite=True)

  def _write(self) -> None:
    record = json.dumps(dataclasses.asdict(self.record))
    self._client.key_value_set(f'{_RECORD}{self.rank}', record, allow_overwrite=True)

  def _read(self) -> dict[int, Record]:
    found = (Record(**json.loads(text)) for _, text in self._client.key_value_dir_get(_RECORD))
    return {record.rank: record for record in found}


def _code_of(error: BaseException) -> int:
  if isinstance(error, exits.Stop):
    return error.code
  if isinstance(error, KeyboardInterrupt):
    return exits.INTERRUPTED
  if isinstance(error, UserError):
    return exits.MISTAKE
  return exits.LOST if _BROKEN.search(str(error)) else exits.BUG


def _get(client: Any, key: str) -> str:
  """The value of a key; KeyError when nobody has written it yet."""
  try:
    return client.key_value_try_get(key)
  except Exception as error:
    if 'NOT_FOUND' in str(error):
      raise KeyError(key) from None
    raise


def _answers(address: tuple[str, int]) -> bool:
  try:
    socket.create_connection(address, timeout=2).close()
  except OSError:
    return False
  return True


def _shout(text: str) -> None:
  """To standard error past Python's buffers: jaxlib may end this process at any moment."""
  with contextlib.suppress(OSError):
    os.write(2, f'{text}\n'.encode())
