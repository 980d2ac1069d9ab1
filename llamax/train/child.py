"""A command that, with all that it starts, does not outlive whoever started it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llamax.core.errors import UserError

# What asks a run to stop.
STOPPING = (signal.SIGTERM, signal.SIGINT)

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None
_GONE_SECONDS = 10.0  # for killed processes to be gone; one in the kernel's hands may take that


@contextlib.contextmanager
def listening(note: Callable[[int, Any], None]) -> Iterator[None]:
  """What asks a run to stop is told to `note`, as a handler of signals is."""
  before = {number: signal.signal(number, note) for number in STOPPING}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
  """Signals that ask to stop wait outside: one meets a command that has been noted down, or none."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
  """Starts `command` in a session of its own; it is killed when this process ends in any way.

  The kernel kills the command itself; a guard, which notices by a pipe, kills what the command has started,
  known by its session: that outlasts groups of their own, as a shell with job control makes them.
  To be made with STOPPING blocked, so that a signal meets either none or all of it; the command gets them
  unblocked. Raises UserError when there is no such command.

  Args:
    environment: all of it; None: this process's own.
    output: where what the command says goes, both streams; None: where this process's goes.
    errors: where the stream of errors goes, if elsewhere.
  """

  def __init__(
    self,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: int | None = None,
    errors: int | None = None,
  ):
    parent = os.getpid()
    self._guard, self._pipe = _start_guard()

    def in_child() -> None:
      signal.signal(signal.SIGPIPE, signal.SIG_IGN)
      with contextlib.suppress(BrokenPipeError):  # The guard was killed.
        os.write(self._pipe, os.getpid().to_bytes(8))  # Before the command can start anything.
      signal.signal(signal.SIGPIPE, signal.SIG_DFL)
      signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
      if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It ended before the kernel was told.
          os._exit(1)

    try:
      self._process = subprocess.Popen(
        list(command),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output if errors is None else errors,
        env=environment,
        preexec_fn=in_child,
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
    _kill_session(self.pid)

  def wait(self) -> int:
    """Blocks until the command has ended: its exit code, or -N for signal N. `close` must follow."""
    code = self._ended(os.WEXITED | os.WNOWAIT)
    assert code is not None
    return code

  def poll(self) -> int | None:
    """What `wait` would return, None while the command goes on."""
    return self._ended(os.WEXITED | os.WNOWAIT | os.WNOHANG)

  def _ended(self, how: int) -> int | None:
    end = os.waitid(os.P_PID, self.pid, how)
    return end and (end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)

  def close(self, kill_leftovers: bool) -> None:
    """Forgets the command, which has ended; what it has left running is killed, or let go."""
    if kill_leftovers:
      self.kill()
    for pid, _ in _members(self.pid) if _LIBC else ():
      # As process 1 of a container we inherit them: nobody else would take note of their end.
      if pid != self.pid:
        with contextlib.suppress(ChildProcessError):
          os.waitpid(pid, os.WNOHANG)
    self._process.wait()
    self._dismiss_guard()

  def _dismiss_guard(self) -> None:
    with contextlib.suppress(BrokenPipeError):
      os.write(self._pipe, b'.')
    os.close(self._pipe)
    os.waitpid(self._guard, 0)


def _kill_session(session: int) -> None:
  """SIGKILL for all processes of a session, until none runs any more."""
  if _LIBC is None:  # No /proc: its first group alone.
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(session, signal.SIGKILL)
    return
  deadline = time.monotonic() + _GONE_SECONDS
  while alive := [pid for pid, state in _members(session) if state not in 'ZX']:
    if time.monotonic() > deadline:
      return
    for pid in alive:
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.01)


def _members(session: int) -> list[tuple[int, str]]:
  """(process, state) of each process in a session, the ended ones that nobody has asked about included."""
  found = []
  for name in os.listdir('/proc'):
    if name.isdecimal():
      with contextlib.suppress(OSError), open(f'/proc/{name}/stat', 'rb') as file:
        fields = file.read().rpartition(b')')[2].split()
        if int(fields[3]) == session:
          found.append((int(name), fields[0].decode()))
  return found


def _start_guard() -> tuple[int, int]:
  """(process, pipe): it reads a session from the pipe, kills that when the pipe ends without another word."""
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
    session = os.read(read, 8)
    if len(session) == 8 and not os.read(read, 1):
      _kill_session(int.from_bytes(session))
  finally:
    os._exit(0)
