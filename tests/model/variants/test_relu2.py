"""The squared ReLU layer against float64, alone, then inside a model on a mesh."""

import jax
import numpy as np
import pytest

from llamax.core.config import MeshConfig
from llamax.core.types import Batch
from llamax.model.llama import Llama, init_params, param_dims
from llamax.model.parts import find_part
from llamax.model.variants.relu2 import SquaredRelu
from llamax.parallel.mesh import make_mesh
from llamax.parallel.rules import tree_shardings
from llamax.train.step import loss_sums

SIZES = {'D': 24, 'F': 44}


@pytest.fixture
def make_llama(tiny_config):
  def make(**changes):
    sizes = {'model.d_model': 24, 'model.d_ff': 44, 'model.mlp': 'relu2'}
    cfg = tiny_config(**(sizes | {'compute.compute_dtype': 'float32', 'compute.attention': 'xla'} | changes))
    return Llama(cfg.model, cfg.compute)

  return make


@pytest.mark.parametrize('bias', [False, True])
def test_relu2_equals_float64(make_llama, bias):
  model = make_llama(**{'model.mlp_bias': bias})
  rng = np.random.default_rng(0)
  params = {
    name: rng.standard_normal([SIZES[x] for x in letters]).astype(np.float32) * 0.3
    for name, letters in SquaredRelu.dims(model.cfg).items()
  }
  x = rng.standard_normal((2, 5, 24)).astype(np.float32)
  p = {name: w.astype(np.float64) for name, w in params.items()}
  up = x @ p['w_up'] + p.get('b_up', 0)
  expected = np.where(up > 0, up, 0) ** 2 @ p['w_down'] + p.get('b_down', 0)
  y = SquaredRelu(model.cfg, model.compute).apply({'params': params}, x)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('bias', [False, True])
def test_relu2_has_the_parameters_of_its_dims(make_llama, bias):
  model = make_llama(**{'model.mlp_bias': bias})
  layer, x = SquaredRelu(model.cfg, model.compute), np.ones((1, 2, 24), np.float32)
  params = jax.eval_shape(layer.init, jax.random.key(0), x)['params']
  expected = {name: (*(SIZES[x] for x in letters),) for name, letters in SquaredRelu.dims(model.cfg).items()}
  assert {name: p.shape for name, p in params.items()} == expected


def test_its_name_in_the_config_is_its_file(make_llama):
  assert find_part(make_llama().cfg, 'mlp') is SquaredRelu


def test_a_model_with_it_has_the_same_gradients_on_a_mesh(make_llama):
  model = make_llama()
  assert 'layers/mlp/w_gate' not in param_dims(model.cfg)
  params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
  tokens = np.random.default_rng(0).integers(512, size=(4, 9), dtype=np.int32)
  at = np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape)
  batch: Batch = {'tokens': tokens, 'targets': tokens, 'positions': at, 'segment_ids': np.ones_like(tokens)}

  def loss(params):
    return loss_sums(params, batch, None, model=model, z_loss=0.0).total

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
  with jax.set_mesh(mesh):
    sharded = jax.device_put(params, tree_shardings(params, mesh, param_dims(model.cfg)))
    mesh_value, mesh_grads = jax.jit(jax.value_and_grad(loss))(sharded)
  assert mesh_value == pytest.approx(float(value), rel=1e-5)
  for x, y in zip(jax.tree.leaves(mesh_grads), jax.tree.leaves(grads), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5 * float(np.abs(y).max()))
