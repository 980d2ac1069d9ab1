"""The LLaMA decoder, composed of the parts that the config names."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llamax.core.config import ComputeConfig, ModelConfig
from llamax.core.types import Array, PyTree
from llamax.kernels.attention import BACKEND_OF_PLATFORM
from llamax.model import mup
from llamax.model.attention import Tokens
from llamax.model.layers import weight_init
from llamax.model.parts import find_part
from llamax.parallel.rules import path_of, shard

# What the forward pass keeps for the backward pass; the rest is computed again.
REMAT_POLICIES = {
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'qkv': jax.checkpoint_policies.save_only_these_names('qkv', 'context'),
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Output(NamedTuple):
  """hidden_BTD: normed final states. head_DV: unembedding in the same dtype; logits are their product.
  cache: the extended KV cache, or None.
  """

  hidden_BTD: Array
  head_DV: Array
  cache: Any


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  cfg: ModelConfig
  compute: ComputeConfig
  dropout_on: bool

  @nn.compact
  def __call__(self, x_BTD: Array, cache: Any, tokens: Tokens) -> tuple[Array, Any]:
    cfg, compute = self.cfg, self.compute
    norm = find_part(cfg, 'norm')
    drop = nn.Dropout(cfg.dropout, deterministic=not self.dropout_on)

    normed_BTD = norm(cfg.norm_eps, compute.param_dtype, name='attn_norm')(x_BTD)
    y_BTD, cache = find_part(cfg, 'attention')(cfg, compute, name='attn')(normed_BTD, tokens, cache)
    x_BTD = shard(x_BTD + drop(y_BTD), 'BTD')

    normed_BTD = norm(cfg.norm_eps, compute.param_dtype, name='mlp_norm')(x_BTD)
    y_BTD = find_part(cfg, 'mlp')(cfg, compute, name='mlp')(normed_BTD)
    return shard(x_BTD + drop(y_BTD), 'BTD'), cache


class Embed(nn.Module):
  """Token ids -> vectors."""

  cfg: ModelConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, tokens_BT: Array) -> tuple[Array, Array]:
    """(x_BTD, table_VD), both in the compute dtype."""
    cfg = self.cfg
    shape = (cfg.vocab_size, cfg.d_model)
    init = nn.initializers.normal(cfg.init_std)
    table_VD = self.param('table', init, shape, self.compute.param_dtype).astype(self.compute.compute_dtype)
    # Width gathered first: looking ids up in a table that is split both ways makes XLA copy all of it.
    x_BTD = jnp.take(shard(table_VD, 'VD'), tokens_BT, axis=0)
    return shard(x_BTD, 'BTD'), table_VD


class Head(nn.Module):
  """The unembedding matrix; the product with it belongs to the loss, in pieces."""

  cfg: ModelConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self) -> Array:
    cfg = self.cfg
    init = weight_init(cfg, cfg.d_model, residual=False)
    kernel_DV = self.param('kernel', init, (cfg.d_model, cfg.vocab_size), self.compute.param_dtype)
    return kernel_DV.astype(self.compute.compute_dtype)


class Llama(nn.Module):
  """Decoder-only transformer (Touvron et al. 2023). `compute` must be settled: no 'auto' in it."""

  cfg: ModelConfig
  compute: ComputeConfig
  dropout_on: bool = False

  @nn.compact
  def __call__(self, tokens_BT: Array, positions_BT: Array, segments_BT: Array, cache: Any = None) -> Output:
    """Args: [B, T] int32 as in `llamax.core.types.Batch`. cache: None, or each layer's cache stacked on L."""
    cfg, compute = self.cfg, self.compute
    x_BTD, table_VD = Embed(cfg, compute, name='embed')(tokens_BT)
    tokens = Tokens(positions_BT, segments_BT, find_part(cfg, 'position').tables(cfg, positions_BT))

    block = Block
    if compute.remat != 'none':
      block = nn.remat(Block, policy=REMAT_POLICIES[compute.remat], prevent_cse=not compute.scan_layers)
    layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(0, nn.broadcast),
      length=cfg.num_layers,
      # Unrolled, the layers stay stacked: the same parameters, checkpoints, rules.
      unroll=1 if compute.scan_layers else cfg.num_layers,
    )
    x_BTD, cache = layers(cfg, compute, self.dropout_on, name='layers')(x_BTD, cache, tokens)
    hidden_BTD = find_part(cfg, 'norm')(cfg.norm_eps, compute.param_dtype, name='final_norm')(x_BTD)
    head_DV = table_VD.T if cfg.tie_embeddings else Head(cfg, compute, name='lm_head')()
    return Output(hidden_BTD, head_DV, cache)


def settle(compute: ComputeConfig, platform: str) -> ComputeConfig:
  """The compute section with every 'auto' decided for 'cpu', 'gpu' or 'tpu'."""
  dtype, backend = compute.compute_dtype, compute.attention
  if dtype == 'auto':
    dtype = 'float32' if platform == 'cpu' else 'bfloat16'
  if backend == 'auto':
    backend = BACKEND_OF_PLATFORM[platform]
  return dataclasses.replace(compute, compute_dtype=dtype, attention=backend)


def param_dims(cfg: ModelConfig) -> dict[str, str]:
  """Every parameter's path -> its dimension letters: the sharding rules of this architecture."""
  norm = find_part(cfg, 'norm').dims('D')
  parts = {'attn': find_part(cfg, 'attention').dims(cfg), 'mlp': find_part(cfg, 'mlp').dims(cfg)}
  parts |= {'attn_norm': norm, 'mlp_norm': norm}
  rules = {'embed/table': 'VD'} | {f'final_norm/{name}': letters for name, letters in norm.items()}
  for part, dims in parts.items():
    rules |= {f'layers/{part}/{name}': 'L' + letters for name, letters in dims.items()}
  return rules if cfg.tie_embeddings else rules | {'lm_head/kernel': 'DV'}


def dim_sizes(cfg: ModelConfig) -> dict[str, int]:
  """Letter -> size, for the letters that parameters have."""
  return {
    'D': cfg.d_model,
    'N': cfg.num_heads,
    'K': cfg.num_kv_heads,
    'H': cfg.head_dim,
    'F': cfg.d_ff,
    'V': cfg.vocab_size,
    'L': cfg.num_layers,
  }


def init_params(model: Llama, key: Array) -> PyTree:
  """Fresh parameters, a nested dict of arrays."""
  ids = jnp.zeros((1, 2), jnp.int32)
  # The backend changes no parameter; xla alone takes a row this short.
  plain = model.clone(compute=dataclasses.replace(model.compute, attention='xla'), dropout_on=False)
  params = plain.init(key, ids, ids, ids)['params']
  if model.cfg.mup_base_width is None:
    return params
  dims = param_dims(model.cfg)
  return jax.tree_util.tree_map_with_path(
    lambda path, w: w * mup.init_factor(model.cfg, dims[path_of(path)]), params
  )


def num_params(model: Llama) -> int:
  """Counted from shapes: nothing is allocated."""
  shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def logits(output: Output) -> Array:
  """[B, T, V] float32: for parity, for generation; training never holds these."""
  return jnp.einsum('BTD,DV->BTV', output.hidden_BTD, output.head_DV, preferred_element_type=jnp.float32)
