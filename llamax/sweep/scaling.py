"""The law L(N, D) = E + A / N^alpha + B / D^beta, fitted to measured losses (Hoffmann et al. 2022)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamax.core.errors import UserError

DELTA = 1e-3  # of the Huber loss, in log loss (arXiv 2203.15556, appendix D.3)
FLOPS_PER = 6.0  # C = 6 N D
REPEATS = 200  # of the bootstrap
FAR = 10.0  # times the measured range: beyond it a law is a guess
_STEEPEST = 4.0  # exponents are sought up to here
_FLATTEST = 0.01  # an exponent below it is none
_SPREAD = 4.0  # an exponent whose interval spans more than this factor is a rough one
# Shares of the mean loss that E, the term of N, the term of D begin with.
_SHARES = ((0.6, 0.2, 0.2), (0.3, 0.5, 0.2), (0.3, 0.2, 0.5), (0.9, 0.05, 0.05), (0.1, 0.45, 0.45))
_SLOPES = (0.3, 0.8)
_NAMES = ('E', 'A', 'alpha', 'B', 'beta')


@dataclasses.dataclass(frozen=True)
class Point:
  """A run: parameters N, tokens D, its loss in nats a token, what it took in FLOPs by observe/perf.py."""

  name: str
  params: float
  tokens: float
  loss: float
  flops: float


@dataclasses.dataclass(frozen=True)
class Law:
  """A term that the data cannot tell from E is 0, with an exponent of 0."""

  E: float
  A: float
  alpha: float
  B: float
  beta: float

  def loss(self, params: Any, tokens: Any) -> Any:
    """Nats a token of a model of `params` parameters after `tokens` tokens; numbers or arrays."""
    return self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta)

  def optimum(self, flops: float) -> tuple[float, float]:
    """(N, D) of the lowest loss with 6 N D = `flops` (arXiv 2203.15556, equation 4)."""
    both = self.alpha + self.beta
    scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
    budget = flops / FLOPS_PER
    return scale * budget ** (self.beta / both), budget ** (self.alpha / both) / scale


@dataclasses.dataclass(frozen=True)
class Fit:
  """law: the best one. laws: of the bootstrap. residuals: log of measured over fitted loss, a number per point.
  unknown: why an exponent is not known; empty where none is missing. rough: which is known within a wide
  interval only. huber: the sum that was minimised.
  """

  points: list[Point]
  law: Law
  laws: list[Law]
  residuals: np.ndarray
  unknown: list[str]
  rough: list[str]
  huber: float

  @property
  def complete(self) -> bool:
    """Whether both exponents are known, so that there is an optimum."""
    return not self.unknown

  def interval(self, values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of what the bootstrap gives."""
    low, high = np.quantile(np.asarray(values), (0.025, 0.975))
    return float(low), float(high)

  def intervals(self) -> dict[str, tuple[float, float]]:
    return {name: self.interval([getattr(law, name) for law in self.laws]) for name in _NAMES}


def fit(points: Sequence[Point], *, repeats: int = REPEATS, seed: int = 0) -> Fit:
  """The law with its bootstrap: residuals drawn anew, inflated for the parameters that were fitted, refitted.

  Sizes or token counts that are too few for a power law with a constant (three) leave out that term, and
  `unknown` says so.

  Raises:
    UserError: neither term can be fitted; a number that is no positive one.
  """
  for point in points:
    for field in ('params', 'tokens', 'loss'):
      if not 0 < getattr(point, field) < math.inf:
        raise UserError(f'run {point.name}: {field} is {getattr(point, field)}; want a positive number')
  terms, unknown = _identified(points)
  problem = _Problem(points, terms)
  best = problem.solve(problem.starts())
  residuals = problem.log_losses - problem.predict(best)
  spare = max(1, len(points) - len(best))
  inflated = (residuals - residuals.mean()) * math.sqrt(len(points) / spare)
  draw = np.random.default_rng(seed)
  laws = []
  for _ in range(repeats):
    drawn = problem.predict(best) + draw.choice(inflated, len(points))
    laws.append(problem.law(problem.with_losses(drawn).solve([best])))
  law = problem.law(best)
  lost, rough = _judged(laws, terms)
  return Fit(list(points), law, laws, residuals, unknown + lost, rough, problem.huber(best))


