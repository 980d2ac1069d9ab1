"""llamax scaling: fits L(N, D) = E + A/N^alpha + B/D^beta to finished runs; how to spend a budget best."""

import argparse
import json
import os
from pathlib import Path

from llamax.core import exits
from llamax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('workdirs', nargs='+', metavar='WORKDIR', help='of the sweep, or of its runs')
  parser.add_argument(
    '--flops', action='append', default=[], metavar='C', help='a budget, such as 1e15; may be given again'
  )
  parser.add_argument(
    '--params', choices=('non_embedding', 'all'), default='non_embedding', help='what N counts'
  )
  parser.add_argument('--metric', default='eval/loss', metavar='NAME', help='a loss in metrics.jsonl')
  parser.add_argument('--png', metavar='FILE', type=Path, help='the picture')
  parser.add_argument('--json', metavar='FILE', type=Path, help='all numbers')


def main(args: argparse.Namespace) -> int:
  budgets = [_positive(text) for text in args.flops]
  # Before scipy is there: its threads spin on matrices of ten numbers.
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
  from llamax.core.storage import write_output
  from llamax.sweep import ladder
  from llamax.sweep.gather import gather
  from llamax.sweep.scaling import fit

  points, left_out = ladder.ladder_points(gather(args.workdirs, args.metric).records, args.params, args.metric)
  found = fit(points)
  spent = [ladder.budget(found, flops) for flops in budgets] if found.complete else []
  print(ladder.as_text(found, spent, args.params, left_out))
  if args.png:
    from llamax.sweep.scaling_figure import png

    write_output(args.png, png(found, spent))
    print(f'picture: {args.png}')
  if args.json:
    numbers = json.dumps(ladder.as_mapping(found, spent, args.params, left_out), indent=2) + '\n'
    write_output(args.json, numbers.encode())
    print(f'numbers: {args.json}')
  return exits.DONE


def _positive(text: str) -> float:
  try:
    flops = float(text)
  except ValueError:
    flops = 0.0
  if not 0 < flops < 1e40:
    raise UserError(f'--flops={text}: want a number of FLOPs, such as 1e15')
  return flops
