"""What a sweep is going to run, as it stands in DIR/sweep.json.

{"format": 1,
 "config": "configs/x.py:arg",                    as given to --config
 "overrides": [["train.num_steps", "100"]],       --config.KEY=TEXT for all runs
 "base": {"model": {...}, ...},                   the resolved config without any point
 "objective": "eval/validation/loss",             a name in metrics.jsonl: what runs are ranked by
 "direction": "minimize",
 "runs": [{"name": "learning_rate=0.001", "point": {"optim.learning_rate": 0.001}}, ...],
 "study": null,                                   or the search that makes the runs (llamax/sweep/search.py)
 "prune": null}                                   or the policy (llamax/sweep/prune.py)

Run NAME has the workdir DIR/runs/NAME. Of a study `runs` is empty: its runs are trial-0000, trial-0001, ...
"""

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamax.checkpoint.claim import CONFIG_FILE
from llamax.core.config import Config, flatten, parse_text
from llamax.core.errors import UserError
from llamax.core.storage import needed, write_json
from llamax.sweep.run_names import run_name
from llamax.sweep.space import Space

FORMAT = 1
PLAN_FILE = 'sweep.json'
RUNS = 'runs'

# (values of a point as texts of --config.KEY=TEXT) -> the run's whole config; UserError for what cannot be.
Resolve = Callable[[Sequence[tuple[str, str]]], Config]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """point: dotted key -> value, typed as the config's field."""

  name: str
  point: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
  """The file's fields; see the top of this module."""

  config: str
  overrides: tuple[tuple[str, str], ...]
  base: Mapping[str, Any]
  objective: str
  runs: tuple[PlannedRun, ...]
  direction: str = 'minimize'
  study: Mapping[str, Any] | None = None
  prune: Mapping[str, Any] | None = None


def make_plan(
  config: str,
  overrides: Sequence[tuple[str, str]],
  space: Space,
  resolve: Resolve,
  prune: Mapping[str, Any] | None,
) -> tuple[Plan, list[Config]]:
  """The plan of all points of a space, with the config of each.

  Args:
    config, overrides: as on the command line. prune: the policy by which runs are given up.

  Raises:
    UserError: as `plan_runs`; an override of what the space itself sets.
  """
  refuse_overrides(overrides, {key for point in space for key in point.values})
  base = resolve([])
  runs, configs = plan_runs(space, resolve)
  plan = Plan(
    config=config,
    overrides=tuple(overrides),
    base=base.to_mapping(),
    objective=objective_of(base, 'eval/loss'),
    runs=tuple(runs),
    prune=prune,
  )
  return plan, configs


def refuse_overrides(overrides: Sequence[tuple[str, str]], keys: Collection[str]) -> None:
  """UserError where the command line sets for all runs what the sweep varies."""
  for key, text in overrides:
    if key in keys:
      raise UserError(f'--config.{key}={text}: the sweep itself sets that key; change get_sweep')


def objective_of(config: Config, name: str) -> str:
  """A name in metrics.jsonl: 'eval/loss' is the loss on the first held-out split, in training without one."""
  if name != 'eval/loss':
    return name
  return f'eval/{config.eval.splits[0].partition("=")[0]}/loss' if config.eval.splits else 'loss'


def plan_runs(space: Space, resolve: Resolve) -> tuple[list[PlannedRun], list[Config]]:
  """Each point as a named run with its config, in order.

  Raises:
    UserError: a run whose config cannot be (its name and key are told); two runs that are one and the same.
  """
  runs: dict[str, PlannedRun] = {}
  configs: dict[str, Config] = {}  # by their text
  owners: dict[str, str] = {}
  for point in space:
    name = run_name(point)
    typed = {key: _typed(name, key, value) for key, value in point.values.items()}
    try:
      config = resolve([(key, to_text(value)) for key, value in typed.items()])
    except UserError as error:
      raise UserError(f'run {name}: {error}') from None
    text = json.dumps(config.to_mapping())
    if text in configs:
      raise UserError(f'runs {owners[text]} and {name} have one and the same config: leave one of them out')
    if name in runs:
      raise UserError(f'two runs would be called {name!r}: {runs[name].point} and {typed}; use s.named')
    runs[name], configs[text], owners[text] = PlannedRun(name, typed), config, name
  return list(runs.values()), list(configs.values())


def to_text(value: Any) -> str:
  """What stands after --config.KEY=."""
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, tuple):
    return ','.join(map(to_text, value))
  return repr(value) if isinstance(value, float) else str(value)


def train_arguments(plan: Plan, point: Mapping[str, Any], workdir: str | os.PathLike[str]) -> list[str]:
  """The words after `llamax train` of one run."""
  words = [f'--config={plan.config}', f'--workdir={workdir}']
  texts = [*plan.overrides, *((key, to_text(value)) for key, value in point.items())]
  return words + [f'--config.{key}={text}' for key, text in texts]


def num_steps_of(plan: Plan, point: Mapping[str, Any]) -> int:
  """The training steps of a run of that plan."""
  return int(point.get('train.num_steps', plan.base['train']['num_steps']))


