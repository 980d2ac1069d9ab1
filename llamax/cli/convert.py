"""llamax convert: a checkpoint of any LLaMA family from one format to another, exact, in constant memory."""

import argparse
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamax.cli.checkpoint import size_of
from llamax.core.errors import UserError

if TYPE_CHECKING:
  from llamax.convert.copy import Step
  from llamax.convert.source import Source
  from llamax.convert.target import Target

FORMATS = ('llamax', 'hf', 'meta', 'gguf', 'llama2c', 'easylm')
_LINE_SECONDS = 10.0
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_DTYPES = ('float32', 'bfloat16', 'float16', 'q8_0')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('source', metavar='SRC', help='a checkpoint: file or folder; its format is recognised')
  parser.add_argument('destination', metavar='DST', help='what is to be written; must not exist')
  parser.add_argument('--to', choices=FORMATS, help='the format of DST, where its name does not say it')
  parser.add_argument(
    '--from', dest='from_format', choices=FORMATS, help='the format of SRC (default: recognised)'
  )
  parser.add_argument('--dtype', choices=_DTYPES, help='cast every tensor (default: each stays what it is)')
  parser.add_argument(
    '--tokenizer', metavar='FILE', help="the tokenizer that travels along (default: SRC's own); none: without"
  )
  parser.add_argument('--dry_run', action='store_true', help='print the plan, write nothing')
  parser.add_argument(
    '--verify', action='store_true', help='compare logits of SRC and DST; of two that exist, too'
  )
  parser.add_argument('--lora', metavar='DIR', help='merge a PEFT adapter into the weights')
  parser.add_argument('--step', type=int, metavar='N', help='llamax SRC: its checkpoint of this step')
  parser.add_argument('--preset', metavar='NAME', help='easylm SRC, which has no config: the model it is of')
  parser.add_argument(
    '--mesh', metavar='data=1,fsdp=8,...', help='llamax DST: store in the pieces of this mesh'
  )
  parser.add_argument('--shards', type=int, metavar='N', help='meta DST: model-parallel files')
  parser.add_argument('--version', type=int, choices=(0, 1), help='llama2c DST: version of the file')
  parser.add_argument('--max_shard_bytes', type=int, metavar='N', help='hf DST: largest file (default: 5 GB)')
  parser.add_argument('--threads', type=int, default=min(8, 2 * (os.cpu_count() or 1)), metavar='N')


def main(args: argparse.Namespace) -> int:
  from llamax.convert import formats

  _keep_freed_memory()
  path, destination = Path(args.source).expanduser(), Path(args.destination).expanduser()
  if args.threads < 1:
    raise UserError(f'--threads={args.threads}: want at least 1')
  source = formats.open_source(
    path, args.from_format, _tokenizer(args.tokenizer), step=args.step, preset=args.preset
  )
  if args.tokenizer == 'none':
    source.tokenizer = None
  if args.lora:
    from llamax.convert.lora import merged

    source = merged(source, Path(args.lora).expanduser())
  for note in source.notes:
    print(f'note: {note}', file=sys.stderr)
  if args.verify and destination.exists():
    return _verify(source, destination, args)
  target, steps = _plan(source, destination, args)
  for note in target.notes:
    print(f'note: {note}', file=sys.stderr)
  print(_overview(source, target, steps, destination))
  if args.dry_run:
    print(_table(steps))
    return 0
  _write(source, target, steps, destination, args)
  return _verify(source, destination, args) if args.verify else 0


