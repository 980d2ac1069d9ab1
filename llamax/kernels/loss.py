"""Cross-entropy that never holds the logits of the whole batch."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llamax.core.types import Array
from llamax.parallel.mesh import BATCH_AXES
from llamax.parallel.rules import activation_spec, param_spec


class LossSums(NamedTuple):
  """Sums over the tokens that count, float32 scalars; the mean is the caller's.

  total: nll + z_loss * z, the only one that carries a gradient. nll: -log p(target), in nats.
  z: log(sum of exp logits) squared (PaLM, section 5).
  """

  total: Array
  nll: Array
  z: Array


def cross_entropy(
  hidden_BTD: Array, head_DV: Array, targets_BT: Array, mask_BT: Array, *, z_loss: float, num_chunks: int
) -> LossSums:
  """Token losses summed over the global batch, `num_chunks` pieces of T at a time.

  The gradient is computed in the forward pass, where a chunk's logits are at hand (as in Liger Kernel's
  fused linear cross-entropy), so they are neither kept nor computed twice. On a mesh each device works on its
  rows and its part of the vocabulary: the head is gathered over fsdp once, its gradient scattered once.

  Args:
    hidden_BTD: final hidden states. head_DV: unembedding, same dtype.
    targets_BT: int32 ids. mask_BT: bool, tokens that count.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return _local_sums(hidden_BTD, head_DV, targets_BT, mask_BT, z_loss, num_chunks, None)

  def local(hidden, head, targets, mask):
    head = jax.lax.all_gather(head, 'fsdp', axis=0, tiled=True)
    sums = _local_sums(hidden, head, targets, mask, z_loss, num_chunks, 'tensor')
    return jax.tree.map(lambda s: jax.lax.psum(s, BATCH_AXES), sums)

  # Its gradient is summed over the devices at once. XLA for TPU would put that off till after the loop over
  # microbatches: then it stands whole on each device meanwhile, or the compiler stops in that very pass.
  head_DV = jax.lax.optimization_barrier(head_DV)
  rows: P = activation_spec('BT')
  in_specs = (activation_spec('BTD'), param_spec('DV'), rows, rows)
  return jax.shard_map(local, in_specs=in_specs, out_specs=P(), check_vma=False)(
    hidden_BTD, head_DV, targets_BT, mask_BT
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _local_sums(hidden_BTD, head_DV, targets_BT, mask_BT, z_loss, num_chunks, vocab_axis) -> LossSums:
  """The sums of one device's rows; its columns of the head are joined with the others' over `vocab_axis`."""

  def one_chunk(sums, chunk):
    _, chunk_sums = _chunk_probabilities(*chunk, head_DV, z_loss, vocab_axis)
    return jax.tree.map(jnp.add, sums, chunk_sums), None

  chunks = _split((hidden_BTD, targets_BT, mask_BT), num_chunks)
  return jax.lax.scan(one_chunk, _zero_sums(), chunks)[0]


def _forward(hidden_BTD, head_DV, targets_BT, mask_BT, z_loss, num_chunks, vocab_axis):
  def one_chunk(carry, chunk):
    sums, d_head_DV = carry
    hidden_BCD = chunk[0]
    d_logits_BCV, chunk_sums = _chunk_probabilities(*chunk, head_DV, z_loss, vocab_axis, gradient=True)
    d_logits_BCV = d_logits_BCV.astype(head_DV.dtype)
    d_hidden_BCD = jnp.einsum('BCV,DV->BCD', d_logits_BCV, head_DV)
    d_head_DV += jnp.einsum('BCD,BCV->DV', hidden_BCD, d_logits_BCV, preferred_element_type=jnp.float32)
    return (jax.tree.map(jnp.add, sums, chunk_sums), d_head_DV), d_hidden_BCD

  chunks = _split((hidden_BTD, targets_BT, mask_BT), num_chunks)
  # The head's gradient is summed in float32: the chunks' parts differ in size.
  start = (_zero_sums(), jnp.zeros(head_DV.shape, jnp.float32))
  (sums, d_head_DV), d_hidden = jax.lax.scan(one_chunk, start, chunks)
  d_hidden_BTD = d_hidden.swapaxes(0, 1).reshape(hidden_BTD.shape)
  return sums, (d_hidden_BTD, d_head_DV.astype(head_DV.dtype))


def _backward(z_loss, num_chunks, vocab_axis, gradients, cotangent: LossSums):
  d_hidden_BTD, d_head_DV = gradients
  scale = cotangent.total
  if vocab_axis:
    # Each device of the axis holds the same sum; what flows back to them is one gradient, in parts.
    scale = jax.lax.psum(scale, vocab_axis)
  # Scaled in float32: 1 / count rounded to bfloat16 would be up to 0.4 % off, for every token alike.
  d_hidden_BTD, d_head_DV = ((d * scale).astype(d.dtype) for d in (d_hidden_BTD, d_head_DV))
  return d_hidden_BTD, d_head_DV, None, None


_local_sums.defvjp(_forward, _backward)


def _zero_sums() -> LossSums:
  return LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))


def _split(arrays, num_chunks: int):
  """[B, T, ...] -> [chunks, B, T / chunks, ...] for scan."""

  def split(x):
    B, T = x.shape[:2]
    return x.reshape(B, num_chunks, T // num_chunks, *x.shape[2:]).swapaxes(0, 1)

  return jax.tree.map(split, arrays)


def _chunk_probabilities(hidden_BCD, targets_BC, mask_BC, head_DV, z_loss, vocab_axis, gradient=False):
  """(d total / d logits, or None; the chunk's sums). V is this device's part of the vocabulary."""
  logits_BCV = jnp.einsum('BCD,DV->BCV', hidden_BCD, head_DV, preferred_element_type=jnp.float32)
  peak_BC1 = logits_BCV.max(-1, keepdims=True)
  ids_V = jnp.arange(head_DV.shape[1], dtype=targets_BC.dtype)
  if vocab_axis:
    peak_BC1 = jax.lax.pmax(peak_BC1, vocab_axis)
    ids_V += jax.lax.axis_index(vocab_axis) * head_DV.shape[1]
  exp_BCV = jnp.exp(logits_BCV - peak_BC1)
  is_target_BCV = targets_BC[..., None] == ids_V[None, None]
  exp_sum_BC = exp_BCV.sum(-1)
  target_logit_BC = jnp.where(is_target_BCV, logits_BCV, 0).sum(-1)
  if vocab_axis:
    exp_sum_BC, target_logit_BC = jax.lax.psum((exp_sum_BC, target_logit_BC), vocab_axis)
  log_z_BC = jnp.log(exp_sum_BC) + peak_BC1[..., 0]
  nll = jnp.where(mask_BC, log_z_BC - target_logit_BC, 0).sum()
  z = jnp.where(mask_BC, log_z_BC**2, 0).sum()
  sums = LossSums(nll + z_loss * z, nll, z)
  if not gradient:
    return None, sums
  weight_BC = jnp.where(mask_BC, (1 + 2 * z_loss * log_z_BC) / exp_sum_BC, 0)
  d_logits_BCV = exp_BCV * weight_BC[..., None] - jnp.where(is_target_BCV & mask_BC[..., None], 1.0, 0.0)
  return d_logits_BCV, sums
