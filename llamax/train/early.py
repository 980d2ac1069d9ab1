"""SIGTERM before the training takes it: the run ends in good order, wherever it happens to be."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from llamax.core import exits
from llamax.core.errors import UserError

PATIENCE = 8.0  # seconds for the main thread to unwind, which may stand in a call of C for long
_TOLD = 'SIGTERM before the first step: nothing was lost, the same command goes on'


class _Asked(BaseException):
  """Not an Exception: who foresees those (of a damaged checkpoint) has not foreseen this."""


class Early:
  """A handler of SIGTERM.

  at_end: what must be done even if the main thread is stuck. at_once: nothing is held yet that must be let go;
  an error amid the imports would make C++ abort.
  """

  def __init__(self) -> None:
    self.at_end: list[Callable[[], object]] = []
    self.at_once = False
    self.asked = False
    self._unwinding = False
    self._before = signal.getsignal(signal.SIGTERM)
    self._over = threading.Event()
    self._wake: socket.socket | None = None

  def listen(self) -> None:
    signal.signal(signal.SIGTERM, self)
    if self._before == signal.SIG_DFL:  # Else the process is not ours to end.
      self._watch()

  def __call__(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self.asked = True
    if self.at_once:
      with suppress(Exception):
        sys.stdout.flush()
      _end()
    if not self._unwinding:
      raise _Asked

  def unwind(self) -> None:
    """From now on SIGTERM changes nothing: the run is ending."""
    self._unwinding = True

  def hand_over(self) -> Any:
    """Ends the time of this handler; the one that was there before it."""
    self._over.set()
    wake, self._wake = self._wake, None
    if wake:
      signal.set_wakeup_fd(-1)
      wake.close()
    return self._before

  def close(self) -> None:
    before = self.hand_over()
    if signal.getsignal(signal.SIGTERM) is self:
      signal.signal(signal.SIGTERM, before)

  def _watch(self) -> None:
    """Python's handlers wait until the main thread is back in Python; a byte on a socket comes at once."""
    ours, wake = socket.socketpair()
    wake.setblocking(False)
    other = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    if other != -1:  # An event loop's.
      signal.set_wakeup_fd(other)
      ours.close()
      wake.close()
      return
    self._wake = wake
    threading.Thread(target=self._force, args=(ours,), name='sigterm', daemon=True).start()

  def _force(self, ours: socket.socket) -> None:
    with ours:
      while heard := ours.recv(64):
        if signal.SIGTERM in heard and not self._over.wait(0.5 if self.at_once else PATIENCE):
          for act in self.at_end:
            with suppress(Exception):
              act()
          _end()


def _end() -> None:
  with suppress(OSError):
    os.write(2, f'llamax: {_TOLD}\n'.encode())
  os._exit(exits.RESUME)


@contextmanager
def sigterm_ends(stack: ExitStack, at_once: bool = False) -> Iterator[Early | None]:
  """Within it SIGTERM raises Stop(RESUME), until `signals` takes over; after it SIGTERM waits for `stack`.

  One within another is the same one. None: not the main thread, signals are not ours to take.

  Args:
    at_once: ends the process instead, until another one within says that there is something to give back.
  """
  if threading.current_thread() is not threading.main_thread():
    yield None
    return
  current = signal.getsignal(signal.SIGTERM)
  early = current if isinstance(current, Early) else Early()
  early.at_once = at_once
  try:
    if early is not current:
      stack.callback(early.close)
      early.listen()
    yield early
  except BaseException as error:
    early.unwind()
    # Whoever was interrupted may have made another error of it.
    if early.asked and not isinstance(error, UserError | exits.Stop):
      raise exits.Stop(exits.RESUME, _TOLD) from None
    raise
  finally:
    early.unwind()
