"""The llamax command: one verb per job."""

import argparse
import atexit
import importlib
import sys
from collections.abc import Sequence

from llamax.core import exits, screen
from llamax.core.errors import UserError

# Verb -> what it does; its module is imported only when the verb is used, so that help is instant.
VERBS = {
  'prepare': 'text -> tokenizer, tokenised dataset',
  'train': 'train a model, or go on with a run',
  'supervise': 'start a training command again whenever it ends before its time',
  'launch': 'put a training command onto machines: local, ssh, slurm, tpu-vm, gke',
  'doctor': 'look at this machine for what would stop or slow a run',
  'sweep': 'many runs of one config with some keys varied',
  'compare': 'runs side by side: a table, curves, one page',
  'scaling': 'fit L(N, D) to the runs of a ladder',
  'checkpoint': 'show, verify, remove the checkpoints of a run',
  'convert': 'a checkpoint from one format to another',
  'generate': 'text from a trained model',
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb; returns its exit code (core/exits.py)."""
  words = list(sys.argv[1:] if argv is None else argv)
  command: list[str] = []
  if '--' in words:  # What follows is not ours to read.
    words, command = words[: words.index('--')], words[words.index('--') + 1 :]
  parser = argparse.ArgumentParser(prog='llamax', description='Pretrains LLaMA-family models in JAX.')
  parser.add_argument('--version', action='version', version=_version())
  verbs = parser.add_subparsers(dest='verb', metavar='VERB', required=True)
  wanted = next((word for word in words if not word.startswith('-')), None)
  for verb, help_line in VERBS.items():
    # Abbreviations would take --config.x for --config.
    sub = verbs.add_parser(verb, help=help_line, allow_abbrev=False)
    if verb == wanted:
      module = importlib.import_module(f'llamax.cli.{verb}')
      sub.description = module.__doc__
      module.add_arguments(sub)
  args, rest = parser.parse_known_args(words)
  # Of a dry run the screen is all there is.
  lasting = getattr(args, 'outlives_its_screen', False) and not getattr(args, 'dry_run', False)
  try:
    args.overrides = _overrides(rest, getattr(args, 'takes_overrides', False))
    args.command = command
    if command and not getattr(args, 'takes_command', False):
      raise UserError(f"{command[0]!r} after '--': this verb takes no command; see --help")
    with screen.lasting() if lasting else screen.required():
      return module.main(args)
  except UserError as error:
    screen.tell(f'llamax {args.verb}: {error}')
    return exits.MISTAKE
  except exits.Stop as stop:
    screen.tell(f'llamax {args.verb}: {stop}')
    return stop.code
  except BrokenPipeError:
    if lasting:
      raise  # Some other pipe.
    return 141  # The reader (`| head`) has gone.
  except KeyboardInterrupt:
    screen.tell(f'llamax {args.verb}: interrupted')
    return exits.INTERRUPTED


def _overrides(words: list[str], allowed: bool) -> list[tuple[str, str]]:
  """['--config.a.b=1', '--config.c', '2'] -> [('a.b', '1'), ('c', '2')]; UserError for any other word."""
  pairs, rest = [], list(words)
  while rest:
    word = rest.pop(0)
    if not (allowed and word.startswith('--config.')):
      raise UserError(f'{word!r} is no argument of this verb; see --help')
    key, equals, text = word.removeprefix('--config.').partition('=')
    if not equals:
      if not rest:
        raise UserError(f'{word} lacks a value: {word}=VALUE')
      text = rest.pop(0)
    pairs.append((key, text))
  return pairs


def _version() -> str:
  from llamax import __version__

  return f'llamax {__version__}'


def entry() -> None:
  screen.open_missing()
  atexit.register(screen.settle)
  sys.exit(main())


if __name__ == '__main__':
  entry()
