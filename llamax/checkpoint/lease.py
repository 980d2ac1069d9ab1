"""One writer per run directory: who may write there is the owner of the newest lease.

A lease file is made with O_CREAT | O_EXCL, so a token has one owner; all older ones are fenced. Neither hard
links nor locks are needed. Wall clocks decide nothing: a holder is judged by its process where that can be
seen, else by whether its count of renewals moves while we watch.
"""

import contextlib
import dataclasses
import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from llamax.checkpoint import lease_folder
from llamax.checkpoint.holder import Holder, Process, here, new_identity, now_utc
from llamax.core import exits
from llamax.core.errors import UserError

_RENEWALS = 6  # per `seconds`: so many in a row must fail before a lease expires
# The disk is well, the user's rights or the path are not.
_MISTAKES = (
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.ENOTDIR,
  errno.EEXIST,
  errno.ENAMETOOLONG,
  errno.ELOOP,
)
_TAKING_SECONDS = 2.0  # from the birth of a lease file until its text is there, at most


@dataclasses.dataclass(frozen=True)
class Senses:
  """What a process knows of itself, of time."""

  process: Process = dataclasses.field(default_factory=here)
  clock: Callable[[], float] = time.monotonic  # seconds since boot
  wall: Callable[[], float] = time.time
  sleep: Callable[[float], None] = time.sleep


class Lease:
  """The right to write in a run directory, renewed by a thread until `release`."""

  def __init__(self, folder: Path, holder: Holder, senses: Senses):
    self.token = holder.token
    self.holder = holder
    self._folder = folder
    self._senses = senses
    self._renewed = senses.clock()
    self._stop: exits.Stop | None = None
    self._released = False
    self._lock = threading.Lock()
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._keep, name='lease', daemon=True)

  @property
  def lost(self) -> str | None:
    """Why this process may write no more; None: it may. Costs a look at the clock."""
    if self._stop is None and self._overdue() and not self._released:
      # The process was stopped for a while (Ctrl-Z), or its thread is stuck in a dead file system.
      self.renew(wait=min(1.0, self.holder.seconds))
      if self._overdue():
        self._lose(
          exits.LOST,
          f'the lease on {self._folder.parent} could not be renewed for {self.holder.seconds:g} s, so that '
          'another run may take it: is the disk gone? The same command goes on',
        )
    return None if self._stop is None else str(self._stop)

  def require(self) -> None:
    """Reads the disk; comes before anything is written that another process could write too.

    Raises:
      Stop: FENCED, another process has taken over, or LOST, the lease could not be renewed in time.
      OSError: the disk cannot be read.
    """
    if self._stop is None:
      self._look()
    if self.lost and self._stop is not None:
      raise exits.Stop(self._stop.code, str(self._stop))

  def renew(self, wait: float = -1) -> None:
    """Says on disk that this process lives, notes when it holds no more; the thread does it by itself.

    Args:
      wait: seconds for another renewal that is under way; -1: as long as it takes.
    """
    if not self._lock.acquire(timeout=wait):
      return
    try:
      if self._stop is None and not self._released:
        now = self._senses.clock()
        with contextlib.suppress(OSError):
          self._write()
          self._renewed = now
        with contextlib.suppress(OSError):
          self._look()
    finally:
      self._lock.release()

  def release(self) -> None:
    """Lets the next one in at once. Never raises: a lease that cannot be released expires."""
    self._end.set()
    if self._lock.acquire(timeout=5):
      if self._stop is None and not self._released:
        with contextlib.suppress(OSError):
          self._write(released=True)
      self._released = True
      self._lock.release()
    if self._thread.is_alive():
      self._thread.join(timeout=5)

  def __enter__(self) -> 'Lease':
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.release()

  def start(self) -> 'Lease':
    """Begins to renew."""
    self._thread.start()
    return self

  def _keep(self) -> None:
    while not self._end.wait(self.holder.seconds / _RENEWALS) and self._stop is None:
      self.renew()

  def _overdue(self) -> bool:
    return self._senses.clock() - self._renewed > self.holder.seconds

  def _write(self, released: bool = False) -> None:
    holder = dataclasses.replace(
      self.holder,
      renewals=self.holder.renewals + 1,
      renewed=self._senses.wall(),
      renewed_monotonic=self._senses.clock(),
      released=released,
    )
    lease_folder.overwrite(self._folder, holder)
    self.holder = holder

  def _look(self) -> None:
    """Notes the loss when the newest lease on disk is not ours."""
    newest, found = lease_folder.newest(self._folder), None
    if newest is not None:
      with contextlib.suppress(FileNotFoundError):
        found = lease_folder.read(self._folder, newest)
    if newest == self.token and (found is None or found.identity == self.holder.identity):
      return
    if newest is None or newest < self.token:
      what = f'the lease file {lease_folder.path_of(self._folder, self.token)} has been deleted'
    else:
      what = f'{self._folder.parent} has been taken over by {found or "another process"}'
    stands = f'this run ({self.holder}) ends, without writing there any more; what it had saved stands'
    self._lose(exits.FENCED, f'{what}; {stands}')

  def _lose(self, code: int, message: str) -> None:
    if not self._released and self._stop is None:
      self._stop = exits.Stop(code, message)


