"""llamax sweep: runs of one config with some of its keys varied, as its get_sweep(s) says."""

import argparse
import contextlib
import io
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from llamax.core import exits
from llamax.core.config import Config
from llamax.core.errors import UserError, nearest
from llamax.sweep.launched import TARGETS, Elsewhere
from llamax.sweep.plan import Plan, Resolve
from llamax.sweep.slots import Slot
from llamax.sweep.space import Study

LAUNCHERS = {
  'local': 'on this machine, --slots at a time',
  'print': 'print the commands, one a line, start nothing',
  **TARGETS,
}
RETRIED = ('failed', 'pruned')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--config', required=True, metavar='FILE[:ARG]', help='a file with get_config(), get_sweep(s)')
  add('--workdir', required=True, metavar='DIR', help='all that the sweep writes; the same one goes on')
  what = '; '.join(f'{name}: {text}' for name, text in LAUNCHERS.items())
  add('--launcher', default='local', metavar='NAME', help=f'{what} (local)')
  add('--launch_options', default='', metavar='WORDS', help="for llamax launch: '--nodes=2 --partition=x'")
  add(
    '--remote', metavar='DIR', help='what DIR/runs is on the machines of a launcher, where it is another path'
  )
  add('--dry_run', action='store_true', help='print the runs, what they cost, how they stand; stop')
  add('--slots', type=int, metavar='N', help='runs at a time (1; 4 with a launcher, but ssh)')
  add('--devices', metavar='A,B,...', help='accelerators to share out, as CUDA or libtpu number them')
  add('--devices_per_run', type=int, default=1, metavar='N', help='of --devices (1)')
  add('--max_runs', type=int, metavar='N', help='start N runs at most, then end')
  add('--max_failures', type=int, default=5, metavar='N', help='of a run in a row (5): see llamax supervise')
  add('--prune', metavar='POLICY', help='give runs up early: diverged, or diverged:factor=1.5,after=0.1')
  add('--retry', metavar='STATES', help='failed, pruned or both: start such runs once more')
  add('--join', action='store_true', help='share the work of a sweep that is running')
  add('--flops_per_second', type=float, metavar='X', help='what a run reaches, to estimate hours by')
  parser.epilog = 'Any config key, for all runs: --config.train.num_steps=500'
  parser.set_defaults(takes_overrides=True, outlives_its_screen=True)


def main(args: argparse.Namespace) -> int:
  if args.launcher not in LAUNCHERS:
    raise UserError(f'--launcher={args.launcher} is not known.{nearest(args.launcher, LAUNCHERS)}')
  retried = [word for word in (args.retry or '').split(',') if word]
  for word in retried:
    if word not in RETRIED:
      raise UserError(f'--retry={args.retry}: want failed, pruned or failed,pruned')
  if args.max_runs is not None and args.max_runs < 1:
    raise UserError(f'--max_runs={args.max_runs}: want at least 1')
  if args.max_failures < 1:
    raise UserError(f'--max_failures={args.max_failures}: want at least 1')
  from llamax.sweep.launched import elsewhere
  from llamax.sweep.plan import check_plan

  there = elsewhere(args.launcher, args.launch_options, args.remote) if args.launcher in TARGETS else None
  slots = slots_of(args)
  sweep = read(args)
  check_plan(args.workdir, sweep.plan)
  if there is not None:
    check_job(args, there, sweep.plan)
  if args.launcher == 'print':
    return print_commands(args, sweep)
  work = tell_cost(args, sweep, len(slots))
  if args.dry_run:
    if there is not None:
      for run in sweep.plan.runs:
        print(shlex.join(['llamax', *there.words(args.workdir, sweep.plan, run, 'run')]))
    return exits.DONE
  from llamax.cli.configure import load
  from llamax.sweep.local import run_here
  from llamax.sweep.prune import read_policy

  return run_here(
    args.workdir,
    sweep.plan,
    slots,
    study=sweep.study,
    resolve=sweep.resolve,
    now=lambda texts: load(args.config, [*args.overrides, *texts])[0],
    policy=read_policy(args.prune),
    retried=retried,
    join=args.join,
    max_runs=args.max_runs,
    max_failures=args.max_failures,
    work=work,
    elsewhere=there,
  )


def slots_of(args: argparse.Namespace) -> list[Slot]:
  """Parts of this machine, or how many jobs there are at a time."""
  from llamax.sweep.slots import make_slots

  devices = args.devices.split(',') if args.devices else None
  if args.launcher not in TARGETS:
    if args.launch_options or args.remote:
      raise UserError(f'--launch_options, --remote: want --launcher={"|".join(TARGETS)}')
    return make_slots(args.slots, devices, args.devices_per_run)
  if devices:
    raise UserError(f'--devices are those of this machine; for {args.launcher} see --launch_options')
  most = 1 if args.launcher == 'ssh' else 4
  count = len(make_slots(most if args.slots is None else args.slots, None, args.devices_per_run))
  if args.launcher == 'ssh' and count > 1:
    raise UserError(
      f'--slots={count}: --launcher=ssh has one list of hosts, which take one run after the other'
    )
  return [Slot(index, None, {}) for index in range(count)]


