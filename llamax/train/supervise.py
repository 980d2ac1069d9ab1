"""Runs a training command again and again until it is done, or until going on makes no sense."""

import contextlib
import functools
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from llamax.checkpoint.steps import latest
from llamax.core import exits
from llamax.observe.ledger import Ledger
from llamax.observe.progress import human_time
from llamax.train.child import Child, deaf, listening

FINAL = (exits.DONE, exits.MISTAKE, exits.NUMBERS, exits.FENCED)  # the same command would end the same way
FIRST_DELAY, LONGEST_DELAY = 1.0, 300.0
# A command without a workdir has no checkpoints to look at: one that ran for so long has done something.
LONG_SECONDS = 600.0

_MEANINGS = {
  exits.DONE: 'done',
  exits.BUG: 'an error',
  exits.MISTAKE: 'a mistake in the command or its config',
  exits.STORAGE: 'a checkpoint could not be written',
  exits.RESUME: 'asked to stop, saved',
  exits.LOST: 'a process of the run died or is stuck',
  exits.NUMBERS: 'the numbers went bad',
  exits.FENCED: 'another run took the workdir over',
  exits.INTERRUPTED: 'interrupted',
}


class Attempt(Protocol):
  """A command that runs, or several that end as one: what is asked of a Child."""

  def signal(self, number: int) -> None: ...
  def kill(self) -> None: ...
  def wait(self) -> int: ...
  def close(self, kill_leftovers: bool) -> None: ...


class Asked:
  """Whether this process was asked to stop; passes that on to the command, kills it when asked twice."""

  def __init__(self) -> None:
    self.number: int | None = None
    self.child: Attempt | None = None

  def note(self, number: int, frame: object) -> None:
    del frame
    twice, self.number = self.number is not None, number
    if self.child is not None and twice:
      self.child.kill()
    elif self.child is not None:
      self.child.signal(number)


def supervise(
  command: Sequence[str],
  *,
  max_failures: int,
  max_restarts: int | None,
  say: Callable[[str], None] = lambda text: print(f'supervise: {text}', file=sys.stderr, flush=True),
  jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25),
  first_delay: float = FIRST_DELAY,
  begin: Callable[[Sequence[str]], Attempt] = Child,
) -> int:
  """The exit code of the last attempt (128 + N for signal N).

  Args:
    max_failures: ends after so many attempts in a row that made no progress: no newer checkpoint in the folder
      of the command's --workdir, or, without one, an end within LONG_SECONDS.
    max_restarts: ends after so many restarts in all. None: any number.
    jitter: factor of each delay, so that many hosts do not start in the same instant.
    first_delay: seconds before a restart; doubled for each failure in a row.
    begin: starts an attempt.

  Raises:
    UserError: no such command.
  """
  workdir = option(command, 'workdir')
  ledger = _ledger(command, workdir)
  failures = restarts = 0
  asked = Asked()
  with listening(asked.note):
    while True:
      before, start = _newest(workdir), time.monotonic()
      facts = {'attempt': restarts + 1, 'host': socket.gethostname()}
      note = functools.partial(ledger.record, 'started', **facts, command=list(command), step=before)
      code = _attempt(command, asked, note, begin)
      seconds, after = time.monotonic() - start, _newest(workdir)
      progress = (after or 0) > (before or 0) if workdir else seconds > LONG_SECONDS
      failures = 0 if progress else failures + 1
      delay = jitter() * min(LONGEST_DELAY, first_delay * 2 ** max(0, failures - 1))
      why = _why_not_again(code, asked, failures, max_failures, restarts, max_restarts)
      steps = f'; newest checkpoint: {_step(after)}, before: {_step(before)}' if workdir else ''
      then = why or f'starting again in {delay:.1f} s'
      say(f'attempt {restarts + 1} ended after {human_time(seconds)}: {in_words(code)}{steps}; {then}')
      facts |= {'seconds': round(seconds, 3), 'code': code, 'end': in_words(code)}
      ledger.record('ended', **facts, step_before=before, step=after, delay=None if why else delay, then=then)
      if why:
        return as_shell(_as_asked(code, asked))
      if not _sleep(delay, asked):
        say('asked to stop while waiting to start again')
        ledger.record('stopped')
        return _asked_code(asked)
      restarts += 1


