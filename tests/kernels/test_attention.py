"""The attention backends against float64 loops, against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.core.config import MeshConfig
from llamax.core.errors import UserError
from llamax.kernels.attention import BACKEND_OF_PLATFORM, attention, check_backend
from llamax.parallel.mesh import make_mesh


def draw(B, T, S, N, K, H, seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
  return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def packed(B, T, lengths):
  """(positions, segments) of rows that hold documents of these lengths, the rest padding."""
  segments = np.zeros((B, T), np.int32)
  positions = np.zeros((B, T), np.int32)
  for row in range(B):
    start = 0
    for i, n in enumerate(lengths[row]):
      segments[row, start : start + n] = i + 1
      positions[row, start : start + n] = np.arange(n)
      start += n
    positions[row, start:] = np.arange(T - start)
  return positions, segments


def run(qkv, q_at, k_at, *, window=0, backend='xla', block=128):
  return attention(
    *qkv,
    q_positions_BT=q_at[0],
    k_positions_BS=k_at[0],
    q_segments_BT=q_at[1],
    k_segments_BS=k_at[1],
    sliding_window=window,
    backend=backend,
    splash_block=block,
  )


def reference(qkv, q_at, k_at, window):
  """One query of one head at a time, in float64."""
  q, k, v = (x.astype(np.float64) for x in qkv)
  (qpos, qseg), (kpos, kseg) = q_at, k_at
  B, T, N, H = q.shape
  K = k.shape[2]
  out = np.zeros(q.shape)
  for b, t, n in np.ndindex(B, T, N):
    ahead = qpos[b, t] - kpos[b]
    seen = (ahead >= 0) & (qseg[b, t] == kseg[b]) & ((ahead < window) if window else True)
    scores = k[b, seen, n // (N // K)] @ q[b, t, n] / np.sqrt(H)
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights @ v[b, seen, n // (N // K)] / weights.sum()
  return out


@pytest.mark.parametrize('window', [0, 1, 3])
@pytest.mark.parametrize('K', [1, 2, 6])
def test_xla_equals_float64(K, window):
  B, T, N, H = 2, 9, 6, 10
  qkv, at = draw(B, T, T, N, K, H), packed(B, T, [[4, 3], [9]])
  out = run(qkv, at, at, window=window)
  assert out.shape == (B, T, N, H)
  np.testing.assert_allclose(out, reference(qkv, at, at, window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('window', [0, 4])
def test_xla_takes_keys_of_a_cache(window):
  """More keys than queries, in any order: positions decide, segment 0 marks slots not yet filled."""
  B, T, S, N, K, H = 2, 3, 8, 6, 2, 10
  qkv = draw(B, T, S, N, K, H)
  q_at = np.array([[5, 6, 7], [2, 3, 4]]), np.ones((B, T), int)
  k_at = np.stack([np.roll(np.arange(S), 3)] * B), np.ones((B, S), int)
  k_at[1][1, k_at[0][1] > 4] = 0
  out = run(qkv, q_at, k_at, window=window)
  np.testing.assert_allclose(out, reference(qkv, q_at, k_at, window), rtol=1e-4, atol=1e-5)


def test_scores_of_bfloat16_are_float32():
  """Products of 256 to 263: of them bfloat16 has only the even ones."""
  q, k = np.full((1, 5, 1, 64), 2.0), np.full((1, 5, 1, 64), 2.0)
  k[0, :, 0, 0] += [0, 0.5, 1.5, 2.5, 3.5]
  v = np.eye(5, 64)[None, :, None]  # so that the output is the weights
  at = packed(1, 5, [[5]])
  out = run([jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)], at, at)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(np.float32), reference((q, k, v), at, at, 0), rtol=2**-7)


def output_and_gradients(backend, qkv, at, window, block=128):
  """(out, d q, d k, d v) of a weighted sum of the real tokens' outputs."""
  weights = np.random.default_rng(9).standard_normal(qkv[0].shape).astype(np.float32)
  real_BT11 = (at[1] != 0)[:, :, None, None]

  @jax.jit
  def both(*qkv):
    out, pull = jax.vjp(lambda *x: run(x, at, at, window=window, backend=backend, block=block), *qkv)
    return out * real_BT11, *pull(weights * real_BT11)

  return both(*qkv)


