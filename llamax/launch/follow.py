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
_LOOK = 0.2


class _Log:
  """One worker's: connected, or waiting to be connected again where the last connection left off."""

  def __init__(self, command: Callable[[int], Run]):
    self.command = command
    self.lines = Lines(show, command(0).label, skip=noise)
    self.offset = 0  # bytes read
    self.process: subprocess.Popen[bytes] | None = None
    self.errors: IO[bytes] | None = None
    self.delay, self.again = _SHORTEST, 0.0
    self.heard = time.monotonic()

  def connect(self) -> IO[bytes]:
    self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (until it is closed in `end`)
    self.process = start(self.command(self.offset), stdout=subprocess.PIPE, stderr=self.errors)
    assert self.process.stdout is not None
    return self.process.stdout

  def feed(self, block: bytes) -> None:
    self.offset += len(block)
    self.heard, self.delay = time.monotonic(), _SHORTEST
    self.lines.feed(block)

  def end(self) -> tuple[int, str]:
    """(exit code, its last line of errors) of the connection."""
    assert self.process is not None and self.process.stdout is not None and self.errors is not None
    code = self.process.wait()
    self.process.stdout.close()
    self.process = None
    self.errors.seek(0)
    said = self.errors.read().decode(errors='replace').strip()
    self.errors.close()
    self.again = time.monotonic() + self.delay
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

  def add(self, worker: int, command: Callable[[int], Run]) -> None:
    """command: reads the worker's log from a byte on, ends when the job has ended."""
    self._logs[worker] = _Log(command)

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
        if not broken or time.monotonic() - key.data.heard > self._patience:
          return self._forget(key.data), '' if code == 0 else said or f'exit code {code}'
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

  def _forget(self, log: _Log) -> int:
    log.lines.close()
    (worker,) = [worker for worker, other in self._logs.items() if other is log]
    del self._logs[worker]
    return worker