def _identified(points: Sequence[Point]) -> tuple[tuple[bool, bool], list[str]]:
  """Whether the term of N, of D can be told from a constant by the design alone; why not."""
  sizes, counts = {p.params for p in points}, _distinct([p.tokens for p in points])
  unknown = []
  for few, symbol, what in ((len(sizes), 'alpha', 'sizes'), (counts, 'beta', 'token counts')):
    if few < 3:
      unknown.append(
        f'{symbol} cannot be fitted: {few} different {what}; a power law with a constant needs 3 at least'
      )
  terms = (len(sizes) >= 3, counts >= 3)
  if all(terms) and _in_step(points):
    raise UserError(
      'tokens grow in step with size in all runs, so the two terms cannot be told apart: give some sizes '
      'several token counts'
    )
  needed = 1 + 2 * sum(terms)
  if not any(terms) or len(points) <= needed:
    raise UserError(
      f'{len(points)} runs of {len(sizes)} sizes and {counts} token counts; a fit of L(N, D) wants 3 sizes, 3 '
      f'token counts, more runs than its 5 parameters'
    )
  return terms, unknown


def _distinct(values: Sequence[float]) -> int:
  """How many differ by more than a percent: padding makes token counts differ by a little."""
  found = 0
  last = 0.0
  for value in sorted(values):
    if value > 1.01 * last:
      found, last = found + 1, value
  return found


def _in_step(points: Sequence[Point]) -> bool:
  """Whether log D is a straight line of log N."""
  x, y = np.log([p.params for p in points]), np.log([p.tokens for p in points])
  return bool(abs(np.corrcoef(x, y)[0, 1]) > 0.999)


def _judged(laws: Sequence[Law], terms: tuple[bool, bool]) -> tuple[list[str], list[str]]:
  """What is said of exponents that the bootstrap leaves anywhere, of those that it leaves roughly known."""
  lost, rough = [], []
  for there, name in zip(terms, ('alpha', 'beta'), strict=True):
    values = [getattr(law, name) for law in laws]
    if not there or not values:
      continue
    low, high = np.quantile(values, (0.025, 0.975))
    between = f'95 % of the bootstrap lies between {low:.3g} and {high:.3g}'
    more = 'sizes' if name == 'alpha' else 'token counts'
    if low < _FLATTEST or high > 0.95 * _STEEPEST:
      lost.append(f'{name} is not told by these runs: {between}; more {more}, further apart, would')
    elif high > _SPREAD * low:
      rough.append(f'{name} is rough: {between}; more {more}, further apart, would narrow it')
  return lost, rough


