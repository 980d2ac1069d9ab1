"""Grouped-query attention, its projections, biases, norms, cache, against float64 loops."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.model.attention import GroupedQueryAttention, Tokens
from llamax.model.rope import Rope

B, T, D, N, K, H = 2, 7, 24, 6, 2, 10
SIZE = {'B': B, 'T': T, 'D': D, 'N': N, 'K': K, 'H': H}
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]], np.int32)
OPTIONS = {
  'plain': {},
  'biases': {'model.qkv_bias': True, 'model.out_bias': True},
  'qk_norm': {'model.qk_norm': True},
  'window': {'model.sliding_window': 3},
  'multi_head': {'model.num_kv_heads': 6},
  'one_kv_head': {'model.num_kv_heads': 1},
}


def draw_params(cfg):
  rng = np.random.default_rng(0)
  params = {}
  for path, letters in GroupedQueryAttention.dims(cfg).items():
    shape = [(SIZE | {'K': cfg.num_kv_heads})[x] for x in letters]
    *inner, last = path.split('/')
    at = params
    for name in inner:
      at = at.setdefault(name, {})
    at[last] = (0.4 * rng.standard_normal(shape)).astype(np.float32)
  return params


def rotate(x, position, theta):
  half = len(x) // 2
  turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * theta ** -(np.arange(half) / half))
  return np.concatenate([turned.real, turned.imag])


def reference(x, params, cfg):
  """One query at a time, in float64."""
  p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
  K = cfg.num_kv_heads

  def head(of, row, t, h):
    y = x[row, t].astype(np.float64) @ p[f'w{of}'][:, h] + p.get(f'b{of}', np.zeros((N, H)))[h]
    if cfg.qk_norm and of in 'qk':
      y = y / np.sqrt((y**2).mean() + cfg.norm_eps) * p[f'{of}_norm']['scale']
    return y if of == 'v' else rotate(y, POSITIONS[row, t], cfg.rope_theta)

  out = np.zeros((B, T, D))
  for row in range(B):
    for t in range(T):
      seen = [s for s in range(t + 1) if SEGMENTS[row, s] == SEGMENTS[row, t]]
      seen = seen[-cfg.sliding_window :] if cfg.sliding_window else seen
      for n in range(N):
        q = head('q', row, t, n)
        scores = np.array([q @ head('k', row, s, n // (N // K)) for s in seen]) / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        context = sum(w * head('v', row, s, n // (N // K)) for w, s in zip(weights, seen, strict=True))
        out[row, t] += context @ p['wo'][n]
      out[row, t] += p.get('bo', 0)
  return out


def tokens_of(cfg, positions=POSITIONS, segments=SEGMENTS):
  return Tokens(jnp.asarray(positions), jnp.asarray(segments), Rope.tables(cfg, jnp.asarray(positions)))


@pytest.mark.parametrize('option', OPTIONS)
def test_attention_equals_float64(make_llama, option):
  model = make_llama(**OPTIONS[option])
  params = draw_params(model.cfg)
  x = np.random.default_rng(1).standard_normal((B, T, D)).astype(np.float32)
  attn = GroupedQueryAttention(model.cfg, model.compute)
  y, cache = jax.jit(attn.apply)({'params': params}, jnp.asarray(x), tokens_of(model.cfg), None)
  assert cache is None
  np.testing.assert_allclose(y, reference(x, params, model.cfg), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('option', OPTIONS)
def test_attention_has_the_parameters_of_its_dims(make_llama, option):
  model = make_llama(**OPTIONS[option])
  attn = GroupedQueryAttention(model.cfg, model.compute)
  shapes = jax.eval_shape(attn.init, jax.random.key(0), jnp.ones((B, T, D)), tokens_of(model.cfg), None)
  assert jax.tree.map(lambda p: p.shape, shapes['params']) == jax.tree.map(np.shape, draw_params(model.cfg))


def test_the_way_back_starts_smaller_with_depth(make_llama):
  model = make_llama(**{'model.init': 'depth_scaled', 'model.init_std': 0.1, 'model.head_dim': 100})
  attn = GroupedQueryAttention(model.cfg, model.compute)
  params = jax.jit(attn.init)(jax.random.key(0), jnp.ones((B, T, D)), tokens_of(model.cfg), None)['params']
  stds = {name: float(w.std()) for name, w in params.items()}
  assert stds == pytest.approx({'wq': 0.1, 'wk': 0.1, 'wv': 0.1, 'wo': 0.1 / 6**0.5}, rel=0.05)


def test_fan_in_of_the_way_back_is_all_heads(make_llama):
  model = make_llama(**{'model.init': 'fan_in', 'model.head_dim': 100})
  attn = GroupedQueryAttention(model.cfg, model.compute)
  params = jax.jit(attn.init)(jax.random.key(0), jnp.ones((B, T, D)), tokens_of(model.cfg), None)['params']
  stds = {name: float(w.std()) for name, w in params.items()}
  assert stds == pytest.approx({'wq': 24**-0.5, 'wk': 24**-0.5, 'wv': 24**-0.5, 'wo': 600**-0.5}, rel=0.05)


@flax.struct.dataclass
class Grown:
  """A cache that is just all keys so far."""

  k_BSKH: jax.Array
  v_BSKH: jax.Array
  positions_BS: jax.Array

  def extend(self, k_BTKH, v_BTKH, positions_BT):
    new = (k_BTKH, v_BTKH, positions_BT)
    old = (self.k_BSKH, self.v_BSKH, self.positions_BS)
    k, v, positions = (jnp.concatenate(pair, axis=1) for pair in zip(old, new, strict=True))
    return k, v, positions, jnp.ones_like(positions), Grown(k, v, positions)


def test_queries_after_a_cache_equal_the_whole(make_llama):
  model = make_llama(**{'model.sliding_window': 4})
  cfg = model.cfg
  params = {'params': draw_params(cfg)}
  attn = GroupedQueryAttention(cfg, model.compute)
  x = jnp.asarray(np.random.default_rng(1).standard_normal((1, T, D)), jnp.float32)
  positions, ones = np.arange(T, dtype=np.int32)[None], np.ones((1, T), np.int32)
  apply = jax.jit(attn.apply)
  whole, _ = apply(params, x, tokens_of(cfg, positions, ones), None)

  cache = Grown(jnp.zeros((1, 0, K, H)), jnp.zeros((1, 0, K, H)), jnp.zeros((1, 0), jnp.int32))
  pieces = []
  for span in (slice(0, 4), slice(4, T)):
    piece, cache = apply(params, x[:, span], tokens_of(cfg, positions[:, span], ones[:, span]), cache)
    pieces.append(piece)
  assert cache.k_BSKH.shape == (1, T, K, H)
  np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=1e-4, atol=1e-5)
