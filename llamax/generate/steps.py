"""The compiled programs of the decoder with the KV cache that they carry."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llamax.core.types import Array, PyTree
from llamax.generate.sampling import Filters, draw
from llamax.model.llama import Llama, Output, logits
from llamax.parallel.rules import activation_spec, shard

# Tokens drawn before the host looks: few enough that little is drawn past a stop string.
CHUNK = 32
_RANDOM = 'threefry2x32'  # keys of two words; the same numbers on every kind of device


@flax.struct.dataclass
class KVCache:
  """Keys and values of every layer; slot s is position s. k, v: [L, B, S, K, H], in a layer [B, S, K, H].

  Slots past a row's last token hold anything: no query is at a later position than they are, so the causal mask
  hides them, until the row's own token of that position overwrites one.
  """

  k: Array
  v: Array

  def extend(
    self, k_BTKH: Array, v_BTKH: Array, positions_BT: Array
  ) -> tuple[Array, Array, Array, Array, 'KVCache']:
    """One layer's keys and values with T more at positions_BT, which rise by one along T, below S.

    Returns (k_BSKH, v_BSKH, positions_BS, segments_BS, the cache with them).
    """

    def write(slots_SKH, new_TKH, start):
      return jax.lax.dynamic_update_slice_in_dim(slots_SKH, new_TKH.astype(slots_SKH.dtype), start, axis=0)

    starts_B = positions_BT[:, 0]
    k_BSKH = shard(jax.vmap(write)(self.k, k_BTKH, starts_B), 'BSKH')
    v_BSKH = shard(jax.vmap(write)(self.v, v_BTKH, starts_B), 'BSKH')
    B, S = k_BSKH.shape[:2]
    positions_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32)[None], (B, S))
    return k_BSKH, v_BSKH, positions_BS, jnp.ones((B, S), jnp.int32), KVCache(k_BSKH, v_BSKH)


@flax.struct.dataclass
class Rows:
  """A batch of texts in the making. Positions below position_B are in the cache, token_B comes next.

  done_B: the text has ended by itself, or the row only fills up the batch.
  """

  cache: KVCache
  token_B: Array
  position_B: Array
  key_B2: Array
  done_B: Array


@functools.partial(jax.jit, static_argnames='dtype')
def cast(params: PyTree, dtype: str) -> PyTree:
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@functools.partial(jax.jit, static_argnames=('model', 'S'))
def empty_rows(
  token_B: Array, position_B: Array, key_B2: Array, done_B: Array, *, model: Llama, S: int
) -> Rows:
  """Rows with S places in the cache, none of them filled."""
  cfg = model.cfg
  shape = (cfg.num_layers, token_B.shape[0], S, cfg.num_kv_heads, cfg.head_dim)
  k, v = (jnp.zeros(shape, model.compute.compute_dtype) for _ in 'kv')
  return _laid_out(Rows(KVCache(k, v), token_B, position_B, key_B2, done_B))


@functools.partial(jax.jit, static_argnames='model', donate_argnames='rows')
def prefill(params: PyTree, rows: Rows, tokens_BT: Array, start: Array, *, model: Llama) -> Rows:
  """The rows with T tokens of each in the cache, from position `start`."""
  tokens_BT = shard(tokens_BT, 'BT')
  positions_T = start + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
  positions_BT = jnp.broadcast_to(positions_T[None], tokens_BT.shape)
  out = _forward(params, tokens_BT, positions_BT, rows.cache, model=model)
  return _laid_out(dataclasses.replace(rows, cache=out.cache))


@functools.partial(jax.jit, static_argnames=('model', 'filters', 'num_ids', 'eos_id'), donate_argnames='rows')
def draw_tokens(
  params: PyTree, rows: Rows, limit: Array, *, model: Llama, filters: Filters, num_ids: int, eos_id: int
) -> tuple[Rows, Array, Array]:
  """At most `limit` tokens for each row that is not done: (rows, tokens_BC, logprobs_BC), C = CHUNK.

  Stops early when all rows are done. What stands after a row's end means nothing.
  """
  B = rows.token_B.shape[0]

  def going(carry):
    step, rows, *_ = carry
    return (step < limit) & ~rows.done_B.all()

  def one(carry):
    step, rows, tokens_CB, logprobs_CB = carry
    rows, logprob_B = _step(params, rows, model=model, filters=filters, num_ids=num_ids, eos_id=eos_id)
    return step + 1, rows, tokens_CB.at[step].set(rows.token_B), logprobs_CB.at[step].set(logprob_B)

  empty = (jnp.zeros((CHUNK, B), jnp.int32), jnp.zeros((CHUNK, B), jnp.float32))
  _, rows, tokens_CB, logprobs_CB = jax.lax.while_loop(going, one, (jnp.int32(0), rows, *empty))
  return _laid_out(rows), _everywhere(tokens_CB.T), _everywhere(logprobs_CB.T)


def _step(
  params: PyTree, rows: Rows, *, model: Llama, filters: Filters, num_ids: int, eos_id: int
) -> tuple[Rows, Array]:
  """One more token for each row, with its log-probability. A row that is done stays where it is."""
  token_B1 = shard(rows.token_B[:, None], 'BT')
  position_B1 = shard(rows.position_B[:, None], 'BT')
  out = _forward(params, token_B1, position_B1, rows.cache, model=model)
  logits_BV = logits(out)[:, 0]
  # The vocabulary may be padded with ids that the tokenizer has no text for.
  drawable_1V = (jnp.arange(logits_BV.shape[1]) < num_ids)[None]
  row_key_B = jax.random.wrap_key_data(rows.key_B2, impl=_RANDOM)
  key_B = jax.vmap(jax.random.fold_in)(row_key_B, rows.position_B)
  drawn_B = draw(jnp.where(drawable_1V, logits_BV, -jnp.inf), key_B, filters)
  logprob_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), drawn_B[:, None], axis=1)[:, 0]
  done_B = rows.done_B
  return Rows(
    out.cache,
    jnp.where(done_B, rows.token_B, drawn_B),
    jnp.where(done_B, rows.position_B, rows.position_B + 1),
    rows.key_B2,
    done_B | (drawn_B == eos_id),
  ), logprob_B


@functools.partial(jax.jit, static_argnames='model')
def uncached_logits(params: PyTree, tokens_BT: Array, *, model: Llama) -> Array:
  """[T, V] float32 of the first row: what a row pads its end with no earlier position sees."""
  tokens_BT = shard(tokens_BT, 'BT')
  positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
  return _everywhere(logits(_forward(params, tokens_BT, positions_BT, None, model=model))[0])


def _forward(
  params: PyTree, tokens_BT: Array, positions_BT: Array, cache: KVCache | None, *, model: Llama
) -> Output:
  """One text per row, so one segment."""
  out: Any = model.apply({'params': params}, tokens_BT, positions_BT, jnp.ones_like(tokens_BT), cache)
  return out


def _laid_out(rows: Rows) -> Rows:
  """One layout between programs, however XLA would lay out the end of each: the next compiles once."""
  k, v = (shard(x, 'LBSKH') for x in (rows.cache.k, rows.cache.v))
  small = (rows.token_B, rows.position_B, rows.key_B2, rows.done_B)
  return Rows(KVCache(k, v), *map(_everywhere, small))


def _everywhere(x: Array) -> Array:
  """Whole on every device, for every host to read."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, activation_spec(''))
