"""Ends the jobs of runs that are given up: those that a run's own command on this machine only follows."""

import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from llamax.core.storage import needed
from llamax.sweep.plan import run_folder
from llamax.sweep.watch import last_words
from llamax.train.child import Child, deaf
from llamax.train.supervise import in_words

OUTPUT = 'output.log'  # in a run's folder: all that its commands have said
_TICK_SECONDS = 0.1
_LAST_LINES = 5  # of a command that has failed


@dataclasses.dataclass
class _Ending:
  name: str
  left: list[Sequence[str]]  # to be started yet
  command: Sequence[str] = ()
  child: Child | None = None
  failed: bool = False


class Endings:
  """For each run its commands one after the other: the first at once, the others when nobody follows the job.

  Args:
    commands: a run's name -> what ends its job, then what gives back all that it had.
    say: tells what has failed. done: is told a run's name when its last command has not.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    commands: Callable[[str], Sequence[Sequence[str]]],
    say: Callable[[str], None],
    done: Callable[[str], None],
  ):
    self._folder, self._commands, self._say, self._done = Path(folder), commands, say, done
    self._under_way: list[_Ending] = []

  def __bool__(self) -> bool:
    return bool(self._under_way)

  def begin(self, name: str) -> None:
    ending = _Ending(name, list(self._commands(name)))
    self._start(ending)
    self._under_way.append(ending)

  def look(self, followed: Collection[str]) -> None:
    """Takes note of commands that have ended. followed: runs whose own command goes on."""
    for ending in list(self._under_way):
      if ending.child is not None:
        code = ending.child.poll()
        if code is None:
          continue
        ending.child.close(kill_leftovers=True)
        ending.child, ending.failed = None, code != 0
        if code:
          self._tell(ending, f'ended with {in_words(code)}')
      if not ending.left:
        self._under_way.remove(ending)
        if not ending.failed:
          self._done(ending.name)
      elif ending.name not in followed:
        self._start(ending)

  def wait(self) -> None:
    """To the end of all; no run's own command goes on."""
    while self._under_way:
      self.look(())
      time.sleep(_TICK_SECONDS)

  def drop(self) -> None:
    """Ends the commands themselves, at once."""
    for ending in self._under_way:
      if ending.child is not None:
        ending.child.kill()
        ending.child.wait()
        ending.child.close(kill_leftovers=True)
      else:
        ending.command = ending.left[0]
      self._tell(ending, 'was not waited for')
    self._under_way.clear()

  def _start(self, ending: _Ending) -> None:
    ending.command, log = ending.left.pop(0), self._log(ending.name)
    with needed(log):
      log.parent.mkdir(parents=True, exist_ok=True)
      file = open(log, 'ab', buffering=0)  # noqa: SIM115
    with file, deaf():
      ending.child = Child(ending.command, output=file.fileno())

  def _tell(self, ending: _Ending, how: str) -> None:
    log = self._log(ending.name)
    said = ''.join(f'\n    {line}' for line in last_words(log, _LAST_LINES))
    self._say(
      f'{ending.name}: ITS JOB MAY STILL BE THERE, AND COST: what should end it {how}:\n'
      f'    {shlex.join(ending.command)}\n  {log} ends with:{said}'
    )

  def _log(self, name: str) -> Path:
    return run_folder(self._folder, name) / OUTPUT
