"""Attention behind one signature, with one backend per kind of hardware."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llamax.core.errors import UserError, pick
from llamax.core.types import Array
from llamax.parallel.rules import activation_spec

BACKEND_OF_PLATFORM = {'cpu': 'xla', 'gpu': 'cudnn', 'tpu': 'splash'}


def attention(
  q_BTNH: Array,
  k_BSKH: Array,
  v_BSKH: Array,
  *,
  q_positions_BT: Array,
  k_positions_BS: Array,
  q_segments_BT: Array,
  k_segments_BS: Array,
  sliding_window: int,
  backend: str,
  splash_block: int,
) -> Array:
  """Causal softmax attention in which query t sees key s when both hold:

  the segments are equal; 0 <= q_position - k_position < sliding_window (0: no window).
  N query heads share K key/value heads: head n reads head n // (N / K). Scores are scaled by H ** -0.5.

  Backends other than xla read causality off the index in the row, which is the same thing for packed rows
  (positions rise by one within a segment); they need T == S.

  Returns [B, T, N, H] in q's dtype. Raises UserError where the backend cannot do what is asked.
  """
  run = pick(_BACKENDS, backend, 'compute.attention')
  return run(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    q_positions_BT,
    k_positions_BS,
    q_segments_BT,
    k_segments_BS,
    sliding_window,
    splash_block,
  )


def check_backend(
  backend: str, *, platform: str, dtype: str, seq_len: int, head_dim: int, splash_block: int
) -> None:
  """UserError, before any work, when a backend cannot serve these shapes on this platform."""
  reasons = []
  if backend == 'splash':
    block = min(splash_block, seq_len)
    if platform not in ('tpu', 'interpret'):
      reasons.append(f'it runs on TPU, this is {platform}')
    if block % 128 or seq_len % block:
      reasons.append(
        f'it needs blocks of a multiple of 128 tokens that divide data.seq_len={seq_len} '
        f'(compute.splash_block={splash_block})'
      )
  if backend == 'cudnn':
    if platform != 'gpu':
      reasons.append(f'it runs on GPU, this is {platform}')
    if dtype != 'bfloat16':
      reasons.append(f'it needs compute.compute_dtype=bfloat16, this is {dtype}')
    if head_dim % 8 or head_dim > 256:
      reasons.append(f'it needs a head_dim that is a multiple of 8 up to 256, this is {head_dim}')
  if reasons:
    raise UserError(f'compute.attention={backend}: {"; ".join(reasons)}. compute.attention=xla does everything')


def _xla(q_BTNH, k_BSKH, v_BSKH, qpos, kpos, qseg, kseg, window, splash_block) -> Array:
  """Plain matrix products: any shape, memory B N T S. The oracle of the others."""
  del splash_block
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  G = N // K
  # Heads first, the queries that share a key head in one tall matrix: on a CPU half the time of the same
  # einsum over the arrays as they come.
  q_BKXH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
  # Scores stay in float32: bfloat16 has too few bits for a softmax over long T.
  scores_BKXS = jnp.einsum('BKXH,BKSH->BKXS', q_BKXH, k_BKSH, preferred_element_type=jnp.float32)
  ahead_BTS = qpos[:, :, None] - kpos[:, None, :]
  mask_BTS = (ahead_BTS >= 0) & (qseg[:, :, None] == kseg[:, None, :])
  if window:
    mask_BTS &= ahead_BTS < window
  scores_BKGTS = scores_BKXS.reshape(B, K, G, T, S) * H**-0.5
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, jnp.finfo(jnp.float32).min)
  peak_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(-1, keepdims=True))
  weights_BKXS = jnp.exp(scores_BKGTS - peak_BKGT1).reshape(B, K, G * T, S)
  # Divided by the sum after the product: H columns instead of S.
  sum_BKX1 = weights_BKXS.sum(-1, keepdims=True)
  out_BKXH = jnp.einsum(
    'BKXS,BKSH->BKXH', weights_BKXS.astype(v_BSKH.dtype), v_BKSH, preferred_element_type=jnp.float32
  )
  out_BKXH = (out_BKXH / sum_BKX1).astype(q_BTNH.dtype)
  return out_BKXH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _require_same_length(name: str, q_BTNH: Array, k_BSKH: Array) -> None:
  if q_BTNH.shape[1] != k_BSKH.shape[1]:
    raise UserError(
      f'compute.attention={name} takes as many keys as queries, got {k_BSKH.shape[1]} keys for '
      f'{q_BTNH.shape[1]} queries (a KV cache?); compute.attention=xla takes any'
    )


def _cudnn(q_BTNH, k_BSKH, v_BSKH, qpos, kpos, qseg, kseg, window, splash_block) -> Array:
  """cuDNN's flash attention on GPU, per device under shard_map: batch rows and heads are independent."""
  del qpos, kpos, splash_block
  _require_same_length('cudnn', q_BTNH, k_BSKH)

  def local(q, k, v, qseg_BT, kseg_BS):
    same_B1TS = (qseg_BT[:, :, None] == kseg_BS[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
      q,
      k,
      v,
      mask=same_B1TS,
      is_causal=True,
      # jax counts the keys left of the query, the config counts the query itself too.
      local_window_size=(window - 1, 0) if window else None,
      implementation='cudnn',
    )

  return _per_device(local)(q_BTNH, k_BSKH, v_BSKH, qseg, kseg)


def _splash(q_BTNH, k_BSKH, v_BSKH, qpos, kpos, qseg, kseg, window, splash_block, interpret=False) -> Array:
  """Pallas splash attention on TPU: blocks that the mask rules out are never computed."""
  del qpos, kpos
  _require_same_length('splash', q_BTNH, k_BSKH)
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  H = q_BTNH.shape[-1]

  def local(q, k, v, qseg_BT, kseg_BS):
    # Built here: the number of heads is what one device holds.
    kernel = _splash_kernel(q.shape[2], q.shape[1], window, min(splash_block, q.shape[1]), interpret)
    # The kernel wants heads first, no scale, a head width of whole lanes: zeros add nothing to a score.
    heads = [jnp.pad(x.swapaxes(1, 2), ((0, 0),) * 3 + ((0, -H % 128),)) for x in (q * H**-0.5, k, v)]
    out = jax.vmap(kernel)(*heads, splash.SegmentIds(qseg_BT, kseg_BS))
    return out[..., :H].swapaxes(1, 2).astype(q.dtype)

  return _per_device(local)(q_BTNH, k_BSKH, v_BSKH, qseg, kseg)


def _splash_kernel(num_heads: int, seq_len: int, window: int, block: int, interpret: bool):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  shape = (seq_len, seq_len)
  mask = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
  sizes = splash.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  return splash.make_splash_mha(
    masks.MultiHeadMask([mask] * num_heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )


def _per_device(local):
  """`local(q, k, v, q_segments, k_segments)` under shard_map: rows split by the batch, heads by tensor."""
  if jax.sharding.get_abstract_mesh().empty:
    return local
  heads: P = activation_spec('BTNH')
  rows: P = activation_spec('BT')
  return jax.shard_map(local, in_specs=(heads, heads, heads, rows, rows), out_specs=heads, check_vma=False)


_BACKENDS = {
  'xla': _xla,
  'cudnn': _cudnn,
  'splash': _splash,
  # The TPU kernel run step by step in Python: for tests on a CPU.
  'splash_interpret': functools.partial(_splash, interpret=True),
}
