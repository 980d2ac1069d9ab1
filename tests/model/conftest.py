"""A model whose every dimension has another size."""

import jax
import numpy as np
import pytest

from llamax.model.llama import Llama, init_params

SIZES = {
  'model.vocab_size': 61,
  'model.d_model': 24,
  'model.num_layers': 3,
  'model.num_heads': 6,
  'model.num_kv_heads': 2,
  'model.head_dim': 10,
  'model.d_ff': 44,
  'model.tie_embeddings': False,
  'compute.compute_dtype': 'float32',
  'compute.attention': 'xla',
}


@pytest.fixture
def make_llama(tiny_config):
  """(dropout_on, **{'section.key': value}) -> Llama."""

  def make(dropout_on=False, **changes):
    cfg = tiny_config(**(SIZES | changes))
    return Llama(cfg.model, cfg.compute, dropout_on)

  return make


@pytest.fixture
def loud_params():
  """model -> parameters of its shapes, large enough that every one of them matters."""

  def make(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes)

  return make
