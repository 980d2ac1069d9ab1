"""Distributions that a sweep draws values from: each turns a number from [0, 1) into a value."""

import dataclasses
import math
from typing import Any

from llamax.core.errors import UserError

_DIGITS = 4  # significant ones that a drawn float keeps: it stands in names, in commands


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Floats between two ends, even by value, or by logarithm."""

  low: float
  high: float
  log: bool

  def __post_init__(self) -> None:
    _check_ends('log_uniform' if self.log else 'uniform', self.low, self.high, self.log)

  def at(self, share: float) -> float:
    """The value below which `share` of the distribution lies, to four digits, never beyond the ends."""
    if self.log:
      value = self.low * (self.high / self.low) ** share
    else:
      value = self.low + (self.high - self.low) * share
    return min(max(float(f'{value:.{_DIGITS}g}'), self.low), self.high)


@dataclasses.dataclass(frozen=True)
class IntUniform:
  """Whole numbers between two ends, both included, even by value, or by logarithm."""

  low: int
  high: int
  log: bool

  def __post_init__(self) -> None:
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in (self.low, self.high)):
      raise UserError(f'int_uniform({self.low!r}, {self.high!r}): want whole numbers')
    _check_ends('int_uniform', self.low, self.high, self.log)

  def at(self, share: float) -> int:
    """The value below which `share` of the distribution lies."""
    if self.log:  # Each number has the weight of its own interval, half a step to both sides.
      low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
      return min(max(round(math.exp(low + (high - low) * share)), self.low), self.high)
    return self.low + int((self.high - self.low + 1) * share)


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of some values, all as likely."""

  values: tuple[Any, ...]

  def __post_init__(self) -> None:
    if not self.values:
      raise UserError('choice() of nothing: want at least one value')

  def at(self, share: float) -> Any:
    """The value in whose part of [0, 1) `share` lies."""
    return self.values[int(len(self.values) * share)]


Distribution = Uniform | IntUniform | Choice


def _check_ends(name: str, low: float, high: float, log: bool) -> None:
  for end in (low, high):
    if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
      raise UserError(f'{name}({low!r}, {high!r}): {end!r} is no finite number')
  if low > high:
    raise UserError(f'{name}({low!r}, {high!r}): the lower end comes first')
  if log and low <= 0:
    raise UserError(f'{name}({low!r}, {high!r}): a logarithm wants ends above 0')
