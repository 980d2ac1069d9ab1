"""Who does what in a sweep's folder: locks that the operating system gives back when their holder dies."""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from llamax.checkpoint.holder import Process, here, now_utc
from llamax.core.errors import UserError
from llamax.core.storage import needed

LOCKS = '.locks'
# Guards (train/child.py) outlive whoever started runs, with its locks, until the runs are gone.
_PATIENCE_SECONDS = 20.0


class Lock:
  """One file that one process holds at a time; on a shared disk as far as its flock reaches."""

  def __init__(self, path: Path):
    with needed(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(path, 'a+')  # noqa: SIM115 (as long as the lock)
    self.held = False

  def take(self, *, wait: bool = False) -> bool:
    """False: someone else has it, and we were not to wait."""
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      return False
    self.held = True
    return True

  def release(self) -> None:
    """Also where a forked process holds a copy of it."""
    if self.held:
      fcntl.flock(self._file, fcntl.LOCK_UN)
      self.held = False
    self._file.close()

  def sign(self) -> None:
    """Writes down who holds it."""
    self._file.truncate(0)
    self._file.write(json.dumps({'started': now_utc(), **dataclasses.asdict(here())}))
    self._file.flush()

  def signature(self) -> tuple[str, Process | None]:
    """(words on who holds it, that process as far as it can be read)."""
    self._file.seek(0)
    with contextlib.suppress(ValueError, TypeError, KeyError):
      fields = json.loads(self._file.read())
      started = fields.pop('started')
      process = Process(**fields)
      return f'host {process.host}, process {process.pid}, started {started}', process
    return 'another process', None


@contextlib.contextmanager
def only_one(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Within it no other `llamax sweep` has the folder, unless it joins.

  Raises:
    UserError: another one has it; it is named.
  """
  lock = Lock(Path(folder, LOCKS, 'sweep'))
  try:
    end = time.monotonic() + _PATIENCE_SECONDS
    while not lock.take():
      who, process = lock.signature()
      gone = process is not None and process.same_machine(here()) and process.alive() is False
      if not gone or time.monotonic() > end:
        raise UserError(
          f'a sweep is running in {folder} ({who}): wait for it, share its work with --join, or look at it '
          'with --dry_run'
        )
      time.sleep(0.1)
    lock.sign()
    yield
  finally:
    lock.release()


def claim(folder: str | os.PathLike[str], name: str) -> Lock | None:
  """The run `name`, to be started by nobody else until the lock is released; None: someone has it."""
  lock = Lock(Path(folder, LOCKS, f'run-{name}'))
  if lock.take():
    return lock
  lock.release()
  return None


@contextlib.contextmanager
def alone(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
  """A moment in which no other process does `what` in the folder."""
  lock = Lock(Path(folder, LOCKS, what))
  try:
    lock.take(wait=True)
    yield
  finally:
    lock.release()