class _Problem:
  """log L = logsumexp(e, u - alpha x, v - beta y): x, y are log N, log D about their means.

  A vector of parameters is e, then (u, alpha) if there is a term of N, then (v, beta) if there is one of D.
  """

  def __init__(self, points: Sequence[Point], terms: tuple[bool, bool]):
    self.terms = terms
    self.log_losses = np.log([p.loss for p in points])
    logs = (np.log([p.params for p in points]), np.log([p.tokens for p in points]))
    self.means = [float(x.mean()) for x in logs]
    self.xs = [x - m for x, m, there in zip(logs, self.means, terms, strict=True) if there]

  def with_losses(self, log_losses: np.ndarray) -> '_Problem':
    other = object.__new__(_Problem)
    other.__dict__ = self.__dict__ | {'log_losses': log_losses}
    return other

  def _terms(self, theta: np.ndarray) -> np.ndarray:
    """[terms, points], logs."""
    lines = [np.full_like(self.log_losses, theta[0])]
    lines += [theta[1 + 2 * k] - theta[2 + 2 * k] * x for k, x in enumerate(self.xs)]
    return np.stack(lines)

  def predict(self, theta: np.ndarray) -> np.ndarray:
    """[points] log losses."""
    return np.logaddexp.reduce(self._terms(theta), axis=0)

  def huber(self, theta: np.ndarray) -> float:
    away = np.abs(self.predict(theta) - self.log_losses)
    return float(np.where(away <= DELTA, 0.5 * away**2, DELTA * (away - 0.5 * DELTA)).sum())

  def _objective(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
    """The Huber loss over DELTA squared, so that the search's tolerances mean something; its gradient."""
    lines = self._terms(theta)
    total = np.logaddexp.reduce(lines, axis=0)
    away = (total - self.log_losses) / DELTA
    size = np.abs(away)
    value = np.where(size <= 1, 0.5 * away**2, size - 0.5).sum()
    pull = np.clip(away, -1, 1) / DELTA * np.exp(lines - total)  # [terms, points]
    gradient = [pull[0].sum()]
    for k, x in enumerate(self.xs):
      gradient += [pull[k + 1].sum(), -(pull[k + 1] * x).sum()]
    return float(value), np.asarray(gradient)

  def starts(self) -> list[np.ndarray]:
    """The grid that the search begins from."""
    mean, found = float(self.log_losses.mean()), []
    slopes = np.stack(np.meshgrid(*[_SLOPES] * len(self.xs)), axis=-1).reshape(-1, len(self.xs))
    for shares in _SHARES:
      parts = [share for share, there in zip(shares[1:], self.terms, strict=True) if there]
      for slope in slopes:
        theta = [mean + math.log(shares[0])]
        for part, s in zip(parts, slope, strict=True):
          theta += [mean + math.log(part), s]
        found.append(np.asarray(theta))
    return found

  def solve(self, starts: Sequence[np.ndarray]) -> np.ndarray:
    """The lowest of the searches from all `starts`, by L-BFGS.

    Twenty times as fast where OPENBLAS_NUM_THREADS=1 stood before scipy was imported: its matrices are tiny.
    """
    from scipy.optimize import minimize

    bounds = [(-12.0, None), *[(-25.0, 25.0), (0.0, _STEEPEST)] * len(self.xs)]
    options = {'maxiter': 500, 'maxfun': 1000, 'ftol': 1e-13, 'gtol': 1e-9, 'maxcor': 20}
    found = [
      minimize(self._objective, start, jac=True, method='L-BFGS-B', bounds=bounds, options=options)
      for start in starts
    ]
    return min(found, key=lambda result: result.fun).x

  def law(self, theta: np.ndarray) -> Law:
    values, k = {'E': math.exp(theta[0])}, 0
    for there, mean, size, slope in zip(self.terms, self.means, 'AB', ('alpha', 'beta'), strict=True):
      if there:
        u, s = theta[1 + 2 * k : 3 + 2 * k]
        values |= {size: math.exp(u + s * mean), slope: float(s)}
        k += 1
      else:
        values |= {size: 0.0, slope: 0.0}
    return Law(**values)


def best_by_search(law: Law, flops_of: Any, flops: float, low: float, high: float) -> tuple[float, float]:
  """(N, D) of the lowest loss with `flops_of(N)` FLOPs a token, by search over N from `low` to `high`."""
  from scipy.optimize import minimize_scalar

  def loss(log_params: float) -> float:
    params = math.exp(log_params)
    return float(law.loss(params, flops / flops_of(params)))

  # From a grid: more than one valley is no surprise where the costs are those of real shapes.
  grid = np.linspace(math.log(low), math.log(high), 400)
  at = int(np.argmin([loss(x) for x in grid]))
  bounds = (grid[max(0, at - 1)], grid[min(len(grid) - 1, at + 1)])
  params = math.exp(minimize_scalar(loss, bounds=bounds, method='bounded', options={'xatol': 1e-10}).x)
  return params, flops / flops_of(params)


def flops_per_token_of(points: Sequence[Point]) -> Any:
  """N -> FLOPs a token, as the measured shapes have it: straight lines between them in logs, as 6 N beyond.

  At small sizes the output layer and attention outweigh what 6 N counts.
  """
  known = sorted({(p.params, p.flops / p.tokens) for p in points})
  sizes = np.log([size for size, _ in known])
  extra = np.log([cost / (FLOPS_PER * size) for size, cost in known])
  return lambda params: FLOPS_PER * params * math.exp(np.interp(math.log(params), sizes, extra))


def far_off(points: Sequence[Point], params: float, tokens: float) -> list[str]:
  """What of a prediction lies more than FAR times outside of what was measured."""
  found = []
  for name, value, measured in (
    ('N', params, [p.params for p in points]),
    ('D', tokens, [p.tokens for p in points]),
  ):
    if value > FAR * max(measured):
      found.append(f'{name} is {value / max(measured):.0f} times the largest measured')
    if value < min(measured) / FAR:
      found.append(f'{name} is {min(measured) / value:.0f} times below the smallest measured')
  return found
