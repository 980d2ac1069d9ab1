"""The whole decoder: who sees whom by gradient, layouts of computing that change nothing, rules, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.model.llama import (
  REMAT_POLICIES,
  Output,
  dim_sizes,
  init_params,
  logits,
  num_params,
  param_dims,
  settle,
)
from llamax.parallel.rules import path_of

T = 11
ROW = np.arange(T, dtype=np.int32)[None]
ONE = np.ones((1, T), np.int32)
PACKED_SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0]], np.int32)
PACKED_POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1]], np.int32)


def dependence(model, params, positions, segments):
  """[t, s]: whether the state at t moves with the token at s. Each token is its own row of the table."""

  @jax.jit
  def jacobian(table):
    def states(table):
      out = model.apply({'params': params | {'embed': {'table': table}}}, ROW, positions, segments)
      return out.hidden_BTD[0] @ jnp.arange(1.0, out.hidden_BTD.shape[-1] + 1)

    return jax.jacrev(states)(table)

  return np.abs(np.asarray(jacobian(params['embed']['table'])))[:, :T].max(-1) > 0


def expected_dependence(segments, reach):
  t, s = np.mgrid[:T, :T]
  return (s <= t) & (t - s < reach) & (segments[0, t] == segments[0, s])


def test_no_state_moves_with_a_later_token(make_llama, loud_params):
  model = make_llama()
  found = dependence(model, loud_params(model), ROW, ONE)
  np.testing.assert_array_equal(found, expected_dependence(ONE, T))


def test_no_state_moves_with_another_document(make_llama, loud_params):
  model = make_llama()
  found = dependence(model, loud_params(model), PACKED_POSITIONS, PACKED_SEGMENTS)
  np.testing.assert_array_equal(found, expected_dependence(PACKED_SEGMENTS, T))


@pytest.mark.parametrize('num_layers, reach', [(1, 4), (3, 10)])
def test_a_window_of_four_reaches_three_back_per_layer(make_llama, loud_params, num_layers, reach):
  model = make_llama(**{'model.sliding_window': 4, 'model.num_layers': num_layers})
  params = loud_params(model)
  np.testing.assert_array_equal(dependence(model, params, ROW, ONE), expected_dependence(ONE, reach))
  found = dependence(model, params, PACKED_POSITIONS, PACKED_SEGMENTS)
  np.testing.assert_array_equal(found, expected_dependence(PACKED_SEGMENTS, reach))


def test_a_packed_row_equals_its_documents_alone(make_llama, loud_params):
  model = make_llama()
  params = loud_params(model)
  tokens = np.random.default_rng(0).integers(61, size=(1, T), dtype=np.int32)
  apply = jax.jit(lambda *batch: model.apply({'params': params}, *batch).hidden_BTD)
  packed = apply(tokens, PACKED_POSITIONS, PACKED_SEGMENTS)
  for segment in (1, 2, 3):
    at = PACKED_SEGMENTS[0] == segment
    n = at.sum()
    alone = apply(tokens[:, at], np.arange(n, dtype=np.int32)[None], np.ones((1, n), np.int32))
    np.testing.assert_allclose(packed[:, at], alone, rtol=1e-4, atol=1e-4)


def value_and_gradients(model):
  """(params, dropout key) -> (a scalar of the logits, its gradient)."""
  tokens = np.random.default_rng(0).integers(61, size=(2, T), dtype=np.int32)
  positions, segments = np.tile(PACKED_POSITIONS, (2, 1)), np.tile(PACKED_SEGMENTS, (2, 1))

  def run(params, key):
    out = model.apply({'params': params}, tokens, positions, segments, rngs={'dropout': key})
    return jnp.sin(out.hidden_BTD @ out.head_DV[None]).sum()

  return jax.jit(jax.value_and_grad(run))


KEY = jax.random.key(0)


def assert_same(a, b, rtol):
  """Relative to each array's largest entry."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * float(jnp.abs(y).max()))


def test_remat_and_unrolling_change_no_gradient(make_llama, loud_params):
  plain = make_llama()
  params = loud_params(plain)
  expected = value_and_gradients(plain)(params, KEY)
  for remat, scan_layers in [*((name, True) for name in REMAT_POLICIES), ('qkv', False)]:
    model = make_llama(**{'compute.remat': remat, 'compute.scan_layers': scan_layers})
    assert_same(value_and_gradients(model)(params, KEY), expected, rtol=1e-4)


def residual_bytes(model):
  """Of what the forward pass keeps for the backward pass, beside parameters."""
  params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

  def states(params):
    return model.apply({'params': params}, ROW, ROW, ONE).hidden_BTD

  kept = jax.eval_shape(lambda p: jax.vjp(states, p)[1], params)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def test_remat_policies_keep_less_and_less(make_llama):
  kept = {remat: residual_bytes(make_llama(**{'compute.remat': remat})) for remat in ('none', *REMAT_POLICIES)}
  assert kept['none'] > kept['dots'] > kept['full']
  assert kept['none'] > kept['qkv'] > kept['full']


@pytest.mark.parametrize('scan_layers', [True, False])
def test_unrolled_layers_have_no_loop(make_llama, scan_layers):
  model = make_llama(**{'compute.scan_layers': scan_layers})
  params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  lowered = jax.jit(lambda p: model.apply({'params': p}, ROW, ROW, ONE).hidden_BTD).lower(params)
  assert ('while' in lowered.as_text()) == scan_layers


