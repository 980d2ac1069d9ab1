"""Runs that Optuna chooses, one after the other, by what those before have given.

DIR/study.db is Optuna's own storage, which its tools read (optuna-dashboard sqlite:///DIR/study.db). Trial K is
the run trial-000K. A trial that a kill has interrupted is still running for Optuna: it goes on in its folder,
as the same trial.
"""

import dataclasses
import hashlib
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamax.core import exits
from llamax.core.config import parse_text
from llamax.core.errors import UserError, pick
from llamax.sweep.draws import Choice, Distribution, IntUniform
from llamax.sweep.locks import Lock, alone, claim
from llamax.sweep.plan import Plan, PlannedRun, Resolve, objective_of, refuse_overrides, to_text
from llamax.sweep.space import Study
from llamax.sweep.state import FAILED, FINISHED, PRUNED, SweepLedger, is_finished, ledger_states
from llamax.sweep.watch import Watched

STORAGE_FILE = 'study.db'
SAMPLERS = ('tpe', 'random', 'qmc')
PRUNERS = ('none', 'median', 'halving', 'hyperband')
_PATIENCE_SECONDS = 100
DIRECTIONS = ('minimize', 'maximize')


def make_plan(
  config: str,
  overrides: Sequence[tuple[str, str]],
  study: Study,
  resolve: Resolve,
  prune: Mapping[str, Any] | None,
) -> Plan:
  """The plan of a study: its runs come later.

  Raises:
    UserError: an unknown sampler, pruner, direction; a key that the config lacks, a value that it refuses; an
      override of what the study sets; Optuna is not installed.
  """
  for name, known in (('sampler', SAMPLERS), ('pruner', PRUNERS), ('direction', DIRECTIONS)):
    pick(dict.fromkeys(known), getattr(study, name), f's.study: {name}')
  _optuna()
  refuse_overrides(overrides, {*study.draws, *study.base})
  base = resolve(_texts(study.base))
  for key, distribution in study.draws.items():
    for value in _ends(distribution):
      if parse_text(key, to_text(value)) != value:
        raise UserError(f's.study: {key}={value!r} is not what that key takes')
  return Plan(
    config=config,
    overrides=tuple(overrides),
    base=base.to_mapping(),
    objective=objective_of(base, study.objective),
    direction=study.direction,
    runs=(),
    study={
      'trials': study.trials,
      'draws': {key: {'kind': type(d).__name__, **dataclasses.asdict(d)} for key, d in study.draws.items()},
      'base': dict(study.base),
      'sampler': study.sampler,
      'pruner': study.pruner,
      'seed': study.seed,
    },
    prune=prune,
  )


