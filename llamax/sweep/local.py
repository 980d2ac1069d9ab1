"""A sweep from its plan to its report."""

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence

from llamax.core import exits
from llamax.core.config import flatten
from llamax.core.errors import UserError
from llamax.sweep.display import Display, Pace
from llamax.sweep.launched import Elsewhere, our_llamax
from llamax.sweep.locks import alone, only_one
from llamax.sweep.plan import (
  Plan,
  PlannedRun,
  Resolve,
  keep_plan,
  num_steps_of,
  run_folder,
  to_text,
  train_arguments,
)
from llamax.sweep.planned import Planned
from llamax.sweep.prune import Diverged, watcher
from llamax.sweep.result import exit_code, result_table, summary
from llamax.sweep.runner import Queue, Runner
from llamax.sweep.slots import Slot
from llamax.sweep.space import Study
from llamax.sweep.state import FAILED, SweepLedger, run_states, trials


def run_here(
  folder: str | os.PathLike[str],
  plan: Plan,
  slots: Sequence[Slot],
  *,
  study: Study | None,
  resolve: Resolve,
  now: Resolve,
  policy: Diverged | None,
  retried: Collection[str],
  join: bool,
  max_runs: int | None,
  max_failures: int,
  work: Mapping[str, float],
  elsewhere: Elsewhere | None = None,
) -> int:
  """Runs what is left to run, tells what came of it; the exit code says whether the same command goes on.

  Args:
    study: where it chooses the runs. resolve, now: texts of keys -> the config, as the file was when the sweep
      was started, as it is by now. retried: states whose runs are started once more. join: beside another
      process that does the same. max_runs: to start. max_failures: of a run in a row. work: FLOPs of runs.
    elsewhere: where each run is a job of `llamax launch`; None: on this machine.

  Raises:
    UserError: another sweep has the folder; its runs are others; the config has changed on the way.
  """
  if retried and study is not None:
    raise UserError('--retry: a study has judged its trials; raise s.study(trials) for further ones')
  with contextlib.nullcontext() if join else only_one(folder):
    with alone(folder, 'plan'):
      keep_plan(folder, plan)
    ledger = SweepLedger(folder)
    ledger.sweep_started(elsewhere.target if elsewhere else 'local', len(slots))
    queue = _queue(folder, plan, study, resolve, ledger)
    for name, state in run_states(folder, queue.names()).items():
      if state.state in retried:
        ledger.record('retried', run=name)
    with contextlib.closing(Display()) as display:
      runner = Runner(
        folder,
        queue,
        slots,
        command=_commands(folder, plan, now, max_failures, elsewhere),
        ledger=ledger,
        display=display,
        objective=plan.objective,
        policy=watcher(policy, folder, queue.names, _steps(folder, plan)),
        num_steps=_steps(folder, plan),
        pace=Pace(work, len(queue)),
        most=max_runs,
        end=None if elsewhere is None else lambda name: elsewhere.ends(folder, plan, name),
      )
      asked = runner.run()
    states = run_states(folder, queue.names())
    ledger.record('sweep_ended', states={state.name: state.state for state in states.values()})
    print(f'\n{result_table(folder, plan, states)}\n\n{summary(states)}', flush=True)
    if any(state.state == FAILED for state in states.values()) and study is None:
      print('once what failed is mended: the same command with --retry=failed', flush=True)
    if asked is None:
      _report(folder)
  if asked is not None:
    return exits.INTERRUPTED if asked == signal.SIGINT else exits.RESUME
  return exit_code(list(states.values()), len(queue))


def _queue(
  folder: str | os.PathLike[str], plan: Plan, study: Study | None, resolve: Resolve, ledger: SweepLedger
) -> Queue:
  if study is None:
    return Planned(folder, plan.runs, ledger)
  from llamax.sweep.search import Searched  # Optuna is an extra.

  return Searched(folder, study, plan, resolve, ledger)


def _commands(
  folder: str | os.PathLike[str], plan: Plan, now: Resolve, max_failures: int, elsewhere: Elsewhere | None
) -> Callable[[PlannedRun], list[str]]:
  """A run -> its command; UserError where the config's file has changed meanwhile: each run reads it itself."""
  fixed = [(key, to_text(value)) for key, value in (plan.study or {}).get('base', {}).items()]
  before = flatten(plan.base)

  def command(run: PlannedRun) -> list[str]:
    found = flatten(now(fixed).to_mapping())
    if found != before:
      differ = ', '.join(key for key in found if found[key] != before.get(key))
      raise UserError(f'{plan.config} has changed since the sweep was started ({differ}): start it again')
    if elsewhere is not None:
      return elsewhere.command(folder, plan, run, 'run')
    words = train_arguments(plan, run.point, run_folder(folder, run.name))
    return our_llamax(['supervise', f'--max_failures={max_failures}', '--', *our_llamax(['train', *words])])

  return command


def _steps(folder: str | os.PathLike[str], plan: Plan) -> Callable[[str], int]:
  """The name of a run -> its training steps."""
  known = {run.name: num_steps_of(plan, run.point) for run in plan.runs}

  def steps(name: str) -> int:
    if name not in known:
      known[name] = num_steps_of(plan, trials(folder)[name])
    return known[name]

  return steps


def _report(folder: str | os.PathLike[str]) -> None:
  """The pictures; a sweep whose runs are done has not failed because they could not be drawn."""
  from llamax.sweep.report import write_sweep_report

  try:
    lines = write_sweep_report(folder)
  except (UserError, exits.Stop) as error:
    lines = [f'no report: {error}']
  print('\n'.join(lines), flush=True)