OPTIONS = {
  'plain': {},
  'tied': {'model.tie_embeddings': True},
  'every_bias': {'model.qkv_bias': True, 'model.out_bias': True, 'model.mlp_bias': True},
  'qk_norm': {'model.qk_norm': True},
  'layernorm': {'model.norm': 'layernorm', 'model.qk_norm': True},
  'no_position': {'model.position': 'none'},
  'unrolled': {'compute.scan_layers': False},
}


@pytest.mark.parametrize('option', OPTIONS)
def test_every_parameter_has_the_dims_of_its_rule(make_llama, option):
  model = make_llama(**OPTIONS[option])
  shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  found = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
  sizes = dim_sizes(model.cfg)
  assert found == {path: (*(sizes[x] for x in letters),) for path, letters in param_dims(model.cfg).items()}
  assert num_params(model) == sum(np.prod(shape) for shape in found.values())


def test_num_params_by_hand(make_llama):
  # embed, head; per layer q o, k v, gate up down, two norms; the last norm
  count = 2 * 61 * 24 + 3 * (2 * 24 * 60 + 2 * 24 * 20 + 3 * 24 * 44 + 2 * 24) + 24
  assert num_params(make_llama()) == count
  assert num_params(make_llama(**{'model.tie_embeddings': True})) == count - 61 * 24


def test_a_tied_head_is_the_table(make_llama, loud_params):
  model = make_llama(**{'model.tie_embeddings': True})
  params = loud_params(model)
  assert 'lm_head' not in params
  head_DV = jax.jit(lambda p: model.apply({'params': p}, ROW, ROW, ONE).head_DV)(params)
  np.testing.assert_array_equal(head_DV, params['embed']['table'].T)


@pytest.mark.parametrize('backend', ['cudnn', 'splash'])
def test_parameters_do_not_wait_for_a_backend(make_llama, backend):
  """They can be made, counted where the backend cannot run, on a row shorter than its blocks."""
  assert num_params(make_llama(**{'compute.attention': backend})) == num_params(make_llama())


def test_layers_start_different(make_llama):
  init = jax.jit(lambda: init_params(make_llama(), jax.random.key(0)))
  w_up_LDF = init()['layers']['mlp']['w_up']
  assert len({float(w) for w in w_up_LDF[:, 0, 0]}) == 3


def test_bfloat16_compute_keeps_float32_parameters(make_llama, loud_params):
  model = make_llama(**{'compute.compute_dtype': 'bfloat16'})
  params = loud_params(model)
  assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype('float32')}

  def states(model):
    return jax.jit(lambda p: model.apply({'params': p}, ROW, ROW, ONE)[:2])(params)

  hidden_BTD, head_DV = states(model)
  assert (hidden_BTD.dtype, head_DV.dtype) == (jnp.bfloat16, jnp.bfloat16)
  exact_BTD, _ = states(make_llama())
  np.testing.assert_allclose(hidden_BTD.astype(np.float32), exact_BTD, atol=0.1)


def test_dropout_follows_its_key(make_llama, loud_params):
  none, full = (
    make_llama(dropout_on=True, **{'model.dropout': 0.5, 'compute.remat': remat}) for remat in ('none', 'full')
  )
  params = loud_params(none)
  run = value_and_gradients(none)
  first, other = run(params, KEY), run(params, jax.random.key(1))
  assert first[0] != other[0]
  # Computed again for the backward pass, the same entries are dropped.
  assert_same(value_and_gradients(full)(params, KEY), first, rtol=1e-4)


def test_dropout_is_off_unless_asked_for(make_llama, loud_params):
  model = make_llama(**{'model.dropout': 0.5})
  params = loud_params(model)
  states = [
    jax.jit(lambda p, m=m: m.apply({'params': p}, ROW, ROW, ONE).hidden_BTD)(params)
    for m in (model, make_llama())
  ]
  np.testing.assert_array_equal(*states)


def test_dropout_of_all_leaves_the_embedding(make_llama, loud_params):
  """Both branches of a block pass through it: with all dropped the layers add nothing."""
  model = make_llama(dropout_on=True, **{'model.dropout': 0.999999})
  params = loud_params(model)
  apply = jax.jit(lambda p: model.apply({'params': p}, ROW, ROW, ONE, rngs={'dropout': KEY}).hidden_BTD)
  x = params['embed']['table'][ROW]
  expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params['final_norm']['scale']
  np.testing.assert_allclose(apply(params), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'platform, dtype, backend',
  [('cpu', 'float32', 'xla'), ('gpu', 'bfloat16', 'cudnn'), ('tpu', 'bfloat16', 'splash')],
)
def test_settle_decides_each_auto_by_the_platform(tiny_config, platform, dtype, backend):
  compute = tiny_config(**{'compute.compute_dtype': 'auto', 'compute.attention': 'auto'}).compute
  found = settle(compute, platform)
  assert (found.compute_dtype, found.attention) == (dtype, backend)
  said = tiny_config(**{'compute.compute_dtype': 'bfloat16', 'compute.attention': 'xla'}).compute
  assert settle(said, platform) == said


def test_logits_are_the_product_in_float32():
  rng = np.random.default_rng(0)
  hidden_BTD, head_DV = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in ((2, 3, 24), (24, 61)))
  found = logits(Output(hidden_BTD, head_DV, None))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(
    found, np.asarray(hidden_BTD, np.float64) @ np.asarray(head_DV, np.float64), atol=1e-4
  )
