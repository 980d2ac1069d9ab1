"""llamax compare: runs side by side, as a table, as pictures; while they train, too."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamax.core import exits


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'workdirs', nargs='+', metavar='WORKDIR', help='of a run, of a sweep, of several; a pattern in quotes'
  )
  parser.add_argument('--metric', metavar='NAME', help='what runs are ranked by; a name in metrics.jsonl')
  parser.add_argument('--maximize', action='store_true', help='with --metric: more of it is better')
  parser.add_argument('--sort', metavar='COLUMN', help='another order; -COLUMN: the largest first')
  parser.add_argument('--csv', metavar='FILE', type=Path, help='all that differs, all results, in full')
  parser.add_argument('--png', metavar='FILE', type=Path, help='the curves, a picture of what differs')
  parser.add_argument(
    '--html', metavar='FILE', type=Path, help='one page with all of it, which needs no network'
  )


def main(args: argparse.Namespace) -> int:
  from llamax.sweep import report
  from llamax.sweep.compare import as_text, compare
  from llamax.sweep.gather import gather

  comparison = compare(gather(args.workdirs, args.metric, args.maximize), args.sort)
  print(as_text(comparison))
  for name in comparison.gathered.left_out:
    print(f'left out, no run: {name}', file=sys.stderr)
  for line in report.write(comparison, _from_defaults, csv=args.csv, png=args.png, html=args.html):
    print(line)
  return exits.DONE


def _from_defaults(config: Mapping[str, Any]) -> list[str] | None:
  """The words after `llamax train` that give a config of unknown origin: what differs from configs/base.py."""
  from llamax.cli.configure import load
  from llamax.core.config import flatten, parse_text
  from llamax.core.errors import UserError
  from llamax.sweep.plan import to_text

  if 'model.preset' not in config:
    return None
  preset = ('model.preset', config['model.preset'])  # It fills what no key says.
  try:
    base = flatten(load('configs/base.py', [preset])[0].to_mapping())
    if set(base) != set(config):
      return None  # Of another llamax.
    changed = {key: value for key, value in config.items() if base[key] != value}
    for key in [key for key, value in changed.items() if parse_text(key, to_text(value)) != value]:
      if not key.startswith('sample.'):
        return None  # A command line cannot say it.
      del changed[key]  # Prompts with commas: they change no weight.
  except UserError:
    return None  # A preset, a value that this llamax does not know.
  pairs = [preset, *((key, to_text(value)) for key, value in changed.items())]
  return ['--config=configs/base.py', *(f'--config.{key}={text}' for key, text in pairs)]
