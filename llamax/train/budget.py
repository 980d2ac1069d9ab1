"""Estimate of the memory that a train step takes on one device, from shapes alone."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from llamax.core.config import Config
from llamax.core.types import PyTree
from llamax.model.llama import Llama, init_params, param_dims
from llamax.optim.optimizer import make_optimizer
from llamax.optim.schedule import make_schedule
from llamax.parallel.mesh import BATCH_AXES
from llamax.parallel.rules import letters_of, param_spec, path_of

# No other dims of a model are so long: they tell the arrays of tokens, of pairs of them, of each layer.
_LENGTH, _LAYERS = 1031, 1033
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Budget:
  """Bytes on one device. `state`, `batch` are exact; the rest is an estimate (docs/tpu.md compares it).

  gradients: of one microbatch, with the running sum where there are several.
  activations: what the forward pass keeps for the backward pass.
  layer, loss, table: what is there beside all that while one layer runs backward, while the loss is computed,
  while the embedding's gradient is made. They come one after the other: the total has the largest.
  """

  params: int
  opt_state: int
  batch: int
  gradients: int
  activations: int
  layer: int
  loss: int
  table: int

  @property
  def state(self) -> int:
    """Parameters with optimizer moments: all that lasts from step to step."""
    return self.params + self.opt_state

  @property
  def total(self) -> int:
    working = max(self.layer, self.loss, self.table)
    return self.state + self.batch + self.gradients + self.activations + working

  def lines(self) -> list[str]:
    """For the preflight."""
    phases = {'a layer': self.layer, 'the loss': self.loss, 'the embedding': self.table}
    largest = max(phases, key=lambda name: phases[name])
    return [
      f'memory    about {self.total / GIB:.3g} GiB on a device: state {self.state / GIB:.3g} (exact), '
      f'gradients {self.gradients / GIB:.3g}, activations {self.activations / GIB:.3g}, '
      f'working space {phases[largest] / GIB:.3g} (most for {largest})'
    ]


def estimate(cfg: Config, sizes: Mapping[str, int]) -> Budget:
  """The budget of a train step. Needs no device, compiles nothing; traces the model's shapes (under a second).

  Args:
    cfg: `cfg.compute` settled (no 'auto' in it).
    sizes: mesh axis -> devices.
  """
  model = Llama(cfg.model, cfg.compute)
  tx = make_optimizer(cfg.optim, make_schedule(cfg.optim, cfg.train.num_steps))
  params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  dims = param_dims(cfg.model)
  params_bytes = sharded_bytes(params, dims, sizes)
  rows = cfg.batch_size // math.prod(sizes[axis] for axis in BATCH_AXES)
  tokens = rows // cfg.train.grad_accum * cfg.data.seq_len
  (outside, per_layer), (_, whole_layer) = kept_per_token(cfg, sizes['tensor'], (cfg.compute.remat, 'none'))
  return Budget(
    params=params_bytes,
    opt_state=sharded_bytes(jax.eval_shape(tx.init, params), dims, sizes),
    batch=4 * 4 * rows * cfg.data.seq_len,  # four arrays of int32
    gradients=_gradients(cfg, params_bytes, sizes['tensor']),
    activations=int(tokens * (outside + cfg.model.num_layers * per_layer)),
    layer=int(tokens * whole_layer) + _gathered_layer(cfg, params, sizes),
    loss=_loss(cfg, tokens, sizes['tensor']),
    table=_table(cfg, tokens, sizes['tensor']),
  )


def sharded_bytes(tree: PyTree, dims: Mapping[str, str], sizes: Mapping[str, int]) -> int:
  """Bytes of one device's part of every array. dims: parameter -> letters, from `param_dims`."""

  def part(key_path, leaf) -> int:
    _, letters = letters_of(path_of(key_path), leaf.ndim, dims)
    return leaf.size // math.prod(sizes[axis] for axis in param_spec(letters) if axis) * leaf.dtype.itemsize

  return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(part, tree)))


