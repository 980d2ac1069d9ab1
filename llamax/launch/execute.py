"""Does what action.py describes."""

import base64
import collections
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.core.storage import needed, write_text
from llamax.launch.action import Action, Run, Secret, Together, Write, value
from llamax.launch.lines import Lines, Pump

_TAIL = 20  # lines of an error that its message quotes


@dataclass(frozen=True)
class Done:
  """A command that ended. code: -N for signal N; out: its standard output; tail: its last lines of errors."""

  run: Run
  code: int
  out: str
  tail: str

  @property
  def forgiven(self) -> bool:
    """It failed for the one reason that is no failure."""
    return self.code > 0 and bool(self.run.forgiven) and bool(re.search(self.run.forgiven, self.tail))

  def check(self) -> 'Done':
    """UserError, with the command and what it said last, where it has failed."""
    if self.code == 0 or self.run.may_fail or self.forgiven:
      return self
    end = f'exit code {self.code}' if self.code > 0 else f'signal {-self.code}'
    said = self.tail or '\n'.join(self.out.splitlines()[-_TAIL:]) or '(nothing)'
    raise UserError(f'{self.run.why}: {self.run.argv[0]} ended with {end}: {said.strip()}')


def execute(actions: Sequence[Action], say: Callable[[str], None] | None = None) -> None:
  """Does the actions in order; their output goes to the screen.

  Args:
    say: is told why, before each; default: a line of standard error.

  Raises:
    UserError: a command that failed, a program that is not there, a secret that is not set.
  """
  for action in actions:
    (say or _say)(action.why)
    if isinstance(action, Write):
      with needed(action.path):
        action.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(action.path, action.content, action.mode)
    else:
      for done in attempt(action.runs if isinstance(action, Together) else (action,)):
        done.check()


def answer(run: Run) -> str:
  """What a command writes to its standard output, which is not shown; UserError where it fails."""
  return attempt((run,), show=False)[0].check().out


def attempt(
  runs: Sequence[Run],
  *,
  show: bool = True,
  environ: Mapping[str, str] | None = None,
  tail: int = _TAIL,
) -> tuple[Done, ...]:
  """Runs all at the same time, each to its end, whatever that is.

  Args:
    show: their output, line by line; else it is kept alone.
    environ: where secrets come from; default: this process's own. What shows a secret shows ****.
    tail: so many lines of errors are kept.
  """
  if len(runs) == 1 and runs[0].interactive:
    return (_interactive(runs[0]),)
  environ = os.environ if environ is None else environ
  outs: list[list[str]] = [[] for _ in runs]
  last: list[collections.deque[str]] = [collections.deque(maxlen=tail) for _ in runs]
  processes: list[subprocess.Popen[bytes]] = []
  pump = Pump()
  with ExitStack() as stack:
    stack.callback(_end, processes)
    for run, out, kept in zip(runs, outs, last, strict=True):
      process = start(run, environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
      processes.append(process)
      assert process.stdout is not None and process.stderr is not None
      hide = [value(part, environ) for part in run.stdin if isinstance(part, Secret)]
      pump.add(process.stdout, Lines(_to(out, run, sys.stdout if show else None), hide=hide))
      pump.add(process.stderr, Lines(_to(kept, run, sys.stderr if show else None), hide=hide))
    while pump.run(None):
      pass
    codes = [process.wait() for process in processes]
  return tuple(
    Done(run, code, ''.join(out), ''.join(kept))
    for run, code, out, kept in zip(runs, codes, outs, last, strict=True)
  )


def _to(kept: MutableSequence[str], run: Run, screen: IO[str] | None) -> Callable[[str], None]:
  """Keeps a line; shows it with its label."""
  prefix = f'[{run.label}] ' if run.label else ''

  def take(line: str) -> None:
    kept.append(line)
    if screen is not None:
      screen.write(prefix + line)
      screen.flush()

  return take


def start(
  run: Run, environ: Mapping[str, str] | None = None, *, stdout: IO[bytes] | int, stderr: IO[bytes] | int
) -> subprocess.Popen[bytes]:
  """The command's process, for whoever reads its output; UserError where there is no such program."""
  with _stdin(run, os.environ if environ is None else environ) as stdin:
    try:
      return subprocess.Popen(
        run.argv, stdin=stdin, stdout=stdout, stderr=stderr, env={**os.environ, **run.env}
      )
    except OSError as error:
      raise _absent(run, error) from None


def _interactive(run: Run) -> Done:
  assert not run.stdin and not run.label
  try:
    return Done(run, subprocess.call(run.argv, env={**os.environ, **run.env}), '', '')
  except OSError as error:
    raise _absent(run, error) from None


def _absent(run: Run, error: OSError) -> UserError:
  if shutil.which(run.argv[0]) is None:
    return UserError(f'{run.why}: this machine has no program {run.argv[0]!r}; install it, or see --dry_run')
  return UserError(f'{run.why}: {run.argv[0]!r} cannot be started: {error.strerror}')


@contextlib.contextmanager
def _stdin(run: Run, environ: Mapping[str, str]) -> Iterator[IO[bytes] | int]:
  """The parts in one file that only memory holds: a secret is never on a disk."""
  if not run.stdin:
    yield subprocess.DEVNULL
    return
  if len(run.stdin) == 1 and isinstance(run.stdin[0], Path):
    with _opened(run.stdin[0]) as file:
      yield file
    return
  with (
    open(os.memfd_create('stdin'), 'w+b') if hasattr(os, 'memfd_create') else tempfile.TemporaryFile() as file
  ):
    for part in run.stdin:
      if isinstance(part, Path):
        with _opened(part) as source:
          shutil.copyfileobj(source, file)
      else:
        file.write((part if isinstance(part, str) else formed(part, environ)).encode())
    file.seek(0)
    yield file


def _opened(path: Path) -> IO[bytes]:
  try:
    return open(path, 'rb')
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}') from None


def formed(secret: Secret, environ: Mapping[str, str]) -> str:
  """The secret's value in its form."""
  plain = value(secret, environ)
  if secret.form == 'sh':
    return shlex.quote(plain)
  return base64.b64encode(plain.encode()).decode() if secret.form == 'base64' else plain


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
  """Nothing goes on when one could not be started, or the launcher was interrupted."""
  for process in processes:
    if process.poll() is None:
      process.terminate()


def _say(why: str) -> None:
  tell(f'launch: {why}')
