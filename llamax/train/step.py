"""One update of the weights, one evaluation of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from llamax.core.types import Array, Batch, PyTree
from llamax.kernels.loss import LossSums, cross_entropy
from llamax.model.llama import Llama, param_dims
from llamax.parallel.rules import constrain, shard
from llamax.train.state import TrainState

Metrics = dict[str, Array]


def loss_sums(params: PyTree, batch: Batch, key: Array | None, *, model: Llama, z_loss: float) -> LossSums:
  """Token losses summed over the batch's real tokens. key: for dropout, or None."""
  rngs = {} if key is None else {'dropout': key}
  out: Any = model.apply(
    {'params': params}, batch['tokens'], batch['positions'], batch['segment_ids'], rngs=rngs
  )
  return cross_entropy(
    out.hidden_BTD,
    out.head_DV,
    batch['targets'],
    batch['segment_ids'] != 0,
    z_loss=z_loss,
    num_chunks=model.compute.loss_chunks,
  )


def _count(batch: Batch) -> Array:
  """Tokens that bear a loss, at least 1 so that an empty batch has a loss of 0."""
  return jnp.maximum((batch['segment_ids'] != 0).sum(), 1).astype(jnp.float32)


def _microbatches(batch: Batch, grad_accum: int) -> Batch:
  """[B, T] -> [grad_accum, B / grad_accum, T]; each microbatch has rows of every batch shard."""

  def split(x):
    B, T = x.shape
    return x.reshape(B // grad_accum, grad_accum, T).swapaxes(0, 1)

  return jax.tree.map(split, batch)


def _gradients(
  params: PyTree, batch: Batch, key: Array | None, *, model: Llama, z_loss: float, grad_accum: int
) -> tuple[PyTree, LossSums]:
  """Gradient of (sum of token losses / count over the global batch), with the sums."""
  count = _count(batch)

  def one(microbatch, key):
    def mean_loss(params):
      sums = loss_sums(params, microbatch, key, model=model, z_loss=z_loss)
      return sums.total / count, sums

    (_, sums), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    # Pinned at once: the sum over devices is then scattered, not made whole on each.
    return constrain(grads, param_dims(model.cfg)), sums

  if grad_accum == 1:
    return one(batch, key)

  def add(total, xs):
    index, microbatch = xs
    microbatch = {name: shard(x, 'BT') for name, x in microbatch.items()}
    part = one(microbatch, None if key is None else jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, part), None

  zeros = (jax.tree.map(jnp.zeros_like, params), LossSums(*(jnp.zeros(()) for _ in LossSums._fields)))
  xs = (jnp.arange(grad_accum), _microbatches(batch, grad_accum))
  return jax.lax.scan(add, zeros, xs)[0]


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  model: Llama,
  tx: optax.GradientTransformation,
  z_loss: float,
  grad_accum: int,
  seed: int,
) -> tuple[TrainState, Metrics]:
  """One update. Pure: no clock, no hidden randomness, no logging; dropout's key is (seed, step).

  Where the loss or the gradient's norm is NaN or infinite the update is skipped: parameters, moments, counts
  stay as they were, bit by bit; `step` goes on, for it is the position in the data.

  Returns the next state, with float32 scalars: loss (nats per real token), z_loss (its share of the
  objective), grad_norm (before clipping), param_norm (before the update), tokens (that bore a loss), skipped
  (1 or 0).
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step) if model.dropout_on else None
  grads, sums = _gradients(state.params, batch, key, model=model, z_loss=z_loss, grad_accum=grad_accum)
  # One number holds every gradient: each NaN or Inf among them is in their norm, no matter which device has it.
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(sums.total) & jnp.isfinite(sums.nll) & jnp.isfinite(grad_norm)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  new = optax.apply_updates(state.params, updates), opt_state
  # Selected, never multiplied: 0 * NaN is NaN.
  params, opt_state = jax.tree.map(
    lambda after, before: jnp.where(finite, after, before), new, (state.params, state.opt_state)
  )
  count = _count(batch)
  metrics = {
    'loss': sums.nll / count,
    'z_loss': z_loss * sums.z / count,
    'grad_norm': grad_norm,
    'param_norm': optax.tree.norm(state.params),
    'tokens': (batch['segment_ids'] != 0).sum().astype(jnp.float32),
    'skipped': (~finite).astype(jnp.float32),
  }
  return TrainState(state.step + 1, params, opt_state), metrics


def eval_step(params: PyTree, batch: Batch, *, model: Llama) -> Metrics:
  """{'nll': summed over the batch's real tokens in nats, 'tokens': how many}."""
  sums = loss_sums(params, batch, None, model=model, z_loss=0.0)
  return {'nll': sums.nll, 'tokens': (batch['segment_ids'] != 0).sum().astype(jnp.float32)}
