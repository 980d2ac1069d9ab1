"""Standard output and error that may fail: a full disk, a closed pipe, a terminal that is gone."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from llamax.core import exits


class Screen:
  """A text stream as `stream`, save that `failed` is told of the OSError of a write: it returns, or raises."""

  def __init__(self, stream: TextIO, failed: Callable[[OSError], None]):
    self._stream, self._failed = stream, failed

  def write(self, text: str) -> int:
    try:
      return self._stream.write(text)
    except OSError as error:
      self._failed(error)
      return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except OSError as error:
      self._failed(error)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
  """Within it what cannot be shown is lost, nothing else: the screen is never worth a run."""
  with _screens(_forgive, _forgive):
    yield


@contextlib.contextmanager
def required() -> Iterator[None]:
  """Within it an output that cannot be written is Stop(STORAGE), or BrokenPipeError: the reader has enough."""
  with _screens(_refuse, _forgive_all_but_the_pipe):
    yield
    sys.stdout.flush()  # Python's own last flush would come too late to be told.


@contextlib.contextmanager
def _screens(out: Callable[[OSError], None], err: Callable[[OSError], None]) -> Iterator[None]:
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = Screen(sys.stdout, out), Screen(sys.stderr, err)  # type: ignore[assignment]
  try:
    yield
  finally:
    sys.stdout, sys.stderr = before


def _forgive(error: OSError) -> None:
  pass


def _forgive_all_but_the_pipe(error: OSError) -> None:
  if isinstance(error, BrokenPipeError):
    raise error


def _refuse(error: OSError) -> None:
  _forgive_all_but_the_pipe(error)
  raise exits.Stop(exits.STORAGE, f'the output cannot be written ({error.strerror or error})') from None


def tell(text: str) -> None:
  """A line on standard error, if that can be written."""
  with contextlib.suppress(OSError):
    print(text, file=sys.stderr, flush=True)


def open_missing() -> None:
  """/dev/null for each standard stream that the process was started without (`>&-`).

  Else the next file that is opened would be taken for it, by C libraries too.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, 'w' if number else 'r'))  # noqa: SIM115 (until the end)


def settle() -> None:
  """Drops what cannot be written out: at its end Python would complain of it with an exit code of its own."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:
      with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
