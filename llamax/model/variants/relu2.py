"""The feed-forward layer of Primer: a squared ReLU in place of the gate."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llamax.core.config import ComputeConfig, ModelConfig
from llamax.core.types import Array
from llamax.model.layers import weight_init
from llamax.parallel.rules import shard


class SquaredRelu(nn.Module):
  """w_down (relu(w_up x) squared) (So et al. 2021, section 4.1).

  Two matrices for SwiGLU's three: the same parameter count takes 1.5 times the d_ff.
  """

  cfg: ModelConfig
  compute: ComputeConfig

  @staticmethod
  def dims(cfg: ModelConfig) -> dict[str, str]:
    """Parameter -> letters, for the sharding rules."""
    dims = {'w_up': 'DF', 'w_down': 'FD'}
    return dims | ({'b_up': 'F', 'b_down': 'D'} if cfg.mlp_bias else {})

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    cfg = self.cfg
    up_BTF = shard(self._dense(x_BTD, 'up', cfg.d_model, cfg.d_ff), 'BTF')
    hidden_BTF = checkpoint_name(jnp.square(jax.nn.relu(up_BTF)), 'mlp')
    return self._dense(hidden_BTF, 'down', cfg.d_ff, cfg.d_model)

  def _dense(self, x: Array, name: str, width_in: int, width_out: int) -> Array:
    init = weight_init(self.cfg, width_in, residual=name == 'down')
    w = self.param(f'w_{name}', init, (width_in, width_out), self.compute.param_dtype)
    y = jnp.einsum('BTX,XY->BTY', x, w.astype(x.dtype))
    if self.cfg.mlp_bias:
      b = self.param(f'b_{name}', nn.initializers.zeros, (width_out,), self.compute.param_dtype)
      y += b.astype(y.dtype)[None, None]
    return y


PARTS = {'mlp': SquaredRelu}
