"""llamax train: trains a model, or goes on with a run."""

import argparse

from llamax.core.errors import UserError

HELP = 'train a model, or go on with a run'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--config', required=True, metavar='FILE[:ARG]', help='a file with get_config(arg)')
  parser.add_argument('--workdir', metavar='DIR', help='all that the run writes; the same one resumes')
  parser.add_argument('--dry_run', action='store_true', help='print the config, shapes, rules, memory; stop')
  parser.add_argument('--topology', metavar='NAME', help='with --dry_run: compile for these TPUs (v5e:16x16)')
  parser.epilog = 'Any config key: --config.optim.learning_rate=3e-4 (none for None, 1e6 for an integer).'
  parser.set_defaults(takes_overrides=True)


def main(args: argparse.Namespace) -> int:
  from llamax.cli.configure import difference, load

  cfg, provenance = load(args.config, args.overrides)
  if args.topology and not args.dry_run:
    raise UserError('--topology compiles without running: it goes with --dry_run')
  if args.dry_run:
    from llamax.observe.report import table

    rows = [(key, repr(value), where) for key, value, where in difference(cfg, provenance)]
    print(table(rows, ('key', 'value', 'from')), end='\n\n')
    return dry_run(cfg, args.topology)
  if not args.workdir:
    raise UserError('--workdir=DIR is missing: the folder for all that this run writes')
  from llamax.train.loop import run

  result = run(cfg, args.workdir)
  if not result.finished:
    print(f'stopped after step {result.step:,}, saved; the same command goes on from there')
    return 130
  return 0


def dry_run(cfg, topology: str | None) -> int:
  """Prints what the run would be on this machine's devices, or compiles it for TPUs that are not here."""
  if topology:
    from llamax.plan.compile import compile_train_step, report

    compiled = compile_train_step(cfg, topology)
    print(report(compiled))
    return 0 if compiled.fits else 2
  import jax

  from llamax.model.llama import param_dims
  from llamax.parallel.hosts import platform, skip_absent_tpu
  from llamax.train.preflight import preflight
  from llamax.train.program import make_program

  skip_absent_tpu()
  print(preflight(make_program(cfg, jax.devices()), param_dims(cfg.model), platform()[1]))
  return 0
