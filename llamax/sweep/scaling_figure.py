"""The picture of a scaling law: loss over tokens, over size, along budgets; what the fit leaves."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamax.observe.progress import human
from llamax.sweep.figures import PALETTE
from llamax.sweep.ladder import Budget
from llamax.sweep.scaling import FLOPS_PER, Fit

_ISO = 6  # budgets that are drawn


def png(fit: Fit, budgets: Sequence[Budget]) -> bytes:
  """Four panels."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  # Figure rather than pyplot: no global state, no window, whatever backend a notebook has chosen.
  figure = Figure(figsize=(13, 9), dpi=130, layout='constrained')
  FigureCanvasAgg(figure)
  panels = figure.subplots(2, 2)
  _lines(panels[0][0], fit, by='tokens', each='params')
  _lines(panels[0][1], fit, by='params', each='tokens')
  _budgets(panels[1][0], fit, budgets)
  _residuals(panels[1][1], fit)
  for panel in panels.flat:
    panel.grid(alpha=0.25)
    panel.spines[['right', 'top']].set_visible(False)
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return out.getvalue()


def _groups(fit: Fit, each: str) -> dict[float, list[int]]:
  """Indices of the points by size or by token count; counts within a percent are one."""
  groups: dict[float, list[int]] = {}
  for i in sorted(range(len(fit.points)), key=lambda i: getattr(fit.points[i], each)):
    value = getattr(fit.points[i], each)
    near = next((known for known in groups if abs(value / known - 1) < 0.01), value)
    groups.setdefault(near, []).append(i)
  return groups


def _lines(axes: Any, fit: Fit, by: str, each: str) -> None:
  """Measured points with the fitted line of each group."""
  letter = {'params': 'N', 'tokens': 'D'}[each]
  for k, (value, members) in enumerate(_groups(fit, each).items()):
    color = PALETTE[k % len(PALETTE)]
    xs = [getattr(fit.points[i], by) for i in members]
    axes.plot(xs, [fit.points[i].loss for i in members], 'o', color=color, markersize=5)
    line = np.geomspace(min(xs) / 1.3, max(xs) * 1.3, 60)
    losses = fit.law.loss(value, line) if each == 'params' else fit.law.loss(line, value)
    axes.plot(line, losses, color=color, linewidth=1.2, label=f'{letter} = {human(value)}')
  _log(axes, {'params': 'N, parameters', 'tokens': 'D, tokens'}[by])
  axes.legend(frameon=False, fontsize=8)
  axes.set_title('points: measured; lines: fitted', fontsize=9)


def _budgets(axes: Any, fit: Fit, budgets: Sequence[Budget]) -> None:
  """Loss along curves of constant 6 N D, the lowest point of each."""
  costs = [FLOPS_PER * p.params * p.tokens for p in fit.points]
  low = min(p.params for p in fit.points) / 3
  high = max(p.params for p in fit.points) * 3
  shown = [*np.geomspace(min(costs) * 2, max(costs), _ISO), *(found.flops for found in budgets)]
  if fit.complete:
    low = min(low, fit.law.optimum(min(shown))[0] / 2)
  sizes = np.geomspace(low, high, 120)
  for k, flops in enumerate(shown):
    asked = k >= _ISO
    color = '#000000' if asked else PALETTE[k % len(PALETTE)]
    if asked and fit.complete:
      best = fit.law.optimum(flops)[0]
      sizes = np.geomspace(min(low, best / 10), max(high, best * 10), 160)
    losses = fit.law.loss(sizes, flops / (FLOPS_PER * sizes))
    label = f'{flops:.1e} FLOPs'.replace('e+', 'e')
    axes.plot(sizes, losses, color=color, linewidth=2 if asked else 1.2, label=label)
    if fit.complete:
      params, tokens = fit.law.optimum(flops)
      axes.plot([params], [fit.law.loss(params, tokens)], '*', color=color, markersize=11)
  if fit.complete:
    ends = [fit.law.optimum(flops) for flops in np.geomspace(min(shown), max(shown), 50)]
    axes.plot([n for n, _ in ends], [fit.law.loss(n, d) for n, d in ends], ':', color='#555555', linewidth=1.2)
    lowest = min(float(fit.law.loss(n, d)) for n, d in ends)
    axes.set_ylim(lowest - 0.1, max(p.loss for p in fit.points) * 1.1)
  _log(axes, 'N, parameters')
  axes.set_title('along budgets of C = 6 N D; stars: the lowest loss', fontsize=9)
  axes.legend(frameon=False, fontsize=8)


def _residuals(axes: Any, fit: Fit) -> None:
  for k, (value, members) in enumerate(_groups(fit, 'params').items()):
    xs = [fit.points[i].tokens for i in members]
    ys = [100 * (math.exp(fit.residuals[i]) - 1) for i in members]
    axes.plot(xs, ys, 'o', color=PALETTE[k % len(PALETTE)], label=f'N = {human(value)}')
  axes.axhline(0, color='#555555', linewidth=0.8)
  axes.set_xscale('log')
  axes.xaxis.set_major_formatter(lambda value, _: human(value))
  axes.xaxis.set_minor_formatter('')
  axes.set_xlabel('D, tokens')
  axes.set_ylabel('measured loss over fitted, %')
  axes.legend(frameon=False, fontsize=8)


def _log(axes: Any, label: str) -> None:
  axes.set_xscale('log')
  axes.xaxis.set_major_formatter(lambda value, _: human(value))
  axes.xaxis.set_minor_formatter('')
  axes.set_xlabel(label)
  axes.set_ylabel('loss (nats per token)')