def run_folder(folder: str | os.PathLike[str], name: str) -> Path:
  return Path(folder, RUNS, name)


def read_plan(folder: str | os.PathLike[str]) -> Plan | None:
  """The plan of the sweep in `folder`, None where there is none; UserError for a file that is none."""
  path = Path(folder, PLAN_FILE)
  try:
    found = json.loads(path.read_text())
    if found['format'] != FORMAT:
      raise UserError(f'{path} has format {found["format"]}; this llamax reads {FORMAT}')
    runs = tuple(PlannedRun(r['name'], tupled(r['point'])) for r in found['runs'])
    pairs = tuple((key, text) for key, text in found['overrides'])
    rest = {name: tupled(found[name]) for name in ('config', 'objective', 'direction', 'study', 'prune')}
    return Plan(runs=runs, overrides=pairs, base=tupled(found['base']), **rest)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}): want the folder of a sweep') from None
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f'{path} is not the plan of a sweep ({error!r}): restore it, or take another folder'
    ) from None


def keep_plan(folder: str | os.PathLike[str], plan: Plan) -> None:
  """Writes the plan of a new sweep; of one that is there already, requires that its runs are still the same.

  A sweep may grow: further runs, more trials of a study are taken up. The policy that gives runs up is no part
  of what they are: the newest one counts.

  Raises:
    UserError: as `check_plan`.
  """
  found = check_plan(folder, plan)
  if found is None or _mapping(found) != _mapping(plan):
    path = Path(folder, PLAN_FILE)
    with needed(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      write_json(path, _mapping(plan))


def check_plan(folder: str | os.PathLike[str], plan: Plan) -> Plan | None:
  """The plan that the folder has, None: it has none yet. Changes nothing.

  Raises:
    UserError: the folder has another plan (the message shows how it differs), is that of a run, or is none.
  """
  if not str(folder):
    raise UserError('--workdir= is empty; want a folder of the sweep')
  if '://' in str(folder):
    raise UserError(
      f'--workdir={folder} is an address; want a folder (mount the bucket, with gcsfuse for instance)'
    )
  there = next((path for path in (Path(folder), *Path(folder).parents) if os.path.exists(path)), None)
  if there is not None and not there.is_dir():
    raise UserError(f'--workdir={folder}: {there} is a file; want a folder, which may be new')
  found = read_plan(folder)
  if found is None and Path(folder, CONFIG_FILE).exists():
    raise UserError(f'{folder} is the folder of a run; a sweep wants one of its own')
  if found is not None and (differences := differing(found, plan)):
    shown = ''.join(f'\n  {line}' for line in differences[:12])
    more = f'\n  and {len(differences) - 12} more' if len(differences) > 12 else ''
    raise UserError(
      f'{folder} has the runs of another plan (there | now):{shown}{more}\n'
      'Give another --workdir, or change it back'
    )
  return found


def differing(there: Plan, now: Plan) -> list[str]:
  """Lines 'what: there | now', none where `now` has all runs of `there`, as they were."""
  lines = []
  for field in ('objective', 'direction'):
    lines += _lines(field, getattr(there, field), getattr(now, field))
  lines += _lines('study ', _but_trials(there.study), _but_trials(now.study))
  lines += _lines('', flatten(there.base), flatten(now.base))
  one, other = ({run.name: run.point for run in plan.runs} for plan in (there, now))
  lines += [f'run {name}: {dict(point)} | not there' for name, point in one.items() if name not in other]
  for name in one:
    lines += _lines(f'run {name} ', one[name], other.get(name, one[name]))
  return lines


def _but_trials(study: Mapping[str, Any] | None) -> dict[str, Any] | None:
  return None if study is None else flatten({key: value for key, value in study.items() if key != 'trials'})


def _lines(prefix: str, there: Any, now: Any) -> list[str]:
  if isinstance(there, Mapping) and isinstance(now, Mapping):
    keys = list(dict.fromkeys([*there, *now]))
    pairs: Iterable[tuple[str, Any, Any]] = [(k, there.get(k), now.get(k)) for k in keys]
  else:
    pairs = [('', there, now)]
  # JSON knows lists alone.
  return [f'{prefix}{key}: {a!r} | {b!r}' for key, a, b in pairs if tupled(a) != tupled(b)]


def _typed(name: str, key: str, value: Any) -> Any:
  """`value` as the command line would give it to the run."""
  try:
    typed = parse_text(key, to_text(value))
  except UserError as error:
    raise UserError(f'run {name}: {error}') from None
  if typed != value or isinstance(typed, str) != isinstance(value, str):
    raise UserError(f'run {name}: {key}={value!r} would be read as {typed!r} from a command line; write that')
  return typed


def _mapping(plan: Plan) -> dict[str, Any]:
  return json.loads(json.dumps({'format': FORMAT} | dataclasses.asdict(plan)))


def tupled(value: Any) -> Any:
  """What JSON gives back, with tuples for its lists: values of a config."""
  if isinstance(value, Mapping):
    return {key: tupled(inner) for key, inner in value.items()}
  return tuple(map(tupled, value)) if isinstance(value, list | tuple) else value
