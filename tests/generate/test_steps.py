"""The cache's places, one by one."""

import jax.numpy as jnp
import numpy as np

from llamax.generate.steps import KVCache


def test_each_row_writes_at_its_own_position():
  B, S, K, H = 2, 5, 3, 4
  cache = KVCache(jnp.zeros((B, S, K, H)), jnp.zeros((B, S, K, H)))
  k_BTKH = jnp.broadcast_to(jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None], (B, 2, K, H))
  positions_BT = jnp.asarray([[0, 1], [3, 4]])
  k_BSKH, v_BSKH, positions_BS, segments_BS, grown = cache.extend(k_BTKH, -k_BTKH, positions_BT)
  np.testing.assert_array_equal(k_BSKH[:, :, 0, 0], [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]])
  np.testing.assert_array_equal(v_BSKH, -k_BSKH)
  np.testing.assert_array_equal(positions_BS, [[0, 1, 2, 3, 4]] * 2)
  np.testing.assert_array_equal(segments_BS, np.ones((B, S)))
  np.testing.assert_array_equal(grown.k, k_BSKH)

  k_BSKH, *_ = grown.extend(9 * k_BTKH[:, :1], k_BTKH[:, :1], jnp.asarray([[2], [3]]))
  np.testing.assert_array_equal(k_BSKH[:, :, 2, 3], [[1, 2, 9, 0, 0], [0, 0, 0, 27, 4]])


def test_keys_are_stored_in_the_dtype_of_the_cache():
  cache = KVCache(*(jnp.zeros((1, 2, 1, 2), jnp.bfloat16) for _ in 'kv'))
  new = jnp.ones((1, 1, 1, 2), jnp.float32)
  assert cache.extend(new, new, jnp.asarray([[1]]))[4].k.dtype == jnp.bfloat16
