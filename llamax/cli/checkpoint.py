"""llamax checkpoint: shows, verifies, removes the checkpoints of a run; needs no device."""

import argparse
import dataclasses
import json
import sys
import threading
import time
from pathlib import Path

from llamax.core import exits
from llamax.core.errors import UserError

_LEASE_SECONDS = 60.0  # of a removal, should it die on the way


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('action', choices=tuple(_ACTIONS), help='list; read every byte; delete')
  parser.add_argument('workdir', metavar='WORKDIR', help='the folder of a run')
  parser.add_argument(
    'steps', nargs='*', metavar='STEP', help='default: all of them (rm: none); damaged-STEP: put aside by a run'
  )
  parser.add_argument('--json', action='store_true', help='ls, verify: a JSON object per checkpoint, on a line')
  parser.add_argument('--config', action='store_true', help='ls: the config of STEP (default: of the newest)')
  parser.add_argument('--yes', action='store_true', help='rm: without asking')
  parser.epilog = 'Exit code 1 when a checkpoint that was looked at is damaged.'


def main(args: argparse.Namespace) -> int:
  return _ACTIONS[args.action](args)


def _list(args: argparse.Namespace) -> int:
  from llamax.checkpoint import listing
  from llamax.observe.report import table

  folder = listing.folder_of(args.workdir)
  wanted = listing.chosen(folder, args.steps) or listing.names(folder)
  if args.config:
    return _show_config(folder, wanted[-1:] if args.steps else [n for n in wanted if n.isdecimal()][-1:])
  found = [entry for entry in listing.entries(folder) if entry.name in wanted]
  if args.json:
    for entry in found:
      print(json.dumps(dataclasses.asdict(entry) | {'state': entry.state}))
  elif not found:
    print(f'{folder} has no checkpoints')
  else:
    rows = [
      (
        entry.name,
        size_of(entry.bytes),
        entry.files,
        (entry.digest or 'none')[:12],
        ' '.join(f'{axis}={size}' for axis, size in entry.mesh.items()),
        entry.written.replace('T', ' ').replace('+00:00', 'Z'),
        entry.loss,
        ', '.join(entry.kept),
        entry.state,
      )
      for entry in found
    ]
    print(table(rows, ('step', 'size', 'files', 'digest', 'mesh', 'written', 'loss', 'kept as', 'state')))
  return int(any(entry.damage for entry in found))


def _show_config(folder: Path, names: list[str]) -> int:
  from llamax.checkpoint import steps

  if not names:
    raise UserError(f'{folder} has no checkpoints')
  try:
    config = steps.meta(folder / names[0])['config']
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f'{folder / names[0] / steps.META_FILE} cannot be read ({error})') from None
  print(json.dumps(config, indent=2))
  return exits.DONE


def _verify(args: argparse.Namespace) -> int:
  from llamax.checkpoint import digests, listing

  folder = listing.folder_of(args.workdir)
  wanted = listing.chosen(folder, args.steps) or [name for name in listing.names(folder) if name.isdecimal()]
  if not wanted:
    print(f'{folder} has no checkpoints')
  bad = 0
  for name in wanted:
    meter = Meter(f'step {name}', sys.stderr.isatty())
    damages = digests.verify(folder / name, progress=meter.add)
    if damages and not listing.is_there(folder, name):
      if not args.json:
        print(f'step {name}: removed meanwhile, by the run that goes on there', flush=True)
      continue
    bad += bool(damages)
    if args.json:
      facts = {'step': name, 'whole': not damages, 'damage': [dataclasses.asdict(d) for d in damages]}
      print(json.dumps(facts | {'bytes': meter.bytes, 'seconds': round(meter.seconds, 3)}), flush=True)
    else:
      verdict = f'DAMAGED, {len(damages)} files' if damages else 'whole'
      if not damages and not meter.bytes:
        verdict = 'has all its files in their sizes; it was saved without digests'
      print(f'step {name}: {verdict} ({meter})', *(f'  {d}' for d in damages), sep='\n', flush=True)
  if bad and not args.json:
    print(
      f'{bad} of {len(wanted)} checkpoints are damaged. A run that goes on takes the newest one that is whole; '
      f'to delete one: llamax checkpoint rm {args.workdir} STEP'
    )
  return int(bool(bad))


def _remove(args: argparse.Namespace) -> int:
  from llamax.checkpoint import listing
  from llamax.checkpoint.lease import acquire

  folder = listing.folder_of(args.workdir)
  if not args.steps:
    raise UserError(f'which ones? llamax checkpoint rm {args.workdir} STEP ...')
  wanted = listing.chosen(folder, args.steps)
  # While it is held no run starts here; one that runs refuses it.
  with acquire(args.workdir, _LEASE_SECONDS, lambda text: print(text, file=sys.stderr, flush=True)):
    left = [name for name in listing.names(folder) if name.isdecimal() and name not in wanted]
    print(f'{folder}: to delete {", ".join(wanted)}; {", ".join(left) or "no step"} stays')
    if not args.yes and not _agreed():
      print('nothing was deleted')
      return exits.DONE
    for name in wanted:
      try:
        listing.remove(folder, name)
      except OSError as error:
        raise UserError(f'{folder / name} cannot be deleted ({error.strerror or error})') from None
      print(f'deleted {name}')
  return exits.DONE


def _agreed() -> bool:
  try:
    return input('Delete for good? [y/N] ').strip().lower() in ('y', 'yes')
  except EOFError:
    raise UserError('nobody is there to agree: give --yes') from None


class Meter:
  """Counts the bytes read; on a terminal it shows them, several times a second. Any thread may add."""

  def __init__(self, title: str, shows: bool):
    self.bytes, self._title, self._shows = 0, title, shows
    self._lock = threading.Lock()
    self._start = self._shown = time.monotonic()

  @property
  def seconds(self) -> float:
    return time.monotonic() - self._start

  def add(self, count: int) -> None:
    with self._lock:
      self.bytes += count
      if self._shows and time.monotonic() - self._shown > 0.2:
        self._shown = time.monotonic()
        print(f'\r{self._title}: {self} ', end='\r', file=sys.stderr, flush=True)

  def __str__(self) -> str:
    return f'{size_of(self.bytes)}, {self.bytes / 1e9 / max(self.seconds, 1e-9):.2f} GB/s'


def size_of(count: float) -> str:
  """4.2 MB."""
  size, units = float(count), ['B', 'kB', 'MB', 'GB', 'TB']
  while size >= 999.5 and len(units) > 1:
    size, units = size / 1000, units[1:]
  return f'{size:.3g} {units[0]}'


_ACTIONS = {'ls': _list, 'verify': _verify, 'rm': _remove}
