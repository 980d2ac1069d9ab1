"""From the paths of a command line to the runs that are meant."""

import dataclasses
import glob
from collections.abc import Sequence
from pathlib import Path

from llamax.core.config import flatten
from llamax.core.errors import UserError
from llamax.sweep.plan import Plan, read_plan, run_folder
from llamax.sweep.record import FIRST_SPLIT, TRAIN_LOSS, RunRecord, is_run, read_record
from llamax.sweep.state import names_of, run_states, trials

_WANT = (
  'want the folder of a run (--workdir of llamax train), of a sweep (--workdir of llamax sweep), or one that '
  'holds such folders'
)


@dataclasses.dataclass(frozen=True)
class Gathered:
  """records: in the order of the paths. plans: name of a run -> the plan of its sweep. left_out: folders beside
  runs that are none. metric: what runs are ranked by, of which more is better where `maximize`.
  """

  records: list[RunRecord]
  plans: dict[str, Plan]
  left_out: list[str]
  metric: str
  maximize: bool


def gather(paths: Sequence[str], metric: str | None = None, maximize: bool = False) -> Gathered:
  """Reads the runs in `paths`: workdirs, sweeps, folders of them, patterns such as 'runs/lr*'.

  Args:
    metric: what runs are ranked by. None: a sweep's objective, the loss on the first held-out split, or
      where no run has evaluated yet the training loss.

  Raises:
    UserError: a path that does not exist; no run in any; no run has that metric (named: those there are);
      `maximize` without one.
  """
  if maximize and metric is None:
    raise UserError('--maximize: of what? Say --metric=NAME too; a sweep knows the way of its own objective')
  found: dict[Path, tuple[Path | None, Path]] = {}  # resolved -> (sweep, folder)
  plans: dict[Path, Plan] = {}
  left_out = []
  for path in _expanded(paths):
    here = _in(path, plans)
    if not here:
      left_out.append(str(path))
    for sweep, folder in here:
      found.setdefault(folder.resolve(), (sweep, folder))
  if not found:
    raise UserError(f'{", ".join(left_out)}: no run there; {_WANT}')
  asked = metric is not None
  objectives = {(plan.objective, plan.direction == 'maximize') for plan in plans.values()}
  if not asked and len(objectives) == 1:
    metric, maximize = next(iter(objectives))
  records, owners = _read(list(found.values()), plans, [metric] if metric else [])
  if metric is None:
    evaluated = any(record.metric(FIRST_SPLIT) for record in records)
    metric = FIRST_SPLIT if evaluated else TRAIN_LOSS
  elif asked:
    _require(metric, records)
  return Gathered(records, owners, left_out, metric, maximize)


def _expanded(paths: Sequence[str]) -> list[Path]:
  found: list[Path] = []
  for text in paths:
    try:
      path = Path(text).expanduser()
      there = path.exists()
    except RuntimeError:
      raise UserError(f'{text!r}: there is no home folder of that user; {_WANT}') from None
    except OSError as error:
      raise UserError(f'{text!r} cannot be read ({error.strerror}); {_WANT}') from None
    if there:
      found.append(path)
      continue
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(text) else []
    matches = [match for match in matches if Path(match).is_dir()]
    if not matches:
      why = 'no folder matches it' if glob.has_magic(text) else 'there is no such folder'
      raise UserError(f'{text!r}: {why}; {_WANT}')
    found += map(Path, matches)
  return found


def _in(path: Path, plans: dict[Path, Plan], deep: bool = True) -> list[tuple[Path | None, Path]]:
  """(its sweep, folder) of each run in one path; notes the plans of the sweeps it meets."""
  if not path.is_dir():
    return []
  if is_run(path):
    parent = path.resolve().parent.parent
    plan = read_plan(parent)
    if plan is not None and path.resolve() == run_folder(parent, path.name).resolve():
      plans[parent] = plan
      return [(parent, path)]
    return [(None, path)]
  plan = read_plan(path)
  if plan is not None:
    plans[path.resolve()] = plan
    return [(path.resolve(), run_folder(path, name)) for name in names_of(path, plan)]
  inner = sorted(child for child in path.iterdir() if not child.name.startswith('.')) if deep else []
  return [pair for child in inner for pair in _in(child, plans, deep=False)]


def _read(
  found: list[tuple[Path | None, Path]], plans: dict[Path, Plan], metrics: list[str]
) -> tuple[list[RunRecord], dict[str, Plan]]:
  states = {sweep: run_states(sweep, names_of(sweep, plan)) for sweep, plan in plans.items()}
  points = {sweep: _points(sweep, plan) for sweep, plan in plans.items()}
  names = _names([folder for _, folder in found])
  records, owners = [], {}
  for (sweep, folder), name in zip(found, names, strict=True):
    known = planned = None
    if sweep is not None:
      owners[name] = plans[sweep]
      known = states[sweep].get(folder.name)
      planned = flatten(plans[sweep].base) | points[sweep].get(folder.name, {})
    records.append(read_record(name, folder, metrics, known=known, planned=planned))
  return records, owners


def _points(sweep: Path, plan: Plan) -> dict[str, dict]:
  """{name of a run: the keys that it sets}."""
  return trials(sweep) if plan.study else {run.name: dict(run.point) for run in plan.runs}


def _names(folders: list[Path]) -> list[str]:
  """The last words of each path that tell it from the others; the 'runs' of a sweep is no word."""
  parts = [[p for p in folder.resolve().parts if p != 'runs'] for folder in folders]
  names = [str(folder.resolve()) for folder in folders]
  for index, words in enumerate(parts):
    for length in range(1, len(words)):
      if sum(other[-length:] == words[-length:] for other in parts) == 1:
        names[index] = '/'.join(words[-length:])
        break
  return names


def _require(metric: str, records: list[RunRecord]) -> None:
  """UserError when no run that has begun has the metric."""
  begun = [record for record in records if record.series]
  if begun and not any(record.metric(metric) for record in begun):
    there = sorted({name for record in begun for name in record.series})
    raise UserError(
      f'--metric={metric}: no run has it; there are {", ".join(there)}, or any other name in metrics.jsonl'
    )
