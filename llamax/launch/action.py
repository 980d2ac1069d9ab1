"""What a launcher does to the world, as values that can be printed before they are done."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llamax.core.errors import UserError

_LABEL = re.compile(r'[A-Za-z0-9._@:-]*')


@dataclass(frozen=True)
class Secret:
  """A part of a standard input: the value that the variable `name` has in the launcher's own environment.

  form: 'raw' the value; 'sh' one word of a POSIX shell; 'base64' as a Kubernetes Secret has it in `data`.
  """

  name: str
  form: Literal['raw', 'sh', 'base64'] = 'raw'


Part = str | Secret | Path  # text; a secret; the bytes of a file


@dataclass(frozen=True)
class Run:
  """A command, never a string for a shell of ours.

  Args:
    why: a line for whoever reads the dry run.
    stdin: its parts one after the other; nothing else carries a secret. Without any it reads /dev/null.
    env: beside what it inherits. For what is no secret: it is printed.
    label: each line of its output begins with [label].
    may_fail: goes on after an exit code other than 0 (deleting what is not there).
    forgiven: a regular expression: a failure is none where the end of its errors (Done.tail) matches.
    interactive: has the terminal for itself.
  """

  argv: tuple[str, ...]
  why: str
  stdin: tuple[Part, ...] = ()
  env: Mapping[str, str] = field(default_factory=dict)
  label: str = ''
  may_fail: bool = False
  forgiven: str = ''
  interactive: bool = False

  def __post_init__(self) -> None:
    assert isinstance(self.argv, tuple) and self.argv and '\n' not in self.why + self.forgiven
    assert isinstance(self.stdin, tuple) and _LABEL.fullmatch(self.label)
    for word in (*self.argv, *self.env.values()):
      if '\0' in word:
        raise UserError(f'{word!r} has a zero byte, which no command line can carry')


@dataclass(frozen=True)
class Write:
  """A file that a later action reads, there whole or not at all; its folder is made. mode: its rights."""

  path: Path
  content: str
  why: str
  mode: int = 0o644


@dataclass(frozen=True)
class Together:
  """Commands that run at the same time."""

  runs: tuple[Run, ...]
  why: str


Action = Run | Write | Together


def show(actions: Sequence[Action]) -> str:
  """The actions as a transcript for bash with comments: pasted into one, it does what `execute` does.

  Secrets stand there as the variables that hold them.
  """
  return '\n\n'.join(_show(action) for action in actions) + '\n'


def value(secret: Secret, environ: Mapping[str, str] | None = None) -> str:
  """UserError where this process's environment has no such variable."""
  held = (os.environ if environ is None else environ).get(secret.name)
  if held is None:
    raise UserError(f'--secret {secret.name}: this shell has no such variable; export {secret.name}=... first')
  return held


def _show(action: Action) -> str:
  if isinstance(action, Write):
    path = shlex.quote(str(action.path))
    steps = [f'mkdir -p {shlex.quote(str(action.path.parent))}', _cat((action.content,), f'cat > {path}')]
    if action.mode != 0o644:
      steps.append(f'chmod {action.mode:o} {path}')
    return '\n'.join([f'# {action.why}', *steps])
  if isinstance(action, Together):
    runs = [_command(run, end=' &') for run in action.runs]
    return '\n'.join([f'# {action.why}', *runs, 'wait'])
  return f'# {action.why}\n{_command(action)}'


def _command(run: Run, end: str = '') -> str:
  words = [f'{name}={shlex.quote(text)}' for name, text in run.env.items()] + [shlex.join(run.argv)]
  after = f" 2>&1 | sed -u 's/^/[{run.label}] /'" if run.label else ''
  after += ' || true' if run.may_fail else ''
  if run.forgiven:  # A transcript has no test for it; pasted, it goes on after a failure anyway.
    end += f'  # no failure where it says: {run.forgiven}'
  if not run.stdin and not run.interactive:
    words.append('< /dev/null')  # Else it would read the lines below.
  return _cat(run.stdin, ' '.join(words), after + end)


def _cat(parts: Sequence[Part], command: str, after: str = '') -> str:
  """`command` with `parts` as its standard input."""
  if not parts:
    return command + after
  parts = _joined(parts)
  if len(parts) == 1 and isinstance(parts[0], str) and parts[0].endswith('\n'):
    return _here(parts[0], command, after)
  if len(parts) == 1 and isinstance(parts[0], Path):
    return f'{command} < {shlex.quote(str(parts[0]))}{after}'
  return '\n'.join(['{', *(_part(part) for part in parts), '} | ' + command + after])


def _joined(parts: Sequence[Part]) -> list[Part]:
  """Texts beside each other as one."""
  joined: list[Part] = []
  for part in parts:
    if isinstance(part, str) and joined and isinstance(joined[-1], str):
      joined[-1] += part
    else:
      joined.append(part)
  return joined


def _part(part: Part) -> str:
  if isinstance(part, Path):
    return f'cat {shlex.quote(str(part))}'
  if isinstance(part, Secret):
    forms = {
      'raw': f'printf %s "${part.name}"',
      'sh': f'printf %q "${part.name}"',
      'base64': f'printf %s "${part.name}" | base64 -w0',
    }
    return forms[part.form]
  whole, last = part[: part.rfind('\n') + 1], part[part.rfind('\n') + 1 :]
  steps = ([_here(whole, 'cat')] if whole else []) + ([f'printf %s {shlex.quote(last)}'] if last else [])
  return '\n'.join(steps)


def _here(text: str, command: str, after: str = '') -> str:
  """A here-document, which nothing in `text` can end early."""
  end = 'END'
  while end in text.split('\n'):
    end += '_'
  return f"{command} <<'{end}'{after}\n{text}{end}"
