"""llamax launch: puts a training command onto machines."""

import argparse
import importlib
from typing import Any

from llamax.core.errors import UserError, nearest
from llamax.launch.target import TARGETS, VERBS, WITH_CODE, WITH_COMMAND


class _TargetParser(argparse.ArgumentParser):
  """Knows the options of its target once they are asked for: no other target is imported."""

  target = ''
  filled = False

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
    if self.target and not self.filled:
      self.filled = True
      _add_options(self, self.target)
    return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.usage = 'llamax launch TARGET [VERB] [options] -- llamax train --config=... --workdir=...'
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.epilog = 'VERB:\n' + '\n'.join(f'  {verb:<8}{what}' for verb, what in VERBS.items())
  targets = parser.add_subparsers(dest='target', metavar='TARGET', required=True, parser_class=_TargetParser)
  for name, (_, what) in TARGETS.items():
    sub = targets.add_parser(name, help=what, allow_abbrev=False, description=what)
    sub.target = name
  parser.set_defaults(takes_command=True, outlives_its_screen=True)


def _add_options(parser: argparse.ArgumentParser, target: str) -> None:
  module = load(target)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.usage = f'llamax launch {target} [VERB] [options] -- llamax train --config=... --workdir=...'
  parser.description = module.__doc__
  parser.epilog = 'VERB:\n' + '\n'.join(f'  {verb:<8}{VERBS[verb]}' for verb in VERBS if verb in module.VERBS)
  parser.add_argument('what', nargs='?', metavar='VERB', default='run', help='see below; run, if not given')
  parser.add_argument(
    '--dry_run', action='store_true', help='print the exact commands and files, touch nothing'
  )
  parser.add_argument('--name', help="the job's; default: the last folder of --workdir")
  parser.add_argument(
    '--env', action='append', default=[], metavar='NAME=VALUE', help='for the command; may be given again'
  )
  parser.add_argument(
    '--secret', action='append', default=[], metavar='NAME',
    help='a variable of this shell for the command; its value travels in no argument, no file, no log',
  )  # fmt: skip
  if module.TAKES_CODE:
    parser.add_argument('--wheel', metavar='FILE', help='of llamax; default: made of this checkout')
    parser.add_argument(
      '--dirty', action='store_true', help='take the checkout with changes that are not committed'
    )
  module.add_arguments(parser)


def load(target: str) -> Any:
  """The module of a target (launch/target.py)."""
  return importlib.import_module(TARGETS[target][0])


def main(args: argparse.Namespace) -> int:
  module = load(args.target)
  verb = args.what
  if verb not in module.VERBS:
    raise UserError(f'{args.target} has no verb {verb!r}.{nearest(verb, module.VERBS)}')
  if verb in WITH_COMMAND and not args.command:
    raise UserError(
      f'no command to run: llamax launch {args.target} {verb} ... -- llamax train --config=... --workdir=... '
      '(mind the two dashes)'
    )
  job = make_job(args, module)
  if args.dry_run:
    from llamax.launch.action import show

    print(show(module.plan(verb, args, job)), end='')
    return 0
  if hasattr(module, 'act'):
    return module.act(verb, args, job)
  from llamax.launch.execute import execute

  execute(module.plan(verb, args, job))
  return 0


def make_job(args: argparse.Namespace, module: Any) -> Any:
  """What the command line says of the job; its code is found, not made."""
  from llamax.launch.job import Job, name_from
  from llamax.train.supervise import option

  workdir = option(args.command, 'workdir') or getattr(args, 'workdir', None)
  name = args.name or (name_from(workdir) if workdir else '')
  if not name and args.what in getattr(module, 'NAMELESS', ()):
    name = 'none'
  if not name:
    raise UserError('which job? Give --name=NAME, or the command with its --workdir')
  env = {}
  for pair in args.env:
    variable, equals, text = pair.partition('=')
    if not equals:
      raise UserError(f'--env {pair}: want NAME=VALUE')
    env[variable] = text
  code = find_code(args) if module.TAKES_CODE and args.what in WITH_CODE else None
  return Job(name, tuple(args.command), env, tuple(args.secret), code)


def find_code(args: argparse.Namespace) -> Any:
  """The code that would travel; a dry run shows the commands whatever the checkout is like."""
  from llamax.launch.code import Code, cache, find

  try:
    return find(args.wheel, args.dirty)
  except UserError as error:
    if not args.dry_run:
      raise
    from llamax import __version__
    from llamax.core.screen import tell

    tell(f'llamax launch: without --dry_run this would end here: {error}')
    return Code(__version__, cache(__version__))
