"""Grouped-query attention: projections, rotation, the kernel, the way back."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llamax.core.config import ComputeConfig, ModelConfig
from llamax.core.types import Array
from llamax.kernels.attention import attention
from llamax.model.layers import weight_init
from llamax.model.parts import find_part
from llamax.parallel.rules import shard


@flax.struct.dataclass
class Tokens:
  """What a layer knows of the tokens beside their vectors.

  positions_BT: index in the segment. segments_BT: document in the row. rotation: the position part's tables.
  """

  positions_BT: Array
  segments_BT: Array
  rotation: Any


class GroupedQueryAttention(nn.Module):
  """N query heads over K key/value heads (Ainslie et al. 2023); K = N is multi-head attention."""

  cfg: ModelConfig
  compute: ComputeConfig

  @staticmethod
  def dims(cfg: ModelConfig) -> dict[str, str]:
    """Parameter -> letters, for the sharding rules."""
    dims = {'wq': 'DNH', 'wk': 'DKH', 'wv': 'DKH', 'wo': 'NHD'}
    if cfg.qkv_bias:
      dims |= {'bq': 'NH', 'bk': 'KH', 'bv': 'KH'}
    if cfg.out_bias:
      dims |= {'bo': 'D'}
    if cfg.qk_norm:
      norm = find_part(cfg, 'norm').dims('H')
      dims |= {f'{of}_norm/{name}': letters for of in 'qk' for name, letters in norm.items()}
    return dims

  @nn.compact
  def __call__(self, x_BTD: Array, tokens: Tokens, cache: Any) -> tuple[Array, Any]:
    """Args: cache: None, or one layer's keys and values with
    `extend(k, v, positions) -> (k_BSKH, v_BSKH, positions_BS, segments_BS, cache)`.
    """
    cfg = self.cfg
    position = find_part(cfg, 'position')
    q_BTNH = self._project(x_BTD, 'q', cfg.num_heads)
    k_BTKH = self._project(x_BTD, 'k', cfg.num_kv_heads)
    v_BTKH = self._project(x_BTD, 'v', cfg.num_kv_heads)
    if cfg.qk_norm:
      norm = find_part(cfg, 'norm')
      q_BTNH = norm(cfg.norm_eps, self.compute.param_dtype, name='q_norm')(q_BTNH)
      k_BTKH = norm(cfg.norm_eps, self.compute.param_dtype, name='k_norm')(k_BTKH)
    q_BTNH = checkpoint_name(position.apply(q_BTNH, tokens.rotation), 'qkv')
    k_BTKH = checkpoint_name(position.apply(k_BTKH, tokens.rotation), 'qkv')
    v_BTKH = checkpoint_name(v_BTKH, 'qkv')

    keys = (k_BTKH, v_BTKH, tokens.positions_BT, tokens.segments_BT)
    if cache is not None:
      *keys, cache = cache.extend(k_BTKH, v_BTKH, tokens.positions_BT)
    k_BSKH, v_BSKH, k_positions_BS, k_segments_BS = keys
    context_BTNH = attention(
      q_BTNH,
      k_BSKH,
      v_BSKH,
      q_positions_BT=tokens.positions_BT,
      k_positions_BS=k_positions_BS,
      q_segments_BT=tokens.segments_BT,
      k_segments_BS=k_segments_BS,
      sliding_window=cfg.sliding_window,
      backend=self.compute.attention,
      splash_block=self.compute.splash_block,
    )
    context_BTNH = checkpoint_name(shard(context_BTNH, 'BTNH'), 'context')
    return self._project_back(context_BTNH), cache

  def _project(self, x_BTD: Array, name: str, heads: int) -> Array:
    cfg, letter = self.cfg, 'N' if name == 'q' else 'K'
    shape = (cfg.d_model, heads, cfg.head_dim)
    w_DNH = self.param(
      f'w{name}', weight_init(cfg, cfg.d_model, residual=False), shape, self.compute.param_dtype
    )
    y_BTNH = jnp.einsum('BTD,DNH->BTNH', x_BTD, w_DNH.astype(x_BTD.dtype))
    if cfg.qkv_bias:
      b_NH = self.param(f'b{name}', nn.initializers.zeros, shape[1:], self.compute.param_dtype)
      y_BTNH += b_NH.astype(y_BTNH.dtype)[None, None]
    return shard(y_BTNH, f'BT{letter}H')

  def _project_back(self, context_BTNH: Array) -> Array:
    cfg = self.cfg
    shape = (cfg.num_heads, cfg.head_dim, cfg.d_model)
    init = weight_init(cfg, cfg.num_heads * cfg.head_dim, residual=True)
    w_NHD = self.param('wo', init, shape, self.compute.param_dtype)
    y_BTD = jnp.einsum('BTNH,NHD->BTD', context_BTNH, w_NHD.astype(context_BTNH.dtype))
    if cfg.out_bias:
      b_D = self.param('bo', nn.initializers.zeros, shape[2:], self.compute.param_dtype)
      y_BTD += b_D.astype(y_BTD.dtype)[None, None]
    return y_BTD
