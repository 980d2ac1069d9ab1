"""Pictures of a run: the loss curve as a PNG or as text, aligned tables."""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llamax.observe.jsonl import METRICS_FILE, read_metrics
from llamax.observe.progress import human

_NUMBER = re.compile(r'[-+]?[\d.,]+(e[-+]?\d+)?\s?[%A-Za-z/]{0,6}')
# Okabe, Ito: told apart by colour-blind eyes, too.
_TRAIN = '#0072B2'
_SPLITS = ('#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')


@dataclasses.dataclass
class Curve:
  """Losses of a run by the number of steps done; what is not finite stands apart."""

  steps: list[float] = dataclasses.field(default_factory=list)
  losses: list[float] = dataclasses.field(default_factory=list)
  broken: list[float] = dataclasses.field(default_factory=list)  # steps whose loss is not finite
  tokens: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # (step, tokens seen)
  splits: dict[str, list[tuple[float, float]]] = dataclasses.field(default_factory=dict)  # name -> (step, loss)

  def smooth(self) -> list[float]:
    """The mean over about a fortieth of the run around each step: centred, so that it lags no falling loss.

    Near the start the window shrinks to both sides, at the end it keeps its left half.
    """
    half = max(2, len(self.losses) // 80)
    sums = list(itertools.accumulate(self.losses, initial=0.0))
    out = []
    for i in range(len(self.losses)):
      left = min(i, half)
      start, stop = i - left, min(i + left + 1, len(self.losses))
      out.append((sums[stop] - sums[start]) / (stop - start))
    return out


def read_curve(workdir: str | os.PathLike[str]) -> Curve:
  """What `metrics.jsonl` says of the loss."""
  curve = Curve()
  for record in read_metrics(Path(workdir) / METRICS_FILE):
    step = record.get('step', 0)
    if 'tokens_seen' in record:
      curve.tokens.append((step, record['tokens_seen']))
    for name, value in record.items():
      if name != 'loss' and not re.fullmatch('eval/.+/loss', name):
        continue
      if not math.isfinite(value):
        curve.broken.append(step)
      elif name == 'loss':
        curve.steps.append(step)
        curve.losses.append(value)
      else:
        curve.splits.setdefault(name.split('/')[1], []).append((step, value))
  return curve


def _empty(curve: Curve, workdir: str | os.PathLike[str]) -> str | None:
  if curve.losses or curve.splits:
    return None
  path = Path(workdir) / METRICS_FILE
  if not path.exists():
    return f'no loss curve: there is no {path}'
  return f'no loss curve: {path} has no finite loss yet'


def loss_curve(workdir: str | os.PathLike[str]) -> str:
  """Draws `loss_curve.png` into the workdir; returns a sentence that says where it is, or why there is none."""
  curve = read_curve(workdir)
  missing = _empty(curve, workdir)
  if missing:
    return missing
  # Figure rather than pyplot: no global state, no window, whatever backend a notebook has chosen.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 4.8), dpi=150, layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  _draw(axes, curve)
  path = Path(workdir) / 'loss_curve.png'
  new = path.with_name(f'.{path.name}.tmp')
  try:
    with open(new, 'wb') as file:
      figure.savefig(file, format='png')
      file.flush()
      os.fsync(file.fileno())
    os.replace(new, path)
  except OSError as error:  # A full disk must not fail a run that has just ended well.
    return f'no loss curve: cannot write {path}: {error.strerror}'
  return f'loss curve: {path}'


def _draw(axes: Any, curve: Curve) -> None:
  smooth = curve.smooth()
  if curve.losses:
    axes.plot(curve.steps, curve.losses, color=_TRAIN, alpha=0.25, linewidth=0.8)
    axes.plot(curve.steps, smooth, color=_TRAIN, linewidth=1.6, label=f'train {smooth[-1]:.3f}')
  for i, (name, points) in enumerate(curve.splits.items()):
    steps, losses = zip(*points, strict=True)
    axes.plot(
      steps, losses, color=_SPLITS[i % len(_SPLITS)], marker='o', markersize=4, linewidth=1, linestyle='--',
      label=f'{name} {losses[-1]:.3f}',
    )  # fmt: skip
  if curve.broken:
    at_the_bottom = axes.get_xaxis_transform()
    heights = [0.02] * len(curve.broken)
    axes.plot(curve.broken, heights, 'rx', transform=at_the_bottom, label='loss not finite')
  bottom, top, hidden = _limits(curve, smooth)
  axes.set_ylim(bottom, top)
  if hidden:
    axes.annotate(hidden, (0.4, 0.97), xycoords='axes fraction', va='top', ha='center', color='grey')
  axes.set_xlabel('step')
  axes.set_ylabel('loss (nats per token)')
  axes.margins(x=0.02)
  axes.grid(alpha=0.25)
  axes.spines['right'].set_visible(False)
  axes.legend(frameon=False)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.xaxis.set_major_formatter(lambda value, _: human(value))
  if to_tokens := _interpolate(curve.tokens):
    axes.spines['top'].set_visible(True)
    to_steps = _interpolate([(tokens, step) for step, tokens in curve.tokens])
    top_axis = axes.secondary_xaxis('top', functions=(to_tokens, to_steps))
    top_axis.set_xlabel('tokens')
    top_axis.xaxis.set_major_formatter(lambda value, _: human(value))
  else:
    axes.spines['top'].set_visible(False)


def _limits(curve: Curve, smooth: Sequence[float]) -> tuple[float, float, str]:
  """Both ends of the loss axis, with a remark when the start of the run lies above it.

  In a long run the fall of the first steps would press everything after it into a line along the bottom.
  """
  n = len(smooth)
  evals = [point for points in curve.splits.values() for point in points]
  values = [*curve.losses, *(loss for _, loss in evals)]
  low, high = min(values), max(values)
  remark = ''
  if n >= 200:
    late = [*curve.losses[n // 20 :], *smooth[n // 50 :]]
    late += [loss for step, loss in evals if step >= curve.steps[n // 20]]
    if high - low > 2 * (max(late) - low):
      remark, high = f'the first steps come from {high:.1f}', max(late)
  margin = 0.05 * (high - low) or 0.1
  return low - margin, high + margin, remark


def _interpolate(points: Sequence[tuple[float, float]]) -> Callable[[Any], Any] | None:
  """The line through rising points, drawn on past both ends; None when they are fewer than two."""
  import numpy as np

  rising = [points[0]] if points else []
  for point in points:
    if point[0] > rising[-1][0] and point[1] > rising[-1][1]:
      rising.append(point)
  if len(rising) < 2:
    return None
  (x0, y0), (x1, y1) = rising[0], rising[-1]
  slope, reach = (y1 - y0) / (x1 - x0), 2 * (x1 - x0)
  rising = [(x0 - reach, y0 - slope * reach), *rising, (x1 + reach, y1 + slope * reach)]
  xs, ys = np.asarray(rising, np.float64).T
  return lambda values: np.interp(values, xs, ys)


def terminal_curve(workdir: str | os.PathLike[str], width: int = 80, height: int = 20) -> str:
  """The loss curve as plain text of `width` columns, without colour codes, or a sentence why there is none."""
  curve = read_curve(workdir)
  missing = _empty(curve, workdir)
  if missing:
    return missing
  import plotext

  figure = plotext.figure  # The one figure of that package: cleared before, cleared after.
  figure.clear()
  plotext.terminal.limit(False)
  figure.plot_size(width, height)
  smooth = curve.smooth()
  legend = []
  if smooth:
    figure.draw(figure.signal(curve.steps, smooth).lines())
    legend.append(f'line: train {smooth[-1]:.3f}')
  for mark, (name, points) in zip('xo+*' * len(curve.splits), curve.splits.items(), strict=False):
    steps, losses = map(list, zip(*points, strict=True))
    figure.draw(figure.signal(steps, losses, marker=mark))
    legend.append(f'{mark}: {name} {losses[-1]:.3f}')
  bottom, top, hidden = _limits(curve, smooth)
  figure.ruler('y').lim(bottom, top)
  if hidden:
    legend.append(hidden)
  if curve.broken:
    legend.append(f'not finite {len(curve.broken)} times, first at step {min(curve.broken)}')
  shown = [*curve.steps, *(step for points in curve.splits.values() for step, _ in points)]
  ticks = sorted({round(min(shown) + (max(shown) - min(shown)) * i / 5) for i in range(6)})
  figure.ruler('x').ticks(ticks, [human(tick) for tick in ticks])
  text = plotext.uncolorize(figure.build())
  figure.clear()
  lines = [line.rstrip() for line in text.splitlines() if line.strip()]
  return '\n'.join(['loss by step (' + ', '.join(legend) + ')', *lines])


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
  """Aligned columns under `headers`: numbers (with a unit, perhaps) to the right, texts to the left."""
  cells = [[_cell(value) for value in row] for row in rows]
  columns = list(zip(headers, *cells, strict=True))
  lines = []
  widths = [max(map(len, column)) for column in columns]
  right = [all(_NUMBER.fullmatch(c) for c in column[1:] if c) for column in columns]
  for row in [list(headers), ['-' * width for width in widths], *cells]:
    padded = [
      cell.rjust(width) if to_right else cell.ljust(width)
      for cell, width, to_right in zip(row, widths, right, strict=True)
    ]
    lines.append('  '.join(padded).rstrip())
  return '\n'.join(lines)


def _cell(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}'
  return f'{value:.4g}' if isinstance(value, float) else str(value)
