"""The logs of several workers as one stream that outlives its connections."""

import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import IO

from llamax.launch.action import Run
from llamax.launch.execute import start
from llamax.launch.gang import noise
from llamax.launch.lines import Lines, show

_SHORTEST, _LONGEST = 1.0, 15.0  # seconds before a connection is tried again
_STANDS = 30.0  # seconds that only what was a connection lasts: ssh gives up after 15 where none is made
_LOOK = 0.2


class _Log:
  """One worker's: connected, or waiting to be connected again where the last connection left off."""

  def __init__(self, command: Callable[[int], Run], start: object):
    self.command, self.start = command, start
    self.lines = Lines(show, command(0).label, skip=noise)
    self.offset = 0  # bytes read
    self.process: subprocess.Popen[bytes] | None = None
    self.errors: IO[bytes] | None = None
    self.delay, self.again = _SHORTEST, 0.0
    self.connected = 0.0
    self.broken: float | None = None  # since when there is no connection

  def connect(self) -> IO[bytes]:
    self.connected = time.monotonic()
    self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (until it is closed in `end`)
    self.process = start(self.command(self.offset), stdout=subprocess.PIPE, stderr=self.errors)
    assert self.process.stdout is not None
    return self.process.stdout

  def feed(self, block: bytes) -> None:
    self.offset += len(block)
    self._stood()
    self.lines.feed(block)

  def _stood(self) -> None:
    self.broken, self.delay = None, _SHORTEST

  def end(self) -> tuple[int, str]:
    """(exit code, its last line of errors) of the connection."""
    assert self.process is not None and self.process.stdout is not None and self.errors is not None
    code = self.process.wait()
    self.process.stdout.close()
    self.process = None
    self.errors.seek(0)
    said = self.errors.read().decode(errors='replace').strip()
    self.errors.close()
    now = time.monotonic()
    if now - self.connected > _STANDS:  # Its worker may have had nothing to say for hours.
      self._stood()
    if self.broken is None:
      self.broken = now
    self.again = now + self.delay
    self.delay = min(_LONGEST, 2 * self.delay)
    return code, said.splitlines()[-1] if said else ''


class Follower:
  """Shows each line of each log once, with the label of its worker, as it comes.

  Args:
    lost: what a command that reads a log ends with when its connection broke off (ssh: 255).
    patience: seconds without a connection after which a worker counts as out of reach.
  """

  def __init__(self, *, lost: int = 255, patience: float = 60.0):
    self._lost, self._patience = lost, patience
    self._selector = selectors.DefaultSelector()
    self._logs: dict[int, _Log] = {}
    self._left: dict[int, _Log] = {}

  def add(self, worker: int, command: Callable[[int], Run], start: object = None) -> None:
    """A log to show; that of a worker which `wait` has told of goes on where it was left.

    Args:
      command: reads the worker's log from a byte on, ends when the job has ended.
      start: tells one start of the worker from the next, whose log begins anew.
    """
    log = self._left.pop(worker, None)
    if log is None or log.start != start:
      if log is not None:
        log.lines.close()
      log = _Log(command, start)
    log.broken, log.delay, log.again = None, _SHORTEST, 0.0
    self._logs[worker] = log

  def wait(self) -> tuple[int, str]:
    """(worker, '') of the next log that has ended, (worker, what its command said) of one out of reach."""
    assert self._logs
    while True:
      for log in self._logs.values():
        if log.process is None and time.monotonic() >= log.again:
          self._selector.register(log.connect(), selectors.EVENT_READ, log)
      for key, _ in self._selector.select(_LOOK) if self._selector.get_map() else ():
        if block := os.read(key.fd, 1 << 16):
          key.data.feed(block)
          continue
        self._selector.unregister(key.fileobj)
        code, said = key.data.end()
        broken = code == self._lost or code < 0
        if not broken or time.monotonic() - key.data.broken > self._patience:
          if not broken:
            key.data.lines.close()
          return self._leave(key.data), '' if code == 0 else said or f'exit code {code}'
      if not self._selector.get_map():
        time.sleep(_LOOK)

  def close(self) -> None:
    """Ends the connections; the jobs go on."""
    for log in self._logs.values():
      if log.process is not None:
        log.process.terminate()
        log.end()
    self._logs.clear()
    self._selector.close()
    for log in self._left.values():
      log.lines.close()

  def _leave(self, log: _Log) -> int:
    (worker,) = [worker for worker, other in self._logs.items() if other is log]
    self._left[worker] = self._logs.pop(worker)
    return worker
