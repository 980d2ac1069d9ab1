"""A comparison as a PNG: the curves of all runs, beside them what the keys that differ do."""

import io
import math
import warnings
from typing import Any

from llamax.observe.progress import human
from llamax.sweep.compare import Comparison, printable
from llamax.sweep.picture import Curves, Picture, curves, picture, ranks

# Okabe, Ito: told apart by colour-blind eyes, too.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#8C6D31')
_LABELS = 12  # there is room for, below a heat map
_BEST, _WORST, _NONE = '#0072B2', '#E8A56B', '#B8B8B8'


def png(comparison: Comparison) -> bytes:
  """Two panels, or one where only one can be drawn."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  drawn = curves(comparison)[:1]
  shown = picture(comparison)
  count = max(1, len(drawn) + (shown is not None))
  # Figure rather than pyplot: no global state, no window, whatever backend a notebook has chosen.
  figure = Figure(figsize=(7.2 * count, 4.8), dpi=150, layout='constrained')
  FigureCanvasAgg(figure)
  panels = list(figure.subplots(1, count, squeeze=False)[0])
  colors = _colors(comparison)
  if not drawn and shown is None:
    panels[0].text(0.5, 0.5, 'nothing to draw yet', ha='center', va='center', color='grey')
    panels[0].set_axis_off()
  if drawn:
    _draw_curves(panels.pop(0), comparison, drawn[0], colors)
  if shown is not None:
    _DRAW[shown.kind](panels.pop(0), comparison, shown, colors)
  out = io.BytesIO()
  with warnings.catch_warnings():
    # Of a name in letters that the font lacks: they are drawn as boxes, the table has them.
    warnings.filterwarnings('ignore', 'Glyph .* missing from', UserWarning)
    figure.savefig(out, format='png')
  return out.getvalue()


def _colors(comparison: Comparison) -> list[Any]:
  """One for each run: of the palette where there are few, else from the best to the worst."""
  if len(comparison.records) <= len(PALETTE):
    return list(PALETTE)
  return [_NONE if level is None else _mixed(level) for level in ranks(comparison)]


def _mixed(level: float) -> tuple[float, ...]:
  from matplotlib.colors import to_rgb

  return tuple(a + (b - a) * level for a, b in zip(to_rgb(_BEST), to_rgb(_WORST), strict=True))


def _plain(text: str, longest: int = 32) -> str:
  """No mathematics, no control characters, no line longer than a legend."""
  text = printable(text).replace('$', r'\$')
  text = text if len(text) <= longest else text[: longest - 1] + '…'
  # A legend leaves out what begins with '_'; a space that no eye sees keeps it.
  return f'\u200a{text}' if text.startswith('_') else text


def _draw_curves(axes: Any, comparison: Comparison, found: Curves, colors: list[Any]) -> None:
  few = len(comparison.records) <= len(PALETTE)
  best = comparison.best
  # The best one last, above all others.
  order = sorted(range(len(found.runs)), key=lambda i: comparison.records[i] is best)
  for i in order:
    record, samples = comparison.records[i], found.runs[i]
    if not samples:
      continue
    steps, values = [s.step for s in samples], [s.value for s in samples]
    mark = 'o' if len(samples) <= 12 else None
    label = _plain(record.name) if few or record is best else None
    width = 2.2 if record is best else 1.2
    axes.plot(
      steps, values, color=colors[i], linewidth=width, marker=mark, markersize=3.5, alpha=1 if few else 0.8,
      label=label,
    )  # fmt: skip
  axes.set_ylim(*found.limits)
  axes.set_xlabel('step')
  axes.set_ylabel(_plain(found.metric) + (' (nats per token)' if found.metric.endswith('loss') else ''))
  axes.xaxis.set_major_formatter(lambda value, _: human(value))
  axes.grid(alpha=0.25)
  axes.spines[['right', 'top']].set_visible(False)
  if axes.get_legend_handles_labels()[1]:
    axes.legend(frameon=False, fontsize=8)


def _draw_line(axes: Any, comparison: Comparison, shown: Picture, colors: list[Any]) -> None:
  across, up = shown.axes
  points = sorted(
    (x, y, i) for i, (x, y) in enumerate(zip(across.at, up.at, strict=True)) if None not in (x, y)
  )
  axes.plot([p[0] for p in points], [p[1] for p in points], color='#999999', linewidth=1, zorder=1)
  axes.scatter([p[0] for p in points], [p[1] for p in points], c=[colors[p[2]] for p in points], s=45, zorder=2)
  _ticks(axes.xaxis, across.ticks)
  _ticks(axes.yaxis, up.ticks)
  axes.set_xlabel(_plain(across.key, 60))
  axes.set_ylabel(_plain(up.label))
  axes.set_xlim(-0.06, 1.06)
  axes.set_ylim(-0.06, 1.06)
  axes.grid(alpha=0.25)
  axes.spines[['right', 'top']].set_visible(False)


def _draw_heat(axes: Any, comparison: Comparison, shown: Picture, colors: list[Any]) -> None:
  down, across, metric = shown.axes
  rows, columns = len(down.ticks), len(across.ticks)
  for x, y, level, text in zip(across.at, down.at, shown.levels, shown.values, strict=True):
    if x is None or y is None:
      continue
    column, row = x * (columns - 1), y * (rows - 1)
    face = '#EEEEEE' if level is None else _mixed(level)
    axes.add_patch(_rectangle(column, row, face, edge='black' if level == 0 else 'white'))
    if columns <= 12:
      ink = '#555555' if level is None else 'white' if level < 0.45 else 'black'
      axes.text(column, row, text or '–', ha='center', va='center', color=ink, fontsize=8)
  every = math.ceil(columns / _LABELS)
  axes.set_xticks(range(0, columns, every), [_plain(label, 14) for _, label in across.ticks[::every]])
  axes.set_yticks(range(rows), [_plain(label, 14) for _, label in down.ticks])
  axes.set_xlim(-0.5, columns - 0.5)
  axes.set_ylim(-0.5, rows - 0.5)
  axes.set_xlabel(_plain(across.key, 60))
  axes.set_ylabel(_plain(down.key, 60))
  axes.set_title(_plain(metric.label), fontsize=10)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)


def _rectangle(column: float, row: float, face: Any, edge: str) -> Any:
  from matplotlib.patches import Rectangle

  above = 2 if edge == 'black' else 1
  return Rectangle(
    (column - 0.48, row - 0.47), 0.96, 0.94, facecolor=face, edgecolor=edge, linewidth=1.6, zorder=above
  )


def _draw_parallel(axes: Any, comparison: Comparison, shown: Picture, colors: list[Any]) -> None:
  places = range(len(shown.axes))
  levels = [2.0 if level is None else level for level in shown.levels]
  for i in sorted(range(len(levels)), key=lambda i: -levels[i]):
    line = [(x, at) for x, axis in zip(places, shown.axes, strict=True) if (at := axis.at[i]) is not None]
    best = levels[i] == 0
    color = _NONE if levels[i] > 1 else _mixed(levels[i])
    axes.plot([x for x, _ in line], [y for _, y in line], color=color, linewidth=2.4 if best else 1, alpha=0.85)
  for x, axis in zip(places, shown.axes, strict=True):
    axes.axvline(x, color='#555555', linewidth=0.8)
    for at, label in axis.ticks:
      axes.annotate(
        _plain(label, 12), (x, at), (3, 0), textcoords='offset points', va='center', fontsize=7,
        bbox={'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.7, 'pad': 0.6},
      )  # fmt: skip
  axes.set_xticks(places, [_plain(axis.label, 16) for axis in shown.axes], fontsize=8)
  axes.set_yticks([])
  axes.set_xlim(-0.1, len(shown.axes) - 0.75)
  axes.set_ylim(-0.03, 1.05)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)


def _ticks(axis: Any, ticks: list[tuple[float, str]]) -> None:
  axis.set_ticks([at for at, _ in ticks], [_plain(label, 14) for _, label in ticks], fontsize=8)


_DRAW = {'line': _draw_line, 'heat': _draw_heat, 'parallel': _draw_parallel}