def check_job(args: argparse.Namespace, there: Elsewhere, plan: Plan) -> None:
  """Has `llamax launch` read the words of a run, plan its job: what it would refuse of all of them.

  Raises:
    UserError: as the target has it; options that would take the runs for each other, or start none.
  """
  from llamax.cli import launch
  from llamax.sweep.plan import PlannedRun

  run = plan.runs[0] if plan.runs else PlannedRun('trial-0000', (plan.study or {}).get('base', {}))
  words = there.words(args.workdir, plan, run, 'run')
  cut = words.index('--')
  parser, said = argparse.ArgumentParser(), io.StringIO()
  launch.add_arguments(parser)
  where = f'--launcher={args.launcher} --launch_options={args.launch_options!r}'
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
      found, rest = parser.parse_known_args(words[1:cut])
  except SystemExit:
    why = said.getvalue().rstrip().rpartition('error: ')
    raise UserError(f'{where}: {why[2] if why[1] else "that shows its help, starts nothing"}') from None
  if rest or found.what != 'run':
    raise UserError(f'{where}: {(rest or [found.what])[0]!r} is no option of it')
  if found.dry_run or f'--name={found.name}' not in words[:4]:
    raise UserError(f'{where}: want neither --dry_run nor --name there; each run has a name of its own')
  found.command, found.dry_run = words[cut + 1 :], args.dry_run
  module = launch.load(args.launcher)
  try:
    module.plan('run', found, launch.make_job(found, module))
  except UserError as error:
    relative = not args.workdir.startswith('/') and args.remote is None
    hint = '; --remote=DIR says what DIR/runs of the sweep is there' if relative else ''
    raise UserError(f'{where}: {error}{hint}') from None


class Sweep(NamedTuple):
  """configs: of the plan's runs. study: where it chooses the runs. resolve: texts of keys -> a run's config."""

  plan: Plan
  configs: Sequence[Config]
  study: Study | None
  resolve: Resolve


def read(args: argparse.Namespace) -> Sweep:
  """What the config file and the command line make."""
  from llamax.cli.configure import load_sweep
  from llamax.sweep import space
  from llamax.sweep.plan import make_plan
  from llamax.sweep.prune import read_policy

  found, resolve = load_sweep(args.config, args.overrides, space)
  policy = read_policy(args.prune)
  prune = policy.to_mapping() if policy else None
  if isinstance(found, Study):
    from llamax.sweep import search

    return Sweep(search.make_plan(args.config, args.overrides, found, resolve, prune), [], found, resolve)
  if not isinstance(found, space.Space):
    raise UserError(
      f'get_sweep of {args.config} returns {type(found).__name__}; want what s.grid, s.product, s.study give'
    )
  plan, configs = make_plan(args.config, args.overrides, found, resolve, prune)
  return Sweep(plan, configs, None, resolve)


def tell_cost(args: argparse.Namespace, sweep: Sweep, slots: int) -> dict[str, float]:
  """Prints the runs, what they cost, how far they are; returns their FLOPs as far as they are known."""
  from llamax.sweep.cost import Speed, cost_table, costs
  from llamax.sweep.count import count_parameters
  from llamax.sweep.state import run_states

  plan = sweep.plan
  if sweep.study is not None:
    from llamax.sweep.search import study_words

    print(study_words(plan), flush=True)
    return {}
  names = [run.name for run in plan.runs]
  found = dict(zip(names, costs(sweep.configs, count_parameters(sweep.configs)), strict=True))
  speed = Speed(args.workdir, found, args.flops_per_second)
  print(cost_table(plan.runs, found, run_states(args.workdir, names), speed, slots), end='\n\n', flush=True)
  return {name: cost.flops for name, cost in found.items() if cost.flops is not None}


def print_commands(args: argparse.Namespace, sweep: Sweep) -> int:
  """One command a line for each run that is not done; they may be pasted, or given to GNU parallel."""
  from llamax.sweep.plan import run_folder, train_arguments
  from llamax.sweep.state import FINISHED, PRUNED, run_states

  if sweep.study is not None:
    raise UserError('--launcher=print: a study chooses its runs by what the ones before give; want local')
  states = run_states(args.workdir, [run.name for run in sweep.plan.runs])
  for run in sweep.plan.runs:
    if states[run.name].state not in (FINISHED, PRUNED):
      words = train_arguments(sweep.plan, run.point, run_folder(args.workdir, run.name))
      print(shlex.join(['llamax', 'supervise', '--', 'llamax', 'train', *words]))
  return exits.DONE