def kept_per_token(cfg: Config, tensor: int, remats: Sequence[str]) -> list[tuple[float, float]]:
  """Bytes that the forward pass keeps of one token, (outside of the layers, in each layer), for each policy.

  Read off the residuals of `jax.vjp`, traced with the heads and the width that one of `tensor` devices has, so
  that it holds for every part. Scores of token pairs are kept with plain attention alone: the flash backends
  keep one float32 a head instead.
  """
  local = dataclasses.replace(
    cfg.model,
    num_layers=_LAYERS,
    num_heads=cfg.model.num_heads // tensor,
    num_kv_heads=cfg.model.num_kv_heads // tensor,
    d_ff=cfg.model.d_ff // tensor,
  )
  compute = dataclasses.replace(cfg.compute, scan_layers=True, attention='xla')
  model = Llama(local, compute, dropout_on=local.dropout > 0)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(lambda key: init_params(model, key), key)
  ids = jax.ShapeDtypeStruct((1, _LENGTH), jnp.int32)

  def kept(remat: str) -> tuple[float, float]:
    one = model.clone(compute=dataclasses.replace(compute, remat=remat))

    def residuals(params, ids, key):
      return jax.vjp(
        lambda p: one.apply({'params': p}, ids, ids, ids, rngs={'dropout': key}).hidden_BTD, params
      )[1]

    saved = jax.tree.leaves(jax.eval_shape(residuals, params, ids, key))
    stacked = [leaf for leaf in saved if leaf.shape[:1] == (_LAYERS,)]
    outside = [leaf for leaf in saved if leaf.shape[:1] != (_LAYERS,)]
    flash = cfg.compute.attention != 'xla'
    sums = 4.0 * local.num_heads if flash and remat == 'none' else 0.0
    return _per_token(cfg, outside), _per_token(cfg, stacked) / _LAYERS + sums

  return [kept(remat) for remat in remats]


def _per_token(cfg: Config, leaves: Sequence[jax.ShapeDtypeStruct]) -> float:
  """Bytes of arrays made for a row of _LENGTH tokens, per token of a row of the config's length."""
  total = 0.0
  for leaf in leaves:
    lengths = leaf.shape.count(_LENGTH)
    if lengths == 1:
      total += leaf.size * leaf.dtype.itemsize / _LENGTH
    elif lengths == 2 and cfg.compute.attention == 'xla':
      total += leaf.size * leaf.dtype.itemsize / _LENGTH**2 * cfg.data.seq_len
  return total


def _gradients(cfg: Config, params_bytes: int, tensor: int) -> int:
  """One set, as split as the parameters; with several microbatches a running sum beside it, of which XLA keeps
  the head's part whole over fsdp: it joins that of the devices once, after the last microbatch.
  """
  if cfg.train.grad_accum == 1:
    return params_bytes
  return 2 * params_bytes + 4 * cfg.model.d_model * (cfg.model.vocab_size // tensor)


def _gathered_layer(cfg: Config, params: PyTree, sizes: Mapping[str, int]) -> int:
  """One layer's weights, whole over fsdp, in the compute dtype, with their gradients."""
  whole = dict.fromkeys(sizes, 1) | {'tensor': sizes['tensor']}
  dims = param_dims(cfg.model)
  layers = sharded_bytes({'layers': params['layers']}, dims, whole)
  width = _width(cfg)
  return 2 * layers // cfg.model.num_layers * width // jnp.dtype(cfg.compute.param_dtype).itemsize


def _loss(cfg: Config, tokens: int, tensor: int) -> int:
  """A chunk's logits, their exponentials in float32, their gradient; the head with its gradient's float32 sum;
  the hidden states' gradient.
  """
  vocab, width = cfg.model.vocab_size // tensor, _width(cfg)
  logits = tokens // cfg.compute.loss_chunks * vocab * (4 + 4 + width)
  return logits + cfg.model.d_model * (vocab * (width + 4) + tokens * width)


def _table(cfg: Config, tokens: int, tensor: int) -> int:
  """The embedding, whole over fsdp, with its gradient; the gradient of the vectors."""
  return cfg.model.d_model * _width(cfg) * (2 * (cfg.model.vocab_size // tensor) + tokens)


def _width(cfg: Config) -> int:
  return jnp.dtype(cfg.compute.compute_dtype).itemsize
