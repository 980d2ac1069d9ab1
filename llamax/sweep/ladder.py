"""From the runs of a ladder to the scaling law's points, from the law to words."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from llamax.core.config import Config, unflatten
from llamax.core.errors import UserError
from llamax.observe.perf import flops_per_token
from llamax.observe.progress import human
from llamax.observe.report import table
from llamax.sweep.count import count_parameters
from llamax.sweep.record import FIRST_SPLIT, RunRecord
from llamax.sweep.scaling import Fit, Point, best_by_search, far_off, flops_per_token_of
from llamax.sweep.state import FINISHED

NON_EMBEDDING, ALL = 'non_embedding', 'all'
_COUNTED = {
  NON_EMBEDDING: 'N counts all parameters but the token tables (input, output)',
  ALL: 'N counts all parameters; a tied token table once',
}


@dataclasses.dataclass(frozen=True)
class Budget:
  """What a number of FLOPs is best spent on.

  params, tokens: by the closed form, C = 6 N D. searched: the same by search along the curve of that budget.
  counted: N, D where a token costs what the measured shapes take. ranges: of N, D, 95 % of the bootstrap. far:
  what lies far outside of the measurements.
  """

  flops: float
  params: float
  tokens: float
  loss: float
  searched: tuple[float, float]
  counted: tuple[float, float]
  params_range: tuple[float, float]
  tokens_range: tuple[float, float]
  far: list[str]


def ladder_points(
  records: Sequence[RunRecord], count: str = NON_EMBEDDING, metric: str = FIRST_SPLIT
) -> tuple[list[Point], list[str]]:
  """A point for each finished run: the loss of its last evaluation; with why others are left out.

  Raises:
    UserError: no run can be used; a config is of another llamax; jax does not work here.
  """
  used, left_out = [], []
  for record in records:
    if record.state != FINISHED:
      left_out.append(f'{record.name}: {record.state}, not finished')
    elif not record.curve(metric):
      left_out.append(f'{record.name}: no finite {metric}')
    elif not record.tokens:
      left_out.append(f'{record.name}: it does not say how many tokens it has seen')
    else:
      used.append(record)
  if not used:
    raise UserError('no run to fit a law to: ' + '; '.join(left_out[:5]))
  points = []
  for record, (params, flops) in zip(used, _sizes(used, count), strict=True):
    assert record.tokens
    last = record.curve(metric)[-1]
    points.append(Point(record.name, params, record.tokens, last.value, flops * record.tokens))
  return points, left_out


def _sizes(records: Sequence[RunRecord], count: str) -> list[tuple[float, float]]:
  """(parameters, FLOPs a token) of each run's model."""
  configs = []
  for record in records:
    try:
      configs.append(Config.from_mapping(unflatten(dict(record.config))))
    except UserError as error:
      raise UserError(f'{record.folder}: its config.json is of another llamax ({error})') from None
  totals = count_parameters(configs)
  if totals is None:
    raise UserError(
      'the parameters of these models cannot be counted: jax does not work here; try llamax doctor'
    )
  sizes = []
  for cfg, total in zip(configs, totals, strict=True):
    tables = cfg.model.vocab_size * cfg.model.d_model * (1 if cfg.model.tie_embeddings else 2)
    flops = flops_per_token(cfg.model, total, cfg.data.seq_len).causal
    sizes.append((float(total if count == ALL else total - tables), flops))
  return sizes


def budget(fit: Fit, flops: float) -> Budget:
  """The best use of `flops` by a complete fit."""
  assert fit.complete
  params, tokens = fit.law.optimum(flops)
  best = [law.optimum(flops) for law in fit.laws if min(law.alpha, law.beta, law.A, law.B) > 1e-9]
  low, high = params / 1e3, params * 1e3
  return Budget(
    flops=flops,
    params=params,
    tokens=tokens,
    loss=float(fit.law.loss(params, tokens)),
    searched=best_by_search(fit.law, lambda n: 6.0 * n, flops, low, high),
    counted=best_by_search(fit.law, flops_per_token_of(fit.points), flops, low, high),
    params_range=fit.interval([n for n, _ in best]),
    tokens_range=fit.interval([d for _, d in best]),
    far=far_off(fit.points, params, tokens),
  )


