"""The output of several commands as one stream of whole lines, each with the name of whose it is."""

import os
import selectors
import sys
from collections.abc import Callable, Sequence
from typing import IO

_BLOCK = 1 << 16
_TELLING = 6  # shorter lines, as the braces of a JSON file, give nothing away


class Lines:
  """Cuts bytes into lines, hands each on with a prefix.

  Args:
    write: takes a line with its newline.
    label: '' for no prefix.
    hide: texts that are shown as ****, and each line of one of several lines.
    skip: lines for which it is true are left out.
  """

  def __init__(
    self,
    write: Callable[[str], object],
    label: str = '',
    hide: Sequence[str] = (),
    skip: Callable[[str], bool] = lambda line: False,
  ):
    self._write, self._prefix, self._skip = write, f'[{label}] ' if label else '', skip
    pieces = {*hide, *(line for text in hide for line in text.splitlines() if len(line) >= _TELLING)}
    self._hide = sorted(filter(None, pieces), key=len, reverse=True)
    self._rest = b''

  def feed(self, block: bytes) -> None:
    *whole, self._rest = (self._rest + block).split(b'\n')
    for line in whole:
      self._hand_on(line)

  def close(self) -> None:
    """The last line may lack its newline."""
    if self._rest:
      self._hand_on(self._rest)
      self._rest = b''

  def _hand_on(self, line: bytes) -> None:
    text = line.decode(errors='replace')
    if self._skip(text):
      return
    for secret in self._hide:
      text = text.replace(secret, '****')
    self._write(f'{self._prefix}{text}\n')


class Pump:
  """Reads pipes as they fill, into their Lines. One thread, which need not be the main one."""

  def __init__(self) -> None:
    self._selector = selectors.DefaultSelector()

  def add(self, pipe: IO[bytes] | int, lines: Lines) -> None:
    self._selector.register(pipe, selectors.EVENT_READ, lines)

  def run(self, seconds: float | None) -> bool:
    """Hands on what comes within `seconds`, None: waits for something; False when all pipes have ended."""
    if not self._selector.get_map():
      return False
    for key, _ in self._selector.select(seconds):
      block = os.read(key.fd, _BLOCK)
      key.data.feed(block) if block else self._end(key)
    return True

  def close(self) -> None:
    """Forgets the pipes that are still open; what they hold already is handed on."""
    while self._selector.get_map() and self._selector.select(0):
      self.run(0)
    for key in list(self._selector.get_map().values()):
      self._end(key)
    self._selector.close()

  def _end(self, key: selectors.SelectorKey) -> None:
    self._selector.unregister(key.fileobj)
    key.data.close()
    os.close(key.fd) if isinstance(key.fileobj, int) else key.fileobj.close()  # type: ignore[attr-defined]


def show(line: str) -> None:
  sys.stdout.write(line)
  sys.stdout.flush()