def acquire(
  workdir: str | os.PathLike[str],
  seconds: float,
  say: Callable[[str], None] = print,
  *,
  senses: Senses | None = None,
  background: bool = True,
) -> Lease:
  """Takes the right to write in `workdir`; what an earlier holder was writing is renamed into the trash.

  Where the last holder's process can be seen (same host, same boot), it decides at once. Elsewhere its file is
  watched for as long as it may go without a renewal.

  Args:
    seconds: after so long without a renewal others may take this lease.
    say: told about waiting, taking over.
    senses: of a test.
    background: False: the caller calls `Lease.renew`.

  Raises:
    UserError: another process holds it (named by host, process, start), or this user may not write there.
    Stop: STORAGE, the disk cannot be written now.
  """
  folder, checkpoints, senses = Path(workdir, 'lease'), Path(workdir, 'checkpoints'), senses or Senses()
  lease = None
  try:
    lease = Lease(folder, _take(folder, checkpoints, seconds, senses, say), senses)
    # Not before the new lease is there: the old holder could begin anew.
    lease_folder.fence_older(checkpoints, lease.token)
  except OSError as error:
    if lease:
      lease.release()
    where = f'workdir {str(workdir)!r} cannot be taken ({error.strerror or error})'
    # Where even `mkdir -p` finds nothing to be in, as in /proc, no later try does.
    nowhere = error.errno == errno.ENOENT and not os.path.exists(workdir)
    if nowhere or error.errno in _MISTAKES:
      raise UserError(f'{where}; give a folder that you may write to') from None
    raise exits.Stop(exits.STORAGE, f'{where}: is the disk full, or gone? The same command goes on') from None
  lease_folder.remove_older(folder, lease.token)
  return lease.start() if background else lease


def _take(
  folder: Path, checkpoints: Path, seconds: float, senses: Senses, say: Callable[[str], None]
) -> Holder:
  """Makes the newest lease once the one before it is free. Raises UserError, OSError."""
  while True:
    folder.mkdir(parents=True, exist_ok=True)
    newest = lease_folder.newest(folder)
    if newest is not None:
      _wait_until_free(folder, newest, senses, say)
    # Above the writers too: someone may have deleted the leases.
    token = max([newest or 0, *lease_folder.writers(checkpoints)]) + 1
    holder = Holder(
      token, senses.process, now_utc(), seconds, 0, senses.wall(), senses.clock(), identity=new_identity()
    )
    if not lease_folder.create(folder, holder):
      continue
    if lease_folder.newest(folder) == token:
      return holder
    # Asleep since the look at the newest one, while others came, went, tidied up.
    lease_folder.path_of(folder, token).unlink(missing_ok=True)


def _wait_until_free(folder: Path, token: int, senses: Senses, say: Callable[[str], None]) -> None:
  """Returns when `token` holds no more, or is the newest no more; UserError when its holder lives."""
  start, limit = senses.clock(), _TAKING_SECONDS
  first: Holder | None = None
  while lease_folder.newest(folder) == token:
    try:
      found = lease_folder.read(folder, token)
    except FileNotFoundError:
      return
    if found is not None and found.released:
      return
    if found is not None and first is None:
      first, start, limit = found, senses.clock(), _seconds_to_watch(folder, found, senses)
      if limit > 0:
        say(
          f'{folder.parent} was last held by {found}, which did not give it back: watching for a sign of life '
          f'for up to {limit:.3g} s'
        )
    elif found and first and (found.identity, found.renewals) != (first.identity, first.renewals):
      raise _held(folder, found, 'it renewed its lease just now')
    if senses.clock() - start >= limit:
      said = 'a process that left its lease file unfinished' if found is None else f'{found}, which is gone'
      say(f'taking over {folder.parent} from {said}')
      return
    senses.sleep(min(1.0, max(0.02, limit / 60)))


def _seconds_to_watch(folder: Path, found: Holder, senses: Senses) -> float:
  """How long without a renewal means that the holder is gone; 0: it is. UserError when it plainly lives."""
  if not senses.process.same_machine(found.process):
    # Expired by the wall clock, which may be wrong: three renewals must fail all the same.
    return found.seconds * (0.5 if senses.wall() - found.renewed > found.seconds else 1.0)
  alive = found.process.alive()
  if alive is False:
    return 0.0
  age = senses.clock() - found.renewed_monotonic
  if alive and age <= found.seconds:
    raise _held(folder, found, f'it runs, and renewed its lease {max(0.0, age):.0f} s ago')
  # Expired, but alive: stopped; or the whole machine slept until just now, which the next renewal tells.
  return 1.5 * found.seconds / _RENEWALS if age > found.seconds else found.seconds


def _held(folder: Path, holder: Holder, sign: str) -> UserError:
  return UserError(
    f'{folder.parent} is in use by another run: {holder} ({sign}). Two runs cannot write in one workdir: give '
    f'this one another, or stop that one first (kill {holder.process.pid} on {holder.process.host})'
  )
