"""The gated feed-forward layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llamax.core.config import ComputeConfig, ModelConfig
from llamax.core.types import Array
from llamax.model.layers import weight_init
from llamax.parallel.rules import shard


class SwiGlu(nn.Module):
  """w_down (silu(w_gate x) * w_up x) (Shazeer 2020)."""

  cfg: ModelConfig
  compute: ComputeConfig

  @staticmethod
  def dims(cfg: ModelConfig) -> dict[str, str]:
    """Parameter -> letters, for the sharding rules."""
    dims = {'w_gate': 'DF', 'w_up': 'DF', 'w_down': 'FD'}
    return dims | ({'b_gate': 'F', 'b_up': 'F', 'b_down': 'D'} if cfg.mlp_bias else {})

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    cfg = self.cfg
    gate_BTF = shard(self._dense(x_BTD, 'gate', cfg.d_model, cfg.d_ff), 'BTF')
    up_BTF = shard(self._dense(x_BTD, 'up', cfg.d_model, cfg.d_ff), 'BTF')
    hidden_BTF = checkpoint_name(jax.nn.silu(gate_BTF) * up_BTF, 'mlp')
    return self._dense(hidden_BTF, 'down', cfg.d_ff, cfg.d_model)

  def _dense(self, x: Array, name: str, width_in: int, width_out: int) -> Array:
    init = weight_init(self.cfg, width_in, residual=name == 'down')
    w = self.param(f'w_{name}', init, (width_in, width_out), self.compute.param_dtype)
    y = jnp.einsum('BTX,XY->BTY', x, w.astype(x.dtype))
    if self.cfg.mlp_bias:
      b = self.param(f'b_{name}', nn.initializers.zeros, (width_out,), self.compute.param_dtype)
      y += b.astype(y.dtype)[None, None]
    return y