def assert_close(found, expected):
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5 * float(jnp.abs(y).max()) + 1e-5)


@pytest.mark.parametrize(
  'T, block, K, H, window',
  [(256, 128, 2, 64, 0), (256, 128, 4, 64, 70), (128, 512, 1, 40, 0)],
  ids=['grouped', 'window', 'one_kv_head_short_row'],
)
def test_splash_equals_xla(T, block, K, H, window):
  """The TPU kernel, interpreted: two documents with padding, blocks that a document's edge cuts."""
  B, N = 2, 4
  qkv, at = draw(B, T, T, N, K, H), packed(B, T, [[T // 2 + 9, T // 4], [T]])
  found = output_and_gradients('splash_interpret', qkv, at, window, block)
  assert_close(found, output_and_gradients('xla', qkv, at, window))


@pytest.mark.parametrize('backend', ['xla', 'splash_interpret'])
def test_a_mesh_gives_the_same(backend):
  B, T, N, K, H = 4, 128, 6, 2, 40
  qkv, at = draw(B, T, T, N, K, H), packed(B, T, [[70, 40], [128], [], [30, 30, 60]])
  alone = output_and_gradients('xla', qkv, at, 50)
  with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2), jax.devices())):
    found = output_and_gradients(backend, qkv, at, 50)
  assert_close(found, alone)


@pytest.mark.parametrize('backend', ['splash', 'splash_interpret', 'cudnn'])
def test_row_backends_refuse_a_cache(backend):
  at = packed(1, 3, [[3]])
  k_at = packed(1, 8, [[8]])
  with pytest.raises(
    UserError, match=rf'{backend.split("_")[0]} takes as many keys as queries, got 8 keys for 3'
  ):
    run(draw(1, 3, 8, 4, 2, 8), at, k_at, backend=backend)


def test_an_unknown_backend_names_the_nearest():
  at = packed(1, 3, [[3]])
  with pytest.raises(UserError, match=r"compute.attention='cudn' is not known. Did you mean 'cudnn'"):
    run(draw(1, 3, 3, 4, 2, 8), at, at, backend='cudn')


FITS = {'dtype': 'bfloat16', 'seq_len': 1024, 'head_dim': 128, 'splash_block': 512}


@pytest.mark.parametrize('platform, backend', BACKEND_OF_PLATFORM.items())
def test_each_platform_has_a_backend_that_serves(platform, backend):
  check_backend(backend, platform=platform, **FITS)


@pytest.mark.parametrize(
  'backend, platform, change, reason',
  [
    ('splash', 'cpu', {}, 'runs on TPU, this is cpu'),
    ('splash', 'gpu', {}, 'runs on TPU, this is gpu'),
    ('splash', 'tpu', {'seq_len': 1000}, 'divide data.seq_len=1000'),
    ('splash', 'tpu', {'splash_block': 192}, 'compute.splash_block=192'),
    ('splash', 'tpu', {'seq_len': 100}, 'multiple of 128'),
    ('cudnn', 'tpu', {}, 'runs on GPU, this is tpu'),
    ('cudnn', 'gpu', {'dtype': 'float32'}, 'compute_dtype=bfloat16, this is float32'),
    ('cudnn', 'gpu', {'head_dim': 100}, 'multiple of 8 up to 256, this is 100'),
    ('cudnn', 'gpu', {'head_dim': 264}, 'multiple of 8 up to 256, this is 264'),
  ],
)
def test_a_backend_that_cannot_serve_says_why(backend, platform, change, reason):
  with pytest.raises(UserError, match=reason) as error:
    check_backend(backend, platform=platform, **(FITS | change))
  assert f'compute.attention={backend}: ' in str(error.value)
  check_backend('xla', platform=platform, **(FITS | change))


def test_every_reason_is_told_at_once():
  with pytest.raises(UserError, match=r'GPU.*bfloat16.*head_dim'):
    check_backend('cudnn', platform='cpu', dtype='float32', seq_len=64, head_dim=12, splash_block=512)


def test_a_short_row_is_one_block():
  check_backend('splash', platform='tpu', **(FITS | {'seq_len': 128}))
