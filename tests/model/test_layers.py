"""Norms against float64; the spread of initial weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.model.layers import LayerNorm, RMSNorm, weight_init


def rms_reference(x, params, eps):
  x = x.astype(np.float64)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * params['scale']


def layer_reference(x, params, eps):
  x = x.astype(np.float64)
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * params['scale'] + params[
    'bias'
  ]


REFERENCES = [(RMSNorm, rms_reference), (LayerNorm, layer_reference)]


@pytest.mark.parametrize('norm, reference', REFERENCES)
def test_norm_equals_float64(norm, reference):
  rng = np.random.default_rng(0)
  x = (3 + 2 * rng.standard_normal((2, 3, 7))).astype(np.float32)
  params = {name: rng.standard_normal(7).astype(np.float32) for name in norm.dims('D')}
  # An eps this large would show if it were forgotten.
  y = norm(0.5, 'float32').apply({'params': params}, x)
  np.testing.assert_allclose(y, reference(x, params, 0.5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('norm, reference', REFERENCES)
def test_norm_of_bfloat16_is_summed_in_float32(norm, reference):
  rng = np.random.default_rng(0)
  x = jnp.asarray(5 + rng.standard_normal((1, 1, 4096)), jnp.bfloat16)
  params = {name: np.ones(4096, np.float32) if name == 'scale' else np.zeros(4096) for name in norm.dims('D')}
  y = norm(1e-6, 'float32').apply({'params': params}, x)
  assert y.dtype == jnp.bfloat16
  # Half a unit in the last place of bfloat16, nothing on top of it.
  np.testing.assert_allclose(
    y.astype(np.float32), reference(np.asarray(x), params, 1e-6), rtol=2**-8, atol=1e-3
  )


@pytest.mark.parametrize('norm', [RMSNorm, LayerNorm])
def test_norm_parameters_are_those_named(norm):
  params = norm(1e-6, 'bfloat16').init(jax.random.key(0), jnp.ones((2, 5, 7)))['params']
  assert {name: (p.shape, p.dtype) for name, p in params.items()} == {
    name: ((7,), jnp.bfloat16) for name in norm.dims('D')
  }
  assert (params['scale'] == 1).all()


SHAPE, FAN_IN = (300, 4, 50), 300


@pytest.mark.parametrize(
  'init, residual, std',
  [
    ('normal', False, 0.05),
    ('normal', True, 0.05),
    ('depth_scaled', False, 0.05),
    ('depth_scaled', True, 0.05 / 6**0.5),  # 3 layers, each writes twice
    ('fan_in', False, 300**-0.5),
    ('fan_in', True, 300**-0.5),
  ],
)
def test_weight_init_has_the_std_of_its_mode(tiny_config, init, residual, std):
  cfg = tiny_config(**{'model.init': init, 'model.init_std': 0.05, 'model.num_layers': 3}).model
  w = weight_init(cfg, FAN_IN, residual=residual)(jax.random.key(0), SHAPE, jnp.float32)
  assert abs(float(w.mean())) < 0.02 * std
  np.testing.assert_allclose(float(w.std()), std, rtol=0.02)
  if init == 'fan_in':
    assert float(jnp.abs(w).max()) < 2 * std / 0.8796  # cut at two sigmas


def test_weight_init_differs_by_key_only(tiny_config):
  cfg = dataclasses.replace(tiny_config().model, init='normal')
  draw = weight_init(cfg, FAN_IN, residual=False)
  first, again, other = (draw(jax.random.key(k), (3, 4), jnp.float32) for k in (0, 0, 1))
  assert (first == again).all()
  assert (first != other).any()
