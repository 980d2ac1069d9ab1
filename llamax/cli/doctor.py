"""llamax doctor: looks at this machine for what would stop or slow a run."""

import argparse
from pathlib import Path

from llamax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--workdir', metavar='DIR', help='of a run: its disk, its rights')
  parser.add_argument('--json', action='store_true', help='one line, for a program')
  parser.add_argument(
    '--constraints',
    metavar='FILE',
    help='versions tested together (default: those of the checkout, if it is one)',
  )
  parser.add_argument(
    '--seconds', type=float, default=90.0, metavar='S', help='for jax to find its devices (90)'
  )
  network = parser.add_argument_group('network', 'for the machines of one run, asked at the same time')
  network.add_argument('--listen', metavar='HOST:PORT', help="hold the coordinator's port open on this machine")
  network.add_argument('--peers', type=int, default=0, metavar='N', help='how many others are to come there')
  network.add_argument('--peer', metavar='HOST:PORT', help='connect to the machine that listens')
  network.add_argument(
    '--patience',
    type=float,
    default=10.0,
    metavar='S',
    help='for the others to come, for the peer to listen (10)',
  )
  parser.epilog = (
    'Exit code 0, or 2 when something FAILs. llamax launch TARGET doctor asks all workers of a job.'
  )


def main(args: argparse.Namespace) -> int:
  from llamax.launch import doctor
  from llamax.launch.checkup.versions import constraints_of_checkout

  for name in ('seconds', 'patience'):
    if not getattr(args, name) > 0:
      raise UserError(f'--{name}={getattr(args, name)}: want more than 0')
  if args.peers and not args.listen:
    raise UserError('--peers=N goes with --listen=HOST:PORT: where are they to come?')
  report = doctor.examine(
    doctor.Questions(
      workdir=args.workdir,
      constraints=Path(args.constraints) if args.constraints else constraints_of_checkout(),
      listen=args.listen,
      peers=args.peers,
      peer=args.peer,
      patience=args.patience,
      seconds=args.seconds,
    )
  )
  print(report.to_json() if args.json else doctor.show(report), flush=True)
  return report.code
