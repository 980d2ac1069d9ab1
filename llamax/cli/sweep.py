"""llamax sweep: runs of one config with some of its keys varied, as its get_sweep(s) says."""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence

from llamax.core import exits
from llamax.core.config import Config
from llamax.core.errors import UserError, nearest
from llamax.sweep.plan import Plan, PlannedRun
from llamax.sweep.runner import Queue
from llamax.sweep.slots import Slot
from llamax.sweep.state import SweepLedger

LAUNCHERS = {
  'local': 'on this machine, --slots at a time',
  'print': 'print the commands, one a line, start nothing',
}
RETRIED = ('failed', 'pruned')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--config', required=True, metavar='FILE[:ARG]', help='a file with get_config(), get_sweep(s)')
  add('--workdir', required=True, metavar='DIR', help='all that the sweep writes; the same one goes on')
  what = '; '.join(f'{name}: {text}' for name, text in LAUNCHERS.items())
  add('--launcher', default='local', metavar='NAME', help=f'{what} (local)')
  add('--dry_run', action='store_true', help='print the runs, what they cost, how they stand; stop')
  add('--slots', type=int, metavar='N', help='runs at a time (1)')
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
  from llamax.sweep.plan import check_plan
  from llamax.sweep.slots import make_slots

  slots = make_slots(args.slots, args.devices.split(',') if args.devices else None, args.devices_per_run)
  plan, configs = read(args)
  there = check_plan(args.workdir, plan)
  if args.launcher == 'print':
    return print_commands(args, plan)
  tell_cost(args, there or plan, configs, len(slots))
  if args.dry_run:
    return exits.DONE
  from llamax.sweep.locks import only_one

  with contextlib.nullcontext() if args.join else only_one(args.workdir):
    return run(args, plan, configs, slots, retried)


def read(args: argparse.Namespace) -> tuple[Plan, list[Config]]:
  """The plan that the config file and the command line make, with the config of each of its runs."""
  from llamax.cli.configure import load_sweep
  from llamax.sweep import space
  from llamax.sweep.plan import make_plan
  from llamax.sweep.prune import read_policy

  found, resolve = load_sweep(args.config, args.overrides, space)
  policy = read_policy(args.prune)
  prune = policy.to_mapping() if policy else None
  if not isinstance(found, space.Space):
    raise UserError(
      f'get_sweep of {args.config} returns {type(found).__name__}; want what s.grid, s.product, s.study give'
    )
  return make_plan(args.config, args.overrides, found, resolve, prune)


def tell_cost(args: argparse.Namespace, plan: Plan, configs: Sequence[Config], slots: int) -> None:
  """Prints the runs, what they cost, how far they are."""
  from llamax.sweep.cost import Speed, cost_table, costs
  from llamax.sweep.count import count_parameters
  from llamax.sweep.state import run_states

  found = dict(zip((run.name for run in plan.runs), costs(configs, count_parameters(configs)), strict=True))
  states = run_states(args.workdir, list(found))
  speed = Speed(args.workdir, found, args.flops_per_second)
  print(cost_table(plan.runs, found, states, speed, slots), flush=True)


def print_commands(args: argparse.Namespace, plan: Plan) -> int:
  """One command a line for each run that is not done; they may be pasted, or given to GNU parallel."""
  from llamax.sweep.plan import run_folder, train_arguments
  from llamax.sweep.state import FINISHED, PRUNED, run_states

  for name, state in run_states(args.workdir, [run.name for run in plan.runs]).items():
    if state.state not in (FINISHED, PRUNED):
      (point,) = [run.point for run in plan.runs if run.name == name]
      words = train_arguments(plan, point, run_folder(args.workdir, name))
      print(shlex.join(['llamax', 'supervise', '--', 'llamax', 'train', *words]))
  return exits.DONE


def run(
  args: argparse.Namespace, plan: Plan, configs: Sequence[Config], slots: Sequence[Slot], retried: Sequence[str]
) -> int:
  """Runs what is left to run, tells what came of it; the exit code says whether the same command goes on."""
  from llamax.sweep.locks import alone
  from llamax.sweep.plan import keep_plan
  from llamax.sweep.planned import Planned
  from llamax.sweep.result import exit_code, result_table, summary
  from llamax.sweep.state import SweepLedger, run_states

  with alone(args.workdir, 'plan'):
    keep_plan(args.workdir, plan)
  ledger = SweepLedger(args.workdir)
  ledger.sweep_started(args.launcher, len(slots))
  queue = Planned(args.workdir, plan.runs, ledger)
  for name, state in run_states(args.workdir, queue.names()).items():
    if state.state in retried:
      ledger.record('retried', run=name)
  steps = {r.name: c.train.num_steps for r, c in zip(plan.runs, configs, strict=True)}
  asked = start(args, plan, queue, slots, ledger, steps)
  states = run_states(args.workdir, queue.names())
  print(f'\n{result_table(args.workdir, plan, states)}\n\n{summary(states)}', flush=True)
  ledger.record('sweep_ended', states={state.name: state.state for state in states.values()})
  if asked is not None:
    return exits.INTERRUPTED if asked == signal.SIGINT else exits.RESUME
  return exit_code(list(states.values()))


def start(
  args: argparse.Namespace,
  plan: Plan,
  queue: Queue,
  slots: Sequence[Slot],
  ledger: SweepLedger,
  num_steps: Mapping[str, int],
) -> int | None:
  """Runner.run with the commands of `llamax train`."""
  from llamax.cli.configure import load
  from llamax.core.config import flatten
  from llamax.sweep.display import Display, Pace
  from llamax.sweep.plan import run_folder, train_arguments
  from llamax.sweep.runner import Runner

  def command(run: PlannedRun) -> list[str]:
    now = load(args.config, args.overrides)[0].to_mapping()
    if now != plan.base:
      differ = [key for key, value in flatten(now).items() if flatten(plan.base).get(key) != value]
      raise UserError(f'{args.config} has changed since the sweep began ({", ".join(differ)}): change it back')
    words = train_arguments(plan, run.point, run_folder(args.workdir, run.name))
    llamax = [sys.executable, '-m', 'llamax.cli.main']
    return [*llamax, 'supervise', f'--max_failures={args.max_failures}', '--', *llamax, 'train', *words]

  display = Display()
  with contextlib.closing(display):
    return Runner(
      args.workdir, queue, slots,
      command=command, ledger=ledger, display=display, objective=plan.objective,
      policy=lambda watched: None, num_steps=lambda run: num_steps[run.name], pace=Pace({}, len(queue)),
    ).run()  # fmt: skip
