"""llamax train: trains a model, or goes on with a run."""

import argparse
import signal
from contextlib import ExitStack

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.train.early import sigterm_ends

HELP = 'train a model, or go on with a run'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--config', required=True, metavar='FILE[:ARG]', help='a file with get_config(arg)')
  parser.add_argument('--workdir', metavar='DIR', help='all that the run writes; the same one resumes')
  parser.add_argument('--dry_run', action='store_true', help='print the config, shapes, rules, memory; stop')
  parser.add_argument('--topology', metavar='NAME', help='with --dry_run: compile for these TPUs (v5e:16x16)')
  parser.add_argument(
    '--allow_change',
    action='append',
    default=[],
    metavar='FIELD',
    help='let a field differ from the checkpoint that refuses it; may be given again for another field',
  )
  several = parser.add_argument_group('several processes', 'SLURM, TPU pods, GKE are found without these')
  several.add_argument('--coordinator', metavar='HOST:PORT', help='where process 0 listens for the others')
  several.add_argument(
    '--num_processes', type=int, metavar='N', help='of the run, each started with this command'
  )
  several.add_argument('--process_id', type=int, metavar='I', help='which of them this one is, from 0')
  several.add_argument(
    '--public_coordinator', action='store_true', help='let process 0 listen on an address of the internet'
  )
  parser.epilog = 'Any config key: --config.optim.learning_rate=3e-4 (none for None, 1e6 for an integer).'
  parser.set_defaults(takes_overrides=True, outlives_its_screen=True)


def main(args: argparse.Namespace) -> int:
  with ExitStack() as stack:
    if not args.dry_run:
      stack.enter_context(sigterm_ends(stack, at_once=True))
    return train(args)


def train(args: argparse.Namespace) -> int:
  from llamax.cli.configure import difference, load

  cfg, provenance = load(args.config, args.overrides)
  if args.topology and not args.dry_run:
    raise UserError('--topology compiles without running: it goes with --dry_run')
  if args.dry_run:
    from llamax.observe.report import table

    rows = [(key, repr(value), where) for key, value, where in difference(cfg, provenance)]
    print(table(rows, ('key', 'value', 'from')), end='\n\n')
    check_first_weights(cfg, args.workdir)
    return dry_run(cfg, args.topology)
  if not args.workdir:
    raise UserError('--workdir=DIR is missing: the folder for all that this run writes')
  from llamax.checkpoint.claim import check_workdir

  # Before jax is imported, which takes longer than the answer.
  check_workdir(args.workdir, cfg.to_mapping(), args.allow_change)
  check_first_weights(cfg, args.workdir)
  from llamax.parallel import hosts
  from llamax.train.loop import run

  hosts.start(
    args.coordinator,
    args.num_processes,
    args.process_id,
    heartbeat_seconds=cfg.watchdog.heartbeat_seconds,
    public=args.public_coordinator,
  )
  result = run(cfg, args.workdir, allow_change=args.allow_change)
  if result.finished:
    return exits.DONE
  others = hosts.peers()
  if others is None or others.rank == 0:
    print(stopped(result.step, result.saved))
  return exits.RESUME if result.signal == signal.SIGTERM else exits.INTERRUPTED


def check_first_weights(cfg, workdir: str | None) -> None:
  """UserError where a new run would begin from what is not there, or is of another model."""
  if cfg.train.init_from is not None:
    from llamax.train.initial import check_initial

    check_initial(cfg, workdir)


def stopped(step: int, saved: bool) -> str:
  if saved:
    return f'stopped after step {step:,}, saved; the same command goes on from there'
  return (
    f'stopped after step {step:,}; checkpoint.grace_seconds left no time to save it. The same command goes on '
    'from the newest checkpoint'
  )


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
