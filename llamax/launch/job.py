"""What is to run: a name, a command, its environment, the code that it needs."""

import argparse
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from llamax.core.errors import UserError
from llamax.launch.action import Part, Secret
from llamax.launch.code import Code
from llamax.train.supervise import option

# Fits a Kubernetes object, a TPU node, a folder, a SLURM job.
_NAME = re.compile(r'[a-z]([-a-z0-9]*[a-z0-9])?')
_LONGEST = 40
_VARIABLE = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')


@dataclass(frozen=True)
class Job:
  """A training command on its way to some machines.

  Args:
    name: lower-case letters, digits, dashes; begins with a letter; 40 characters at most.
    command: `llamax train ...`, word by word; empty for verbs that need none (status, delete).
    env: for the command, on each machine.
    secrets: names of variables whose values come from the launcher's environment, to travel over a standard
      input alone: never in an argument, a file of ours, a log.
    code: what is installed on each machine; None where they share a disk with it.

  Raises:
    UserError: a name, a variable that no target could carry.
  """

  name: str
  command: tuple[str, ...] = ()
  env: Mapping[str, str] = field(default_factory=dict)
  secrets: tuple[str, ...] = ()
  code: Code | None = None

  def __post_init__(self) -> None:
    check_name(self.name)
    for variable in (*self.env, *self.secrets):
      if not _VARIABLE.fullmatch(variable):
        raise UserError(f'{variable!r} is no name of a variable: letters, digits, _ alone, no digit first')
    both = sorted({*self.env} & {*self.secrets})
    if both:
      raise UserError(f'{both[0]}: given with --env and with --secret; want one of them')
    for word in (*self.command, *self.env.values()):
      if '\0' in word:
        raise UserError(f'{word!r} has a zero byte, which no command line can carry')

  @property
  def workdir(self) -> str | None:
    """What the command says with --workdir."""
    return option(self.command, 'workdir')

  def exports(self) -> tuple[Part, ...]:
    """Lines for a POSIX shell that set `env` and the secrets; as the first parts of its standard input."""
    parts: list[Part] = []
    for name, text in self.env.items():
      parts.append(f'export {name}={shlex.quote(text)}\n')
    for name in self.secrets:
      parts += [f'export {name}=', Secret(name, 'sh'), '\n']
    return tuple(parts)


def check_name(name: str) -> None:
  """UserError where `name` cannot name a job."""
  if len(name) > _LONGEST or not _NAME.fullmatch(name):
    raise UserError(
      f'{name!r} cannot name a job: want lower-case letters, digits, dashes, a letter first, no dash last, '
      f'at most {_LONGEST} of them; give --name'
    )


def name_from(workdir: str) -> str:
  """A job's name made of the last folder of `workdir`: 'runs/My run_2' -> 'my-run-2', '125m' -> 'run-125m'.

  Raises UserError where nothing is left of it.
  """
  last = workdir.rstrip('/').rpartition('/')[2]
  made = re.sub(r'[^a-z0-9]+', '-', last.lower()).strip('-')
  if made[:1].isdigit():
    made = f'run-{made}'
  made = made[:_LONGEST].rstrip('-')
  check_name(made)
  return made


def at_least(args: argparse.Namespace, **least: int) -> None:
  """UserError where an option is below the smallest number that it may be."""
  for name, bound in least.items():
    if getattr(args, name) < bound:
      raise UserError(f'--{name}={getattr(args, name)}: want {bound} or more')
