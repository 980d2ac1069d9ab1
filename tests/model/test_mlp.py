"""The gated feed-forward layer against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.model.mlp import SwiGlu


@pytest.mark.parametrize('bias', [False, True])
def test_swiglu_equals_float64(make_llama, bias):
  model = make_llama(**{'model.mlp_bias': bias})
  mlp = SwiGlu(model.cfg, model.compute)
  rng = np.random.default_rng(0)
  sizes = {'D': 24, 'F': 44}
  params = {
    name: rng.standard_normal([sizes[x] for x in letters]).astype(np.float32) * 0.3
    for name, letters in SwiGlu.dims(model.cfg).items()
  }
  assert len(params) == (6 if bias else 3)
  x = rng.standard_normal((2, 5, 24)).astype(np.float32)

  p = {name: w.astype(np.float64) for name, w in params.items()}
  b = {name: p.get(f'b_{name}', 0) for name in ('gate', 'up', 'down')}
  gate, up = x @ p['w_gate'] + b['gate'], x @ p['w_up'] + b['up']
  expected = (gate / (1 + np.exp(-gate)) * up) @ p['w_down'] + b['down']
  np.testing.assert_allclose(mlp.apply({'params': params}, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('bias', [False, True])
def test_swiglu_has_the_parameters_of_its_dims(make_llama, bias):
  model = make_llama(**{'model.mlp_bias': bias, 'compute.param_dtype': 'bfloat16'})
  x = jnp.ones((1, 2, 24), jnp.float32)
  params = jax.eval_shape(SwiGlu(model.cfg, model.compute).init, jax.random.key(0), x)['params']
  sizes = {'D': 24, 'F': 44}
  expected = {k: (*(sizes[x] for x in letters),) for k, letters in SwiGlu.dims(model.cfg).items()}
  assert {name: p.shape for name, p in params.items()} == expected
  assert {p.dtype for p in params.values()} == {jnp.dtype('bfloat16')}


def test_only_the_way_down_writes_to_the_residual_stream(make_llama):
  model = make_llama(**{'model.init': 'depth_scaled', 'model.init_std': 0.1, 'model.d_ff': 2000})
  params = jax.jit(SwiGlu(model.cfg, model.compute).init)(jax.random.key(0), jnp.ones((1, 2, 24)))['params']
  stds = {name: float(w.std()) for name, w in params.items()}
  expected = {'w_gate': 0.1, 'w_up': 0.1, 'w_down': 0.1 / 6**0.5}
  assert stds == pytest.approx(expected, rel=0.03)
