"""Rotary position embeddings with their context extensions."""

import math

import jax.numpy as jnp
import numpy as np

from llamax.core.config import ModelConfig
from llamax.core.errors import pick
from llamax.core.types import Array


class Rope:
  """Turns pairs (x[i], x[i + H/2]) by position * frequency[i] (Su et al. 2021; the half-split pairing of
  Hugging Face checkpoints; Meta's pair neighbours).
  """

  @staticmethod
  def tables(cfg: ModelConfig, positions_BT: Array) -> tuple[Array, Array]:
    """(cos, sin), each float32 [B, T, 1, H / 2]: made once, shared by the layers."""
    frequencies, magnitude = pick(SCALINGS, cfg.rope_scaling, 'model.rope_scaling')(cfg)
    angles_BTH = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)[None, None]
    return jnp.cos(angles_BTH)[:, :, None] * magnitude, jnp.sin(angles_BTH)[:, :, None] * magnitude

  @staticmethod
  def apply(x_BTNH: Array, tables: tuple[Array, Array]) -> Array:
    """Rotates heads; the dtype stays."""
    cos, sin = tables
    # In float32: at position 100,000 a bfloat16 angle is off by whole turns.
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


class NoPosition:
  """No position signal but the causal mask (Kazemnejad et al. 2023)."""

  @staticmethod
  def tables(cfg: ModelConfig, positions_BT: Array) -> tuple[()]:
    del cfg, positions_BT
    return ()

  @staticmethod
  def apply(x_BTNH: Array, tables: tuple[()]) -> Array:
    del tables
    return x_BTNH


def _plain(cfg: ModelConfig) -> tuple[np.ndarray, float]:
  """(frequency of each pair in radians per position, factor on cos with sin)."""
  return cfg.rope_theta ** -(np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim), 1.0


def _linear(cfg: ModelConfig) -> tuple[np.ndarray, float]:
  """Positions squeezed by the factor (Chen et al. 2023)."""
  return _plain(cfg)[0] / cfg.rope_factor, 1.0


def _llama3(cfg: ModelConfig) -> tuple[np.ndarray, float]:
  """Slow pairs squeezed, fast ones kept, a ramp between (Llama 3.1 reference code)."""
  plain, _ = _plain(cfg)
  turns = cfg.rope_original_max_len * plain / (2 * math.pi)  # of a pair over the original context
  low, high = cfg.rope_low_freq_factor, cfg.rope_high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return plain * (kept + (1 - kept) / cfg.rope_factor), 1.0


def _yarn(cfg: ModelConfig) -> tuple[np.ndarray, float]:
  """YaRN (Peng et al. 2023, 3.2 with 3.4): a ramp over pairs, scores sharpened by the magnitude."""
  plain, _ = _plain(cfg)
  half = cfg.head_dim // 2

  def pair_with(turns: float) -> float:
    """Index of the pair that makes so many turns over the original context."""
    period = cfg.rope_original_max_len / (turns * 2 * math.pi)
    return cfg.head_dim * math.log(period) / (2 * math.log(cfg.rope_theta))

  low = max(math.floor(pair_with(cfg.rope_beta_fast)), 0)
  high = min(math.ceil(pair_with(cfg.rope_beta_slow)), cfg.head_dim - 1)
  squeezed = np.clip((np.arange(half) - low) / max(high - low, 0.001), 0, 1)
  magnitude = 0.1 * math.log(cfg.rope_factor) + 1.0 if cfg.rope_factor > 1 else 1.0
  return plain * (1 - squeezed) + plain / cfg.rope_factor * squeezed, magnitude


SCALINGS = {'none': _plain, 'linear': _linear, 'llama3': _llama3, 'yarn': _yarn}
