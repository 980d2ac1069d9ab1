"""What the pictures of a comparison show, as positions between 0 and 1: for the page, for the PNG."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from llamax.sweep.compare import Comparison, shortened, show_value, together
from llamax.sweep.record import TRAIN_LOSS, Sample

_POINTS = 40_000  # of all curves together
_MOST_AXES = 8
_MOST_CELLS = 400
_MOST_TICKS = 12
_UNKNOWN = object()  # of a run whose config cannot be read
_NUMBERS = 0.85  # of an axis on which the runs of None stand at the end


@dataclasses.dataclass(frozen=True)
class Axis:
  """key: of the config, or a metric. at: the place of each run, None where it has none. ticks: place, label."""

  key: str
  label: str
  at: list[float | None]
  ticks: list[tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Picture:
  """What the keys that differ do to the metric.

  kind: 'line', one key; 'heat', two keys on a grid; 'parallel', anything else. axes: the metric's last. values:
  of the metric as texts. levels: 0 the best run to 1 the worst, by rank in a line or parallel coordinates,
  by value in a heat map. Runs without a value have None.
  """

  kind: str
  axes: list[Axis]
  values: list[str]
  levels: list[float | None]


@dataclasses.dataclass(frozen=True)
class Curves:
  """One metric of all runs. limits: of its axis; what lies above is cut off, as the first steps would flatten
  all that follows.
  """

  metric: str
  runs: list[list[Sample]]
  limits: tuple[float, float]


def picture(comparison: Comparison) -> Picture | None:
  """None: no key differs, or fewer than two runs have a value."""
  metric, maximize = comparison.gathered.metric, comparison.gathered.maximize
  found = [record.value(metric, maximize) for record in comparison.records]
  values = [v.value if v else None for v in found]
  known = [v for v in values if v is not None]
  groups = list(together(comparison.records, comparison.keys))[:_MOST_AXES]
  if len(known) < 2 or not groups:
    return None
  labels = shortened(groups)
  settings = {key: [r.config.get(key) if r.config else _UNKNOWN for r in comparison.records] for key in groups}
  axes = [_axis(key, labels[key], settings[key]) for key in groups]
  last, by_value = _metric_axis(metric, values, maximize)
  kind = 'line' if len(axes) == 1 else 'heat' if _is_grid(axes, values) else 'parallel'
  if kind == 'heat':
    axes = [_evenly(axis, settings[axis.key]) for axis in axes]
  elif kind == 'parallel':
    axes = [_bundled(axis, by_value) for axis in axes]
  texts = ['' if v is None else f'{v:.4g}' for v in values]
  return Picture(kind, [*axes, last], texts, by_value if kind == 'heat' else ranks(comparison))


def ranks(comparison: Comparison) -> list[float | None]:
  """0 for the best run to 1 for the worst; None without a value."""
  metric, maximize = comparison.gathered.metric, comparison.gathered.maximize
  values = [record.value(metric, maximize) for record in comparison.records]
  order = sorted({v.value for v in values if v}, reverse=maximize)
  return [order.index(v.value) / max(1, len(order) - 1) if v else None for v in values]


def _axis(key: str, label: str, values: Sequence[Any]) -> Axis:
  there = [v for v in values if v is not _UNKNOWN]
  known = sorted({v for v in there if _is_number(v)})
  if len(known) + (None in there) >= 2 and known and all(v is None or _is_number(v) for v in there):
    low, high = known[0], known[-1]
    scale = math.log if low > 0 and high / low > 8 else float
    bottom, span = scale(low), (scale(high) - scale(low)) or 1.0
    reach = _NUMBERS if None in there else 1.0
    shown = known if len(known) <= _MOST_TICKS else _round(low, high, scale is math.log)
    ticks = [(reach * (scale(v) - bottom) / span, show_value(v)) for v in shown]
    ticks += [(1.0, show_value(None))] * (None in there)
    place = {v: reach * (scale(v) - bottom) / span for v in known} | {None: 1.0}
    return Axis(key, label, [None if v is _UNKNOWN else place[v] for v in values], ticks)
  names = list(dict.fromkeys(show_value(v) for v in there))
  places = {name: i / max(1, len(names) - 1) for i, name in enumerate(names)}
  ticks = [(places[name], name) for name in names][:: 1 + len(names) // (2 * _MOST_TICKS)]
  return Axis(key, label, [None if v is _UNKNOWN else places[show_value(v)] for v in values], ticks)


def _round(low: float, high: float, log: bool = False) -> list[float]:
  """Some round numbers from `low` to `high`."""
  if log:
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for ten in tens for n in (1, 3) if low <= (v := float(f'{n}e{ten}')) <= high]
  raw = (high - low) / 5
  size = 10.0 ** math.floor(math.log10(raw))
  step = next(n * size for n in (1, 2, 5, 10) if n * size >= raw)
  return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _metric_axis(metric: str, values: list[float | None], maximize: bool) -> tuple[Axis, list[float | None]]:
  """The axis of the metric, with how far each run is from the best: far outliers stand at the end."""
  known = sorted((v for v in values if v is not None), reverse=maximize)
  best, worst = known[0], known[-1]
  quarter = known[max(0, math.ceil(0.75 * len(known)) - 1)]
  reach = 3 * abs(quarter - best)
  cut = bool(reach) and abs(worst - best) > 2 * reach
  end = best + math.copysign(reach, worst - best) if cut else worst
  span = (end - best) or 1.0
  away = [None if v is None else min(1.0, (v - best) / span) for v in values]
  low_first = [None if a is None else 1 - a for a in away] if maximize else away
  marks = _round(min(best, end), max(best, end)) if end != best else [best]
  ticks = [(abs(v - min(best, end)) / abs(span), f'{v:.6g}') for v in marks]
  if cut:
    ticks = [tick for tick in ticks if (tick[0] > 0.06 if maximize else tick[0] < 0.94)]
    ticks.append((0.0, f'≤ {end:.4g}') if maximize else (1.0, f'≥ {end:.4g}'))
  return Axis(metric, metric, low_first, ticks), away


def _is_grid(axes: Sequence[Axis], values: Sequence[float | None]) -> bool:
  """Two keys, each with several values, no cell with two runs, no more holes than runs."""
  if len(axes) != 2:
    return False
  cells = [cell for cell in zip(*(axis.at for axis in axes), strict=True) if None not in cell]
  rows, columns = (len(set(axis.at) - {None}) for axis in axes)
  return len(set(cells)) == len(cells) and rows * columns <= min(2 * len(cells), _MOST_CELLS)


def _evenly(axis: Axis, values: Sequence[Any]) -> Axis:
  """The same with all its values at equal distances, each with its label."""
  label = {a: show_value(v) for a, v in zip(axis.at, values, strict=True) if a is not None}
  places = sorted(label)
  even = {place: i / max(1, len(places) - 1) for i, place in enumerate(places)}
  at = [None if a is None else even[a] for a in axis.at]
  return dataclasses.replace(axis, at=at, ticks=[(even[place], label[place]) for place in places])


def _bundled(axis: Axis, away: Sequence[float | None]) -> Axis:
  """The same with the runs of one value side by side, the best below, so that none hides the others."""
  places = sorted({a for a in axis.at if a is not None})
  gap = min((b - a for a, b in itertools.pairwise(places)), default=1.0)
  at = list(axis.at)
  for place in places:
    here = [i for i, a in enumerate(axis.at) if a == place]
    here.sort(key=lambda i: 2.0 if (level := away[i]) is None else level)
    for k, i in enumerate(here):
      at[i] = place + min(0.3 * gap, 0.006 * len(here)) * (k / max(1, len(here) - 1) - 0.5) * (len(here) > 1)
  low, high = min(a for a in at if a is not None), max(a for a in at if a is not None)
  span = (high - low) or 1.0
  ticks = [((place - low) / span, label) for place, label in axis.ticks]
  return dataclasses.replace(axis, at=[None if a is None else (a - low) / span for a in at], ticks=ticks)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curves(comparison: Comparison) -> list[Curves]:
  """Of the training loss, of the metric, as far as runs have more than one point of it; thinned for drawing."""
  names = dict.fromkeys([comparison.gathered.metric, TRAIN_LOSS])
  most = max(40, min(400, _POINTS // max(1, len(comparison.records) * len(names))))
  found = []
  for name in names:
    runs = [thinned(record.curve(name), most) for record in comparison.records]
    if any(len(samples) > 1 for samples in runs):
      found.append(Curves(name, runs, _limits([samples for samples in runs if samples])))
  return found


def thinned(samples: Sequence[Sample], most: int) -> list[Sample]:
  """About `most` of them: half evenly, half by equal factors of the step, for the steep start."""
  n = len(samples)
  if n <= most:
    return list(samples)
  half = most // 2
  even = [round(i * (n - 1) / (half - 1)) for i in range(half)]
  steep = [min(n - 1, round(n ** (i / (half - 1))) - 1) for i in range(half)]
  return [samples[i] for i in sorted({*even, *steep})]


def _limits(runs: Sequence[Sequence[Sample]]) -> tuple[float, float]:
  """From the lowest value to what most runs are below after a tenth of their steps."""
  low = min(s.value for samples in runs for s in samples)
  top = max(s.value for samples in runs for s in samples)
  later = [
    max(s.value for s in samples if s.step >= samples[-1].step / 10 or s is samples[-1]) for samples in runs
  ]
  usual = statistics.quantiles(later, n=10)[-1] if len(later) >= 10 else max(later)
  high = usual if top - low > 1.3 * (usual - low) and usual > low else top
  margin = 0.04 * (high - low) or 0.1
  return low - margin, high + margin
