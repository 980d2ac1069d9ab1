"""The files that a comparison leaves: CSV, PNG, one HTML page."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamax.core.errors import UserError
from llamax.core.storage import needed, write_output
from llamax.sweep.compare import Comparison, as_csv, compare
from llamax.sweep.figures import png as as_png
from llamax.sweep.gather import gather
from llamax.sweep.page import page
from llamax.sweep.plan import train_arguments
from llamax.sweep.state import trials

# A config of no known file -> the words after `llamax train` that give it; None: they are not known.
Words = Callable[[Mapping[str, Any]], Sequence[str] | None]


def write_sweep_report(folder: str | os.PathLike[str]) -> list[str]:
  """DIR/report.html, report.csv, report.png of the sweep in DIR as it is now; lines that say where they are.

  Raises:
    UserError, Stop: they cannot be written; no sweep is there.
  """
  comparison = compare(gather([str(folder)]))
  place = Path(folder)
  return write(
    comparison,
    csv=place / 'report.csv',
    png=place / 'report.png',
    html=place / 'report.html',
    title=f'Sweep {place}',
  )


def write(
  comparison: Comparison,
  words: Words = lambda config: None,
  *,
  csv: Path | None = None,
  png: Path | None = None,
  html: Path | None = None,
  title: str | None = None,
) -> list[str]:
  """Each file that is asked for, there whole or not at all; lines that say where they are.

  Args:
    words: of the best run, where no sweep's plan tells.

  Raises:
    UserError, Stop: one cannot be written.
  """
  lines = []
  for name, path, make in (
    ('table', csv, lambda: as_csv(comparison).encode()),
    ('picture', png, lambda: as_png(comparison)),
    (
      'page',
      html,
      lambda: page(comparison, title or _title(comparison), best_command(comparison, words)).encode(),
    ),
  ):
    if path is not None:
      with needed(path):
        if path.is_dir():
          raise UserError(f'{path} is a folder; want the name of a file for the {name}, such as {path / name}')
      write_output(path, make())
      lines.append(f'{name}: {path}')
  return lines


def best_command(comparison: Comparison, words: Words = lambda config: None) -> list[str] | None:
  """The words after `llamax train` that train the best run, in its own folder."""
  best = comparison.best
  if best is None:
    return None
  plan = comparison.gathered.plans.get(best.name)
  if plan is not None:
    points = {run.name: dict(run.point) for run in plan.runs}
    if plan.study is not None:
      points = trials(best.folder.resolve().parent.parent)
    if best.folder.name in points:
      return train_arguments(plan, points[best.folder.name], best.folder)
  found = words(best.config)
  return None if found is None else [found[0], f'--workdir={best.folder}', *found[1:]]


def _title(comparison: Comparison) -> str:
  names = [record.name for record in comparison.records]
  return f'Run {names[0]}' if len(names) == 1 else f'{len(names)} runs compared'