def once(command: Sequence[str], begin: Callable[[Sequence[str]], Attempt] = Child) -> int:
  """One attempt, without a ledger or a word; its exit code (128 + N for signal N)."""
  asked = Asked()
  with listening(asked.note):
    return as_shell(_as_asked(_attempt(command, asked, lambda: None, begin), asked))


def as_shell(code: int) -> int:
  """-N of a signal as a shell has it: 128 + N."""
  return code if code >= 0 else 128 - code


def in_words(code: int) -> str:
  """An exit code as Popen has it: -N is signal N."""
  if code < 0:
    try:
      return f'killed by {signal.Signals(-code).name}'
    except ValueError:
      return f'killed by signal {-code}'
  return f'exit code {code}' + (f' ({_MEANINGS[code]})' if code in _MEANINGS else '')


def option(command: Sequence[str], name: str) -> str | None:
  """The last VALUE of `--name=VALUE` or `--name VALUE`."""
  found = None
  for index, word in enumerate(command):
    if word.startswith(f'--{name}='):
      found = word.partition('=')[2]
    elif word == f'--{name}' and index + 1 < len(command):
      found = command[index + 1]
  return found or None


def _attempt(
  command: Sequence[str],
  asked: Asked,
  started: Callable[[], object],
  begin: Callable[[Sequence[str]], Attempt],
) -> int:
  """Runs the command once: its exit code, or -N for signal N. Not `started` when there is no such command."""
  with deaf():
    if asked.number is not None:
      started()
      return _asked_code(asked)
    asked.child = child = begin(command)
  started()
  code = child.wait()
  with deaf():
    asked.child = None
  child.close(kill_leftovers=code != exits.DONE)
  return code


def _as_asked(code: int, asked: Asked) -> int:
  """A stop that came before a process of the command could hear it kills that one; the others miss it."""
  met = asked.number is not None and code in (exits.LOST, -signal.SIGTERM, -signal.SIGINT)
  return _asked_code(asked) if met else code


def _asked_code(asked: Asked) -> int:
  return exits.INTERRUPTED if asked.number == signal.SIGINT else exits.RESUME


def _why_not_again(
  code: int, asked: Asked, failures: int, max_failures: int, restarts: int, max_restarts: int | None
) -> str | None:
  if code in FINAL:
    return 'finished' if code == exits.DONE else 'not starting again: the same command would end the same way'
  if asked.number is not None:
    return 'not starting again: asked to stop'
  if failures >= max_failures:
    return f'giving up: {failures} attempts in a row without progress'
  if max_restarts is not None and restarts >= max_restarts:
    return f'giving up: {restarts} restarts are all that --max_restarts allows'
  return None


def _newest(workdir: str | None) -> int | None:
  with contextlib.suppress(OSError):
    return latest(Path(workdir, 'checkpoints')) if workdir else None
  return None


def _step(step: int | None) -> str:
  return 'none' if step is None else f'step {step:,}'


def _ledger(command: Sequence[str], workdir: str | None) -> Ledger:
  """WORKDIR/supervise.jsonl, or supervise-K.jsonl on host K of a run of several."""
  rank = option(command, 'process_id') or '0'
  name = 'supervise.jsonl' if rank == '0' else f'supervise-{rank}.jsonl'
  return Ledger(workdir or '.', enabled=workdir is not None and '://' not in workdir, name=name)


def _sleep(seconds: float, asked: Asked) -> bool:
  """False when asked to stop on the way."""
  end = time.monotonic() + seconds
  while asked.number is None and time.monotonic() < end:
    time.sleep(min(0.2, max(0.0, end - time.monotonic())))
  return asked.number is None
