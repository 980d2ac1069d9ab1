"""llamax sweep: runs of one config with some of its keys varied, as its get_sweep(s) says."""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llamax.core import exits
from llamax.core.config import Config
from llamax.core.errors import UserError, nearest
from llamax.sweep.plan import Plan, PlannedRun, Resolve
from llamax.sweep.runner import Queue
from llamax.sweep.slots import Slot
from llamax.sweep.space import Study
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
  sweep = read(args)
  check_plan(args.workdir, sweep.plan)
  if args.launcher == 'print':
    return print_commands(args, sweep)
  work = tell_cost(args, sweep, len(slots))
  if args.dry_run:
    return exits.DONE
  from llamax.sweep.locks import only_one

  with contextlib.nullcontext() if args.join else only_one(args.workdir):
    return run(args, sweep, slots, retried, work)


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


def run(
  args: argparse.Namespace,
  sweep: Sweep,
  slots: Sequence[Slot],
  retried: Sequence[str],
  work: Mapping[str, float],
) -> int:
  """Runs what is left to run, tells what came of it; the exit code says whether the same command goes on."""
  from llamax.sweep.locks import alone
  from llamax.sweep.plan import keep_plan
  from llamax.sweep.planned import Planned
  from llamax.sweep.result import exit_code, result_table, summary
  from llamax.sweep.state import SweepLedger, run_states

  plan = sweep.plan
  with alone(args.workdir, 'plan'):
    keep_plan(args.workdir, plan)
  ledger = SweepLedger(args.workdir)
  ledger.sweep_started(args.launcher, len(slots))
  if sweep.study is not None:
    from llamax.sweep.search import Searched

    queue: Queue = Searched(args.workdir, sweep.study, plan, sweep.resolve, ledger)
  else:
    queue = Planned(args.workdir, plan.runs, ledger)
  if retried and sweep.study is not None:
    raise UserError('--retry: a study has judged its trials; it takes another one instead')
  for name, state in run_states(args.workdir, queue.names()).items():
    if state.state in retried:
      ledger.record('retried', run=name)
  asked = start(args, sweep, queue, slots, ledger, work)
  states = run_states(args.workdir, queue.names())
  print(f'\n{result_table(args.workdir, plan, states)}\n\n{summary(states)}', flush=True)
  ledger.record('sweep_ended', states={state.name: state.state for state in states.values()})
  if asked is not None:
    return exits.INTERRUPTED if asked == signal.SIGINT else exits.RESUME
  return exit_code(list(states.values()), len(queue))


def start(
  args: argparse.Namespace,
  sweep: Sweep,
  queue: Queue,
  slots: Sequence[Slot],
  ledger: SweepLedger,
  work: Mapping[str, float],
) -> int | None:
  """Runner.run with the commands of `llamax train`."""
  from llamax.core.config import flatten
  from llamax.sweep.display import Display, Pace
  from llamax.sweep.plan import num_steps_of, run_folder, to_text, train_arguments
  from llamax.sweep.prune import read_policy, watcher
  from llamax.sweep.runner import Runner
  from llamax.sweep.state import trials

  plan = sweep.plan
  llamax = [sys.executable, '-m', 'llamax.cli.main']
  steps = {run.name: num_steps_of(plan, run.point) for run in plan.runs}

  def num_steps(name: str) -> int:
    return steps[name] if name in steps else num_steps_of(plan, trials(args.workdir)[name])

  def command(run: PlannedRun) -> list[str]:
    common = [(key, to_text(value)) for key, value in (sweep.study.base if sweep.study else {}).items()]
    before, now = flatten(plan.base), flatten(read_again(args, common).to_mapping())
    if now != before:
      differ = ', '.join(key for key in now if now[key] != before.get(key))
      raise UserError(f'{args.config} has changed since the sweep was started ({differ}): start it again')
    words = train_arguments(plan, run.point, run_folder(args.workdir, run.name))
    return [*llamax, 'supervise', f'--max_failures={args.max_failures}', '--', *llamax, 'train', *words]

  with contextlib.closing(Display()) as display:
    return Runner(
      args.workdir,
      queue,
      slots,
      command=command,
      ledger=ledger,
      display=display,
      objective=plan.objective,
      policy=watcher(read_policy(args.prune), args.workdir, queue.names, num_steps),
      num_steps=num_steps,
      pace=Pace(work, len(queue)),
      most=args.max_runs,
    ).run()


def read_again(args: argparse.Namespace, texts: Sequence[tuple[str, str]]) -> Config:
  """The config as its file is now: each run reads it when it starts."""
  from llamax.cli.configure import load

  return load(args.config, [*args.overrides, *texts])[0]