class Searched:
  """The trials of a study, handed out each to one process at a time (runner.Queue)."""

  def __init__(
    self, folder: str | os.PathLike[str], study: Study, plan: Plan, resolve: Resolve, ledger: SweepLedger
  ):
    self._folder, self._spec, self._resolve, self._ledger = Path(folder), study, resolve, ledger
    self._objective = plan.objective
    self._optuna = optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with alone(folder, 'study'):
      self._study = optuna.create_study(
        storage=_storage(optuna, self._folder.absolute() / STORAGE_FILE),
        study_name='sweep',
        direction=study.direction,
        load_if_exists=True,
        pruner=self._pruner(),
      )
    self._trials: dict[str, Any] = {}

  def __len__(self) -> int:
    return max(self._spec.trials, len(self.names()))

  def names(self) -> list[str]:
    return [_name(trial.number) for trial in self._study.get_trials(deepcopy=False)]

  def next(self, skip: Collection[str]) -> tuple[PlannedRun, Lock] | None:
    """An interrupted trial, else a new one; None: all are done, claimed or in `skip`."""
    with alone(self._folder, 'study'):  # Two processes that ask at once would be told the same.
      states = (self._optuna.trial.TrialState.RUNNING, self._optuna.trial.TrialState.WAITING)
      for frozen in self._study.get_trials(deepcopy=False, states=states):
        name = _name(frozen.number)
        lock = None if name in skip else claim(self._folder, name)
        if lock is None:
          continue
        # Its sampler before anything else: what is still to be drawn comes out as it would have.
        self._study.sampler = self._sampler(frozen.number, '')
        self._trials[name] = self._optuna.trial.Trial(self._study, frozen._trial_id)
        run = self._run(frozen.number)
        if run is not None and not self._is_over(name):
          return run, lock
        lock.release()
      while (number := len(self._study.get_trials(deepcopy=False))) < self._spec.trials:
        self._study.sampler = self._sampler(number, '')
        trial = self._study.ask()
        name = _name(trial.number)
        self._trials[name] = trial
        lock = claim(self._folder, name)
        assert lock is not None, name
        run = self._run(trial.number)
        if run is not None:
          return run, lock
        lock.release()
    return None

  def ended(self, name: str, state: str, watched: Watched) -> None:
    """Tells Optuna, unless the run is to go on later; UserError where no run will ever have the objective."""
    if state not in (FINISHED, PRUNED, FAILED):
      return
    found = self._optuna.trial.TrialState
    value, over = None, {FINISHED: found.COMPLETE, PRUNED: found.PRUNED, FAILED: found.FAIL}[state]
    if state != FAILED:
      self._report(watched)
    if state == FINISHED:
      value = watched.result
      if value is None:
        has = ', '.join(sorted({*watched.latest} - {'step'}))
        mend = f'it has: {has}. Change the objective of s.study, give another --workdir'
        raise UserError(
          f'{name} has finished without the metric {self._objective!r}, by which the study chooses; '
          + (mend if has else 'its folder has none at all: where it was trained elsewhere, mount that here')
        )
      if not math.isfinite(value):
        value, over = None, found.FAIL
    self._study.tell(_number(name), value, state=over, skip_if_finished=True)

  def why_prune(self, watched: Watched) -> str | None:
    """What the study's pruner says of a run under way."""
    if self._spec.pruner == 'none' or not self._report(watched):
      return None
    if not self._trials[watched.name].should_prune():
      return None
    return f'{self._spec.pruner}: {self._objective} {watched.result:.4f} at step {max(watched.evals)}'

  def _report(self, watched: Watched) -> bool:
    """Passes on what Optuna does not know yet; False: nothing is new."""
    known = self._study.get_trials(deepcopy=False)[_number(watched.name)].intermediate_values
    new = {step: value for step, value in watched.evals.items() if step not in known and math.isfinite(value)}
    for step in sorted(new):
      self._trials[watched.name].report(new[step], step)
    return bool(new)

  def _is_over(self, name: str) -> bool:
    """Whether a trial that Optuna takes for running has ended; then Optuna is told."""
    state = ledger_states(self._folder, [name])[name].state
    if is_finished(self._folder, name):
      state = FINISHED
    watched = Watched(self._folder, name, self._objective)
    watched.look()
    self.ended(name, state, watched)
    return state in (FINISHED, PRUNED, FAILED)

  def _run(self, number: int) -> PlannedRun | None:
    """The run of a trial, with its draws; None where they do not fit each other: then it has failed."""
    name = _name(number)
    point = dict(self._spec.base)
    for key, distribution in self._spec.draws.items():
      self._study.sampler = self._sampler(number, key)
      point[key] = _suggest(self._trials[name], key, distribution)
    known = ledger_states(self._folder, [name])[name]
    if not known.attempts:
      self._ledger.record('trial', run=name, number=number, point=point)
    try:
      self._resolve(_texts(point))
    except UserError as error:
      self._ledger.record('ended', run=name, attempt=0, code=exits.MISTAKE, state=FAILED, seconds=0.0)
      self._ledger.record('refused', run=name, why=str(error))
      self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)
      return None
    return PlannedRun(name, point)

  def _sampler(self, number: int, key: str) -> Any:
    """With a seed of its own for each draw: a search that was interrupted draws what it would have drawn."""
    samplers = self._optuna.samplers
    digest = hashlib.sha256(f'{self._spec.seed}/{number}/{key}'.encode()).digest()
    seed = int.from_bytes(digest[:4])
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Some samplers are 'experimental': the user has chosen it.
      if self._spec.sampler == 'random':
        return samplers.RandomSampler(seed=seed)
      if self._spec.sampler == 'qmc':  # One sequence, whose position is in the storage.
        first = samplers.RandomSampler(seed=seed)
        return samplers.QMCSampler(
          scramble=True, seed=self._spec.seed, independent_sampler=first, warn_independent_sampling=False
        )
      return samplers.TPESampler(seed=seed)

  def _pruner(self) -> Any:
    pruners = self._optuna.pruners
    return {
      'none': pruners.NopPruner,
      'median': pruners.MedianPruner,
      'halving': pruners.SuccessiveHalvingPruner,
      'hyperband': pruners.HyperbandPruner,
    }[self._spec.pruner]()


def _optuna() -> Any:
  try:
    import optuna
  except ImportError:
    raise UserError(
      "s.study is a search by Optuna, which is not installed: pip install 'llamax[sweep]'"
    ) from None
  return optuna


def _storage(optuna: Any, path: Path) -> Any:
  """Optuna's own; who shares the work may hold it for a moment."""
  import sqlalchemy  # Optuna brings it.

  url = sqlalchemy.URL.create('sqlite', database=str(path))  # A path may hold a question mark.
  text = url.render_as_string(hide_password=False)
  return optuna.storages.RDBStorage(text, engine_kwargs={'connect_args': {'timeout': _PATIENCE_SECONDS}})


def _suggest(trial: Any, key: str, distribution: Distribution) -> Any:
  if isinstance(distribution, Choice):
    texts = {to_text(value): value for value in distribution.values}  # Optuna keeps no tuples.
    return texts[trial.suggest_categorical(key, list(texts))]
  if isinstance(distribution, IntUniform):
    return trial.suggest_int(key, distribution.low, distribution.high, log=distribution.log)
  return trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log)


def _ends(distribution: Distribution) -> tuple[Any, ...]:
  return distribution.values if isinstance(distribution, Choice) else (distribution.low, distribution.high)


def _texts(point: Mapping[str, Any]) -> list[tuple[str, str]]:
  return [(key, to_text(value)) for key, value in point.items()]


def _name(number: int) -> str:
  return f'trial-{number:04d}'


def _number(name: str) -> int:
  return int(name.rpartition('-')[2])


def study_words(plan: Plan) -> str:
  """A study in a few lines, before it starts."""
  assert plan.study is not None
  study = plan.study
  lines = [
    f'a study of {study["trials"]} trials: {plan.direction} {plan.objective}, sampler {study["sampler"]}, '
    f'pruner {study["pruner"]}, seed {study["seed"]}'
  ]
  for key, draw in study['draws'].items():
    if 'values' in draw:
      words = 'one of ' + ', '.join(map(to_text, draw['values']))
    else:
      words = f'{draw["low"]} to {draw["high"]}' + (', by logarithm' if draw['log'] else '')
    lines.append(f'  {key}: {words}')
  return '\n'.join(lines)
