"""Norms with the initial values of weights."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from llamax.core.config import ModelConfig
from llamax.core.types import Array


def weight_init(cfg: ModelConfig, fan_in: int, *, residual: bool) -> Callable[..., Array]:
  """Initial values of a matrix.

  normal        N(0, init_std) (LLaMA as trained in Hugging Face: 0.02)
  depth_scaled  the same, matrices that write to the residual stream divided by sqrt(2 num_layers)
                (GPT-2, Radford et al. 2019, 2.3)
  fan_in        truncated normal of variance 1 / fan_in (LeCun et al. 1998; PaLM, section 5)
  """
  if cfg.init == 'fan_in':
    # The std of a normal cut at two sigmas is 0.8796 of the uncut one's.
    return nn.initializers.truncated_normal(fan_in**-0.5 / 0.87962566103423978)
  depth = math.sqrt(2 * cfg.num_layers) if cfg.init == 'depth_scaled' and residual else 1.0
  return nn.initializers.normal(cfg.init_std / depth)


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last dim (Zhang and Sennrich 2019)."""

  eps: float
  param_dtype: str

  @staticmethod
  def dims(width: str) -> dict[str, str]:
    """Parameter -> letters; `width` is the letter of the normalised dim."""
    return {'scale': width}

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:], self.param_dtype)
    # In float32: a mean of squares overflows or rounds away in bfloat16.
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
    # Rounded before the scale, as the published models were trained.
    return normed.astype(x.dtype) * _like(scale, x)


class LayerNorm(nn.Module):
  """(x - mean) / std * scale + bias over the last dim (Ba et al. 2016)."""

  eps: float
  param_dtype: str

  @staticmethod
  def dims(width: str) -> dict[str, str]:
    return {'scale': width, 'bias': width}

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:], self.param_dtype)
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:], self.param_dtype)
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.eps)
    return normed.astype(x.dtype) * _like(scale, x) + _like(bias, x)


def _like(param: Array, x: Array) -> Array:
  """The parameter in x's dtype, with x's rank: rank promotion is never implicit here."""
  return param.astype(x.dtype).reshape((1,) * (x.ndim - 1) + param.shape)