def _keep_freed_memory() -> None:
  """Blocks of one tensor take the memory of the last one's: a third of the processor time is else the kernel's.

  By default glibc gives what is this large back at once, then the kernel clears it anew. One arena: that of a
  thread holds no more than 64 MiB. mallopt(3).
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # Of glibc alone.
  if mallopt:
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
      mallopt(option, value)


def _tokenizer(path: str | None) -> Any:
  if path in (None, 'none'):
    return None
  from llamax.data.tokenizer import open_tokenizer

  return open_tokenizer(path)


def _plan(source: 'Source', destination: Path, args: argparse.Namespace) -> tuple['Target', list['Step']]:
  from llamax.convert import copy, formats
  from llamax.convert.target import Model
  from llamax.convert.vocabulary import require_travels

  name = args.to or formats.guess_target(destination)
  model = Model(source.cfg, source.family, source.tokenizer, source.generation)
  target = formats.open_target(
    name,
    model,
    mesh=args.mesh,
    shards=args.shards,
    version=args.version,
    max_shard_bytes=args.max_shard_bytes,
    dtype=args.dtype if args.dtype == 'q8_0' else None,
  )
  if args.dtype and args.dtype not in target.dtypes:
    raise UserError(f'--dtype={args.dtype}: the format {name} holds {", ".join(target.dtypes)}')
  copy.require_free(destination)
  if source.tokenizer:
    require_travels(source.tokenizer, name, source.cfg.vocab_size)
  return target, copy.make_plan(source, target, args.dtype)


def _overview(source: 'Source', target: 'Target', steps: list['Step'], destination: Path) -> str:
  cfg = source.cfg
  files = target.files([step.wanted for step in steps])
  total = sum(files.values())
  listed = [f'  {name}  {size_of(size)}' for name, size in list(files.items())[:12]]
  if len(files) > len(listed):
    listed.append(f'  ... {len(files) - len(listed)} more files')
  cast = sum(step.source_dtype != step.wanted.dtype for step in steps)
  moved = sum(step.changed for step in steps)
  tokenizer = f'tokenizer of {source.tokenizer.vocab_size:,} ids' if source.tokenizer else 'NO TOKENIZER'
  return '\n'.join(
    [
      f'{source.path} ({source.format}, {source.family}) -> {destination} ({target.format})',
      f'{len(steps):,} tensors, {cfg.num_layers} layers, width {cfg.d_model}, vocabulary {cfg.vocab_size:,}, '
      f'{tokenizer}; {moved} rearranged, {cast} cast',
      f'{size_of(total)} in {len(files)} file(s):',
      *listed,
    ]
  )


def _table(steps: list['Step']) -> str:
  from llamax.observe.report import table

  rows = [
    (
      step.source_name,
      step.wanted.name,
      ' x '.join(map(str, step.wanted.shape)),
      step.wanted.dtype.name
      if step.source_dtype == step.wanted.dtype
      else f'{step.source_dtype.name} -> {step.wanted.dtype.name}',
      f'{step.source_layout.text} -> {step.target_layout.text}' if step.changed else 'as it is',
    )
    for step in steps
  ]
  return table(rows, ('from', 'to', 'shape', 'dtype', 'layout'))


def _write(
  source: 'Source', target: 'Target', steps: list['Step'], destination: Path, args: argparse.Namespace
) -> None:
  from llamax.convert import copy

  options = {
    name: getattr(args, name) for name in ('dtype', 'lora', 'mesh', 'shards', 'version', 'max_shard_bytes')
  }
  start = time.monotonic()
  with _bar(sum(step.num_bytes for step in steps)) as progress:
    copy.copy(
      source,
      target,
      steps,
      destination,
      options,
      threads=args.threads,
      progress=progress,
      say=lambda text: print(text, file=sys.stderr),
    )
  seconds, size = time.monotonic() - start, sum(step.num_bytes for step in steps)
  print(f'{destination} is written: {size_of(size)} in {seconds:.1f} s ({size_of(size / seconds)}/s)')


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
  """Bytes with the time left: a bar on a terminal, a line every 10 s elsewhere."""
  from tqdm import tqdm

  if not sys.stderr.isatty():
    yield _Lines(total).add
    return
  with tqdm(total=total, unit='B', unit_scale=True) as bar:
    yield bar.update


class _Lines:
  """Progress for a log file."""

  def __init__(self, total: int):
    self._total, self._done, self._lock = total, 0, threading.Lock()
    self._start = self._told = time.monotonic()

  def add(self, count: int) -> None:
    with self._lock:
      self._done += count
      now = time.monotonic()
      if now - self._told < _LINE_SECONDS:
        return
      self._told = now
      rate = self._done / (now - self._start)
      left = (self._total - self._done) / rate
      done = f'{size_of(self._done)} of {size_of(self._total)}'
      print(f'{done}, {size_of(rate)}/s, {left:,.0f} s to go', file=sys.stderr, flush=True)


def _verify(source: 'Source', destination: Path, args: argparse.Namespace) -> int:
  from llamax.convert import formats
  from llamax.convert.verify import compare

  target = formats.open_source(destination, args.to, None, preset=None)
  report = compare(source, target)
  print('\n'.join(report.lines()))
  return report.exit_code
