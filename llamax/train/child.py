"""A command as a group of processes that does not outlive whoever started it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from llamax.core.errors import UserError

# What asks a run to stop.
STOPPING = (signal.SIGTERM, signal.SIGINT)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None
_LEFTOVER_SECONDS = 10.0  # for killed processes to be gone; one in the kernel's hands may take that


class Child:
  """Starts `command` in a process group of its own; it is killed when this process ends in any way.

  The kernel kills the command itself; a guard, which notices by a pipe, kills what the command has started.
  To be made with STOPPING blocked, so that a signal meets either none or all of it; the command gets them
  unblocked. Raises UserError when there is no such command.
  """

  def __init__(self, command: Sequence[str]):
    parent = os.getpid()
    self._guard, self._pipe = _start_guard()

    def in_child() -> None:
      os.write(self._pipe, os.getpid().to_bytes(8))  # Before the command can start anything.
      signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
      if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It ended before the kernel was told.
          os._exit(1)

    _adopt(True)
    try:
      # No terminal to read from: a group in the background would be stopped for trying.
      self._process = subprocess.Popen(
        list(command), process_group=0, stdin=subprocess.DEVNULL, preexec_fn=in_child
      )
    except OSError as error:
      self._dismiss_guard()
      raise UserError(f'{command[0]!r} cannot be started: {error.strerror}') from None
    self.pid = self._process.pid

  def signal(self, number: int) -> None:
    """Passes a signal on to the command alone: its own children are its own affair."""
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, number)

  def kill(self) -> None:
    """Ends the command with all that it started, at once."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.pid, signal.SIGKILL)

  def wait(self) -> int:
    """Blocks until the command has ended: its exit code, or -N for signal N. `close` must follow."""
    end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
    assert end is not None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

  def close(self, kill_leftovers: bool) -> None:
    """Forgets the command, which has ended; what it has left running is killed, or let go."""
    if kill_leftovers:
      self.kill()
    self._process.wait()
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while kill_leftovers and self._has_leftovers() and time.monotonic() < deadline:
      time.sleep(0.01)
    _adopt(False)
    self._dismiss_guard()

  def _dismiss_guard(self) -> None:
    os.write(self._pipe, b'.')
    os.close(self._pipe)
    os.waitpid(self._guard, 0)

  def _has_leftovers(self) -> bool:
    with contextlib.suppress(ChildProcessError):
      while os.waitpid(-self.pid, os.WNOHANG)[0]:
        pass
    try:
      os.killpg(self.pid, 0)
    except ProcessLookupError:
      return False
    return True


def _adopt(orphans: bool) -> None:
  """Whether what a command leaves behind becomes our child, so that its end can be waited for."""
  if _LIBC is not None:
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, int(orphans))


def _start_guard() -> tuple[int, int]:
  """(process, pipe): it is told a group by the pipe, which it kills when the pipe ends without another word."""
  read, write = os.pipe()
  guard = os.fork()
  if guard:
    os.close(read)
    return guard, write
  try:
    os.close(write)
    os.setsid()
    for number in (*STOPPING, signal.SIGHUP):
      signal.signal(number, signal.SIG_IGN)
    group = os.read(read, 8)
    if len(group) == 8 and not os.read(read, 1):
      os.killpg(int.from_bytes(group), signal.SIGKILL)
  finally:
    os._exit(0)
