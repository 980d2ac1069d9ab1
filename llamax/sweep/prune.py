"""When a run is given up before its end, because its loss shows that it has diverged."""

import bisect
import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from llamax.core import exits
from llamax.core.errors import UserError, nearest
from llamax.sweep.watch import Watched

_AT_LEAST_NATS = 1.0


@dataclasses.dataclass(frozen=True)
class Diverged:
  """A run is given up where one of these holds:

  its last three logged losses are not finite; or, once it has done the share `after` of its steps, the median
  of its last `window` logged losses is
  - above its own lowest one by more than `given_back` of what it had learnt (first loss less lowest, at least
    1 nat): this hangs on no other run;
  - above `factor` times the lowest that any run of the sweep had by as many tokens: this hangs on which runs
    have come that far. None: not looked at.

  Of a run that was given up before and brought back, losses that it has logged since then are judged.
  """

  given_back: float = 0.5
  factor: float | None = None
  after: float = 0.1
  window: int = 5

  def to_mapping(self) -> dict[str, Any]:
    """As it stands in sweep.json."""
    return {'rule': 'diverged', **dataclasses.asdict(self)}

  def reason(self, run: Watched, num_steps: int, others: Iterable[Watched]) -> str | None:
    """Why `run` is given up, None: it is not."""
    losses = [loss for step, _, loss in run.curve if step > run.judged_after]
    if len(losses) >= 3 and not any(map(math.isfinite, losses[-3:])):
      return f'three logged losses in a row are not finite, the last at step {run.step}'
    finite = [point for point in run.curve if math.isfinite(point[2])]
    if len(finite) <= self.window or run.step < self.after * num_steps:
      return None
    if sum(map(math.isfinite, losses)) < self.window:  # of those that it has been given another chance for
      return None
    medians = smoothed(finite, self.window)
    low, now = min(medians), medians[-1]
    limit = low + self.given_back * max(finite[0][2] - low, _AT_LEAST_NATS)
    if now > limit:
      return f'its loss has risen from {low:.4g} to {now:.4g} by step {run.step} (begun at {finite[0][2]:.4g})'
    if self.factor is not None:
      tokens = finite[-1][1]
      best = min((lowest(other, self.window, tokens) for other in others), default=math.inf)
      if now > self.factor * best:
        return (
          f'its loss of {now:.4g} at {tokens:,.0f} tokens is above {self.factor:g} times the best, {best:.4g}'
        )
    return None


class Policy(Protocol):
  def __call__(self, run: Watched, code: int | None = None) -> str | None:
    """Why `run`, which goes on or has ended with `code`, is given up; None: it is not."""


def watcher(
  policy: Diverged | None,
  folder: str | os.PathLike[str],
  names: Callable[[], Iterable[str]],
  num_steps: Callable[[str], int],
) -> Policy:
  """With `policy` None no run is given up.

  Args:
    names: all runs of the sweep so far. num_steps: of a run.
  """
  seen: dict[str, Watched] = {}

  def why(run: Watched, code: int | None = None) -> str | None:
    if policy is None:
      return None
    if code is not None:  # The trainer's guard may be quicker than we are.
      return 'the trainer gave up: the numbers went bad' if code == exits.NUMBERS else None
    if policy.factor is not None:
      for name in names():
        seen.setdefault(name, Watched(folder, name, '')).look()
    return policy.reason(run, num_steps(run.name), [other for name, other in seen.items() if name != run.name])

  return why


def smoothed(curve: Sequence[tuple[int, float, float]], window: int) -> list[float]:
  """The median of each `window` losses in a row."""
  losses = [loss for _, _, loss in curve]
  return [statistics.median(losses[i : i + window]) for i in range(len(losses) - window + 1)]


def lowest(run: Watched, window: int, tokens: float) -> float:
  """The lowest median of a run by so many tokens; infinite where it has not come so far."""
  finite = [point for point in run.curve if math.isfinite(point[2])]
  end = bisect.bisect_right([seen for _, seen, _ in finite], tokens)
  far = finite and finite[-1][1] >= tokens
  return min(smoothed(finite[:end], window), default=math.inf) if far else math.inf


def read_policy(text: str | None) -> Diverged | None:
  """'diverged' or 'diverged:factor=1.5,after=0.2' -> the policy; UserError for anything else."""
  if text is None:
    return None
  rule, _, settings = text.partition(':')
  if rule != 'diverged':
    raise UserError(f'--prune={text}: want diverged, or diverged:factor=1.5,after=0.1')
  values: dict[str, Any] = {}
  for pair in filter(None, settings.split(',')):
    name, _, number = pair.partition('=')
    if name not in _RANGES:
      raise UserError(f'--prune={text}: it has no number {name!r}.{nearest(name, _RANGES)}')
    low, high, kind = _RANGES[name]
    try:
      values[name] = kind(number)
    except ValueError:
      raise UserError(f'--prune={text}: {name}={number!r} is no {kind.__name__}') from None
    if not low <= values[name] <= high:
      raise UserError(f'--prune={text}: {name} lies from {low:g} to {high:g}')
  return Diverged(**values)


_RANGES: Mapping[str, tuple[float, float, type]] = {
  'given_back': (0.01, 100.0, float),
  'factor': (1.0, 100.0, float),
  'after': (0.0, 1.0, float),
  'window': (1, 1000, int),
}