def as_text(fit: Fit, budgets: Sequence[Budget], count: str, left_out: Sequence[str]) -> str:
  """The law, its intervals, the residuals run by run, the budgets."""
  law, intervals = fit.law, fit.intervals()
  terms = [f'{law.E:.4g}']
  terms += [f'{law.A:.4g} / N^{law.alpha:.4f}'] * (law.A > 0) + [f'{law.B:.4g} / D^{law.beta:.4f}'] * (
    law.B > 0
  )
  blocks = [
    f'L(N, D) = {" + ".join(terms)}   nats a token\n{_COUNTED[count]}; D is tokens seen.',
    table(
      [(name, f'{getattr(law, name):.4g}', *(f'{v:.4g}' for v in intervals[name])) for name in intervals],
      ('', 'fitted', '2.5 %', '97.5 %'),
    ),
    _residuals(fit),
  ]
  blocks += [f'left out: {line}' for line in left_out]
  blocks += [f'warning: {line}' for line in (*fit.unknown, *fit.rough)]
  if fit.unknown:
    blocks.append('No optimum is given: it would be an invention.')
  return '\n\n'.join(blocks + [_budget_text(found, bool(fit.rough)) for found in budgets])


def _residuals(fit: Fit) -> str:
  order = sorted(range(len(fit.points)), key=lambda i: (fit.points[i].params, fit.points[i].tokens))
  rows = []
  for i in order:
    p = fit.points[i]
    fitted = float(fit.law.loss(p.params, p.tokens))
    off = fit.residuals[i]
    rows.append(
      (
        p.name,
        human(p.params),
        human(p.tokens),
        _flops(p.flops),
        f'{p.loss:.4f}',
        f'{fitted:.4f}',
        f'{off:+.2%}',
      )
    )
  worst = max(fit.residuals, key=abs)
  spread = math.sqrt(float((fit.residuals**2).mean()))
  return (
    table(rows, ('run', 'N', 'D', 'FLOPs', 'loss', 'fitted', 'off by'))
    + f'\n{len(rows)} runs; off by {spread:.2%} on average (root mean square), {worst:+.2%} at most'
  )


def _budget_text(found: Budget, rough: bool) -> str:
  n, d = found.searched
  lines = [
    f'Budget {_flops(found.flops)} FLOPs: N = {human(found.params)}, D = {human(found.tokens)} tokens '
    f'({found.tokens / found.params:.3g} a parameter), loss {found.loss:.4f}',
    f'  95 %: N {human(found.params_range[0])} to {human(found.params_range[1])}, '
    f'D {human(found.tokens_range[0])} to {human(found.tokens_range[1])}',
    f'  closed form of C = 6 N D; by search N = {human(n)}, D = {human(d)}',
    f'  at the cost of these shapes, output layer and attention counted: N = {human(found.counted[0])}, '
    f'D = {human(found.counted[1])}',
  ]
  if rough:
    lines.append('  warning: a rough exponent: what counts is the 95 % above')
  if found.far:
    lines.append(f'  warning: extrapolated: {"; ".join(found.far)}: take it as a guess')
  return '\n'.join(lines)


def _flops(value: float) -> str:
  return f'{value:.2e}'.replace('e+', 'e')


def as_mapping(fit: Fit, budgets: Sequence[Budget], count: str, left_out: Sequence[str]) -> dict[str, Any]:
  """All of it, for JSON."""
  return {
    'law': dataclasses.asdict(fit.law),
    'intervals': fit.intervals(),
    'params': count,
    'huber': fit.huber,
    'unknown': fit.unknown,
    'rough': fit.rough,
    'points': [
      dataclasses.asdict(point)
      | {'fitted': float(fit.law.loss(point.params, point.tokens)), 'residual': float(off)}
      for point, off in zip(fit.points, fit.residuals, strict=True)
    ],
    'budgets': [dataclasses.asdict(found) for found in budgets],
    'left_out': list(left_out),
  }
