"""The processes of one run on this machine, which start together, end together."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llamax.core import exits
from llamax.launch.lines import Lines, Pump
from llamax.train.child import Child

# Seconds for the others to end by themselves, with a name for who is missing, once one has ended early.
PATIENCE = float(os.environ.get('LLAMAX_PATIENCE', 30))


@dataclass(frozen=True)
class Member:
  """One process. environment: all of it."""

  label: str
  argv: tuple[str, ...]
  environment: Mapping[str, str]


class Gang:
  """Stands in for a Child of train/supervise: one attempt of all members.

  Args:
    write: takes (label, a line) beside the screen, where each line is shown with its member's label.

  Raises:
    UserError: no such command. What was started is then killed.
  """

  def __init__(
    self,
    members: Sequence[Member],
    *,
    patience: float = PATIENCE,
    write: Callable[[str, str], None] = lambda label, line: None,
  ):
    self._patience, self._write = patience, write
    self._pump = Pump()
    self._children: list[Child] = []
    try:
      for member in members:
        self._children.append(self._start(member))
    except BaseException:
      self.close(kill_leftovers=True)
      raise

  def signal(self, number: int) -> None:
    for child in self._children:
      child.signal(number)

  def kill(self) -> None:
    for child in self._children:
      child.kill()

  def wait(self) -> int:
    """The code that tells most, -N for signal N. When one ends early the others are killed, after a while."""
    worst, alive, deadline = 0, list(self._children), None
    while alive:
      if not self._pump.run(0.2):
        time.sleep(0.05)
      for child in list(alive):
        code = child.poll()
        if code is None:
          continue
        alive.remove(child)
        worst = max(worst, code, key=weight)
        if code and deadline is None:
          deadline = time.monotonic() + self._patience
      if deadline is not None and time.monotonic() >= deadline:
        for child in alive:
          child.kill()
    return worst

  def close(self, kill_leftovers: bool) -> None:
    for child in self._children:
      if child.poll() is None:
        child.kill()
      child.close(kill_leftovers)
    self._pump.close()

  def _start(self, member: Member) -> Child:
    ours, theirs = [], []
    for stream in (sys.stdout, sys.stderr):
      read, write = os.pipe()
      ours.append((read, stream))
      theirs.append(write)
    try:
      child = Child(member.argv, environment=member.environment, output=theirs[0], errors=theirs[1])
    finally:
      for write in theirs:
        os.close(write)
      for read, stream in ours:
        self._pump.add(read, Lines(self._take(member.label, stream), skip=noise))
    return child

  def _take(self, label: str, stream) -> Callable[[str], None]:
    def take(line: str) -> None:
      stream.write(f'[{label}] {line}')
      stream.flush()
      self._write(label, line)

    return take


def noise(line: str) -> bool:
  """What gloo says of each connection helps nobody."""
  return line.startswith('[Gloo] Rank ') and ' is connected' in line


def weight(code: int) -> int:
  """What a code tells: a mistake or a bug most, then a lost process, a signal, a stop that was asked for."""
  if code == exits.DONE:
    return 0
  if code in (exits.RESUME, exits.INTERRUPTED):
    return 1
  if code == exits.LOST:
    return 3
  return 2 if code < 0 or code > 128 else 4
