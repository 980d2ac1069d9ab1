"""Draws the next token from logits."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llamax.core.config import SampleConfig
from llamax.core.errors import UserError, pick
from llamax.core.types import Array

_BLOCK = 128  # tokens drawn from together
_TINY = 1e-30  # the least temperature that float32 divides by
_INF_BITS = 0x7F800000  # of float32 infinity


class Filters(NamedTuple):
  """What shapes the distribution, in the order of use; hashable, so that a program is compiled for it."""

  temperature: float  # 0: the most probable token, the rest is then not read
  top_k: int  # 0: off
  top_p: float  # 1: off
  min_p: float  # 0: off


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to continue a prompt. Raises UserError where a value makes no sense.

  max_new_tokens: drawn tokens at most, end-of-text included. temperature, top_k, top_p, min_p: see
  `filter_logits`. stop: strings before which the text ends.
  """

  max_new_tokens: int
  temperature: float
  top_k: int
  top_p: float
  min_p: float
  seed: int
  stop: tuple[str, ...] = ()

  def __post_init__(self):
    if isinstance(self.stop, str):
      raise UserError(f'stop={self.stop!r}: want a sequence of strings, as in stop=[{self.stop!r}]')
    object.__setattr__(self, 'stop', tuple(self.stop))
    if not all(isinstance(text, str) and text for text in self.stop):
      raise UserError(f'stop={self.stop!r}: want strings that are not empty')
    wanted = {
      'max_new_tokens': (int, 1, math.inf),
      'temperature': (float, 0, math.inf),
      'top_k': (int, 0, math.inf),
      'top_p': (float, 0, 1),
      'min_p': (float, 0, 1),
      'seed': (int, 0, 2**32 - 1),
    }
    for name, (kind, low, high) in wanted.items():
      value = getattr(self, name)
      number = isinstance(value, kind if kind is int else (int, float)) and not isinstance(value, bool)
      if not number or not math.isfinite(value) or not low <= value <= high:
        bounds = f'from {low}' + (f' to {high}' if high < math.inf else '')
        raise UserError(f'{name}={value!r}: want {"an integer" if kind is int else "a number"} {bounds}')

  @classmethod
  def from_config(cls, cfg: SampleConfig, overrides: Mapping[str, Any] | None = None) -> 'Sampling':
    """The config's `sample` section. None as an override keeps its value; an unknown one: UserError."""
    names = {field.name: field.name for field in dataclasses.fields(cls)}
    values = {name: getattr(cfg, name) for name in names if hasattr(cfg, name)}
    for name, value in (overrides or {}).items():
      pick(names, name, 'sampling option')
      if value is not None:
        values[name] = value
    return cls(**values)

  @property
  def filters(self) -> Filters:
    """Greedy sampling has one spelling, thus one compiled program."""
    if self.temperature == 0:
      return Filters(0.0, 0, 1.0, 0.0)
    return Filters(float(self.temperature), self.top_k, float(self.top_p), float(self.min_p))


def filter_logits(logits_BV: Array, filters: Filters) -> Array:
  """The logits to draw from, float32, up to a constant, with -inf for a token that is ruled out.

  In this order, which is that of Hugging Face; each step sees what the one before it left:

  1. temperature: logits / temperature.
  2. top_k: the k highest stay (Fan et al. 2018).
  3. top_p: a token stays when the tokens above it hold less than top_p (Holtzman et al. 2020): the fewest
     that together hold top_p.
  4. min_p: a token stays when it has at least min_p times the highest probability (Nguyen et al. 2024).

  Equal logits stay or go together, so the result does not depend on how a sort breaks ties. The highest
  always stays.
  """
  temperature, top_k, top_p, min_p = filters
  logits_BV = logits_BV.astype(jnp.float32)
  # How far below the highest: never negative, so its bits sort as integers; a tiny temperature cannot overflow.
  below_BV = (logits_BV.max(-1, keepdims=True) - logits_BV) / max(temperature, _TINY)
  if top_k and top_k < logits_BV.shape[-1]:
    below_BV = _keep(below_BV, jnp.ones_like(below_BV), top_k)
  if top_p < 1:
    below_BV = _keep(below_BV, jnp.exp(-below_BV), top_p * jnp.exp(-below_BV).sum(-1, keepdims=True))
  if min_p > 0:
    below_BV = jnp.where(below_BV <= -math.log(min_p), below_BV, jnp.inf)
  return -below_BV


def _keep(below_BV: Array, weight_BV: Array, wanted: Any) -> Array:
  """The fewest of the highest tokens whose weights sum to at least `wanted`; +inf instead of the others.

  By halving on the bits of the last one kept: 31 sums, where a sort takes 20 times as long on a CPU.
  """
  bits_BV = jax.lax.bitcast_convert_type(below_BV, jnp.int32)

  def halve(_, bounds):
    low_B1, high_B1 = bounds
    middle_B1 = low_B1 + (high_B1 - low_B1) // 2
    reached_B1 = jnp.where(bits_BV <= middle_B1, weight_BV, 0.0).sum(-1, keepdims=True) >= wanted
    return jnp.where(reached_B1, low_B1, middle_B1 + 1), jnp.where(reached_B1, middle_B1, high_B1)

  low_B1 = jnp.zeros((below_BV.shape[0], 1), jnp.int32)
  last_B1 = jax.lax.fori_loop(0, 31, halve, (low_B1, low_B1 + _INF_BITS))[1]
  return jnp.where(bits_BV <= last_B1, below_BV, jnp.inf)


def draw(logits_BV: Array, keys_B: Array, filters: Filters) -> Array:
  """One token id per row, [B] int32. keys_B: a key per row, so that a row's draw is its own."""
  if filters.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  weight_BV = jnp.exp(filter_logits(logits_BV, filters))
  B, V = weight_BV.shape
  # First a block of tokens, then one within it: two uniforms and short sums, where noise on each of V logits
  # takes 20 times as long.
  uniform_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_B)
  blocks_BXY = jnp.pad(weight_BV, ((0, 0), (0, -V % _BLOCK))).reshape(B, -1, _BLOCK)
  block_B = _first_above(blocks_BXY.sum(-1), uniform_B2[:, :1])
  within_BY = jnp.take_along_axis(blocks_BXY, block_B[:, None, None], axis=1)[:, 0]
  return block_B * _BLOCK + _first_above(within_BY, uniform_B2[:, 1:])


def _first_above(weight_BX: Array, uniform_B1: Array) -> Array:
  """An index with probability proportional to its weight, [B] int32; never one whose weight is 0."""
  # Rounding may let a running sum rise at a weight of 0.
  sums_BX = jnp.where(weight_BX > 0, jnp.cumsum(weight_BX, axis=-1), 0.0)
  return jnp.argmax(sums_BX > uniform_B1 * sums_BX.max(-1, keepdims=True), axis=-1).astype(jnp.int32)
