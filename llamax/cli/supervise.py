"""llamax supervise: starts a training command again whenever it ends before its time."""

import argparse

from llamax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--max_failures', type=int, default=5, metavar='N', help='attempts in a row without a new checkpoint (5)'
  )
  parser.add_argument('--max_restarts', type=int, metavar='N', help='restarts in all (default: any number)')
  parser.usage = 'llamax supervise [--max_failures N] [--max_restarts N] -- COMMAND ...'
  parser.epilog = 'For instance: llamax supervise -- llamax train --config=configs/debug.py --workdir=run'
  parser.set_defaults(takes_command=True, outlives_its_screen=True)


def main(args: argparse.Namespace) -> int:
  if not args.command:
    raise UserError(
      'no command to run: llamax supervise -- llamax train --config=... --workdir=... (mind the two dashes)'
    )
  if args.max_failures < 1:
    raise UserError(f'--max_failures={args.max_failures}: want at least 1')
  if args.max_restarts is not None and args.max_restarts < 0:
    raise UserError(f'--max_restarts={args.max_restarts}: want at least 0')
  from llamax.train.supervise import supervise

  return supervise(args.command, max_failures=args.max_failures, max_restarts=args.max_restarts)
