"""muP: the factors by hand, the first weights, nothing changed at the base width; the coordinate check."""

import functools
import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.model import mup
from llamax.model.llama import init_params, param_dims

UNTIED = {'model.tie_embeddings': False}


@pytest.mark.parametrize(
  ('letters', 'role'),
  [
    *[('VD', 'input'), ('D', 'input'), ('LD', 'input'), ('LNH', 'input'), ('LKH', 'input'), ('LF', 'input')],
    *[('LH', 'input'), ('DV', 'output'), ('DE', 'output')],
    *[('LDNH', 'hidden'), ('LDKH', 'hidden'), ('LNHD', 'hidden'), ('LDF', 'hidden'), ('LFD', 'hidden')],
    ('LEDF', 'hidden'),
  ],
)
def test_the_role_of_a_parameter_by_its_letters(letters, role):
  assert mup.role(letters) == role


@pytest.mark.parametrize(
  ('init', 'hidden', 'output'), [('normal', 0.5, 0.25), ('depth_scaled', 0.5, 0.25), ('fan_in', 1.0, 0.5)]
)
def test_factors_by_hand_for_four_times_the_width(tiny_config, init, hidden, output):
  cfg = tiny_config(
    **UNTIED,
    **{'model.init': init, 'model.mup_base_width': 8, 'model.num_heads': 8, 'model.num_kv_heads': 4},
    **{'model.qkv_bias': True, 'model.qk_norm': True},
  ).model
  expected = {'embed/table': (1, 1), 'final_norm/scale': (1, 1), 'lm_head/kernel': (output, 0.25)}
  for name in ('attn/wq', 'attn/wk', 'attn/wv', 'attn/wo', 'mlp/w_gate', 'mlp/w_up', 'mlp/w_down'):
    expected[f'layers/{name}'] = (hidden, 0.25)
  for name in ('attn/bq', 'attn/bk', 'attn/bv', 'attn/q_norm/scale', 'attn/k_norm/scale'):
    expected[f'layers/{name}'] = (1, 1)
  for name in ('attn_norm/scale', 'mlp_norm/scale'):
    expected[f'layers/{name}'] = (1, 1)
  dims = param_dims(cfg)
  rates = mup.lr_factors(cfg, dims)
  assert {path: (mup.init_factor(cfg, dims[path]), rates[path]) for path in dims} == expected


def test_the_first_weights_are_the_standard_ones_times_their_factor(make_llama):
  changes = {'model.init': 'normal', 'model.d_model': 32, 'model.mup_base_width': 16}
  key, model = jax.random.key(0), make_llama(**changes)
  scaled, plain = (
    jax.jit(functools.partial(init_params, each))(key)
    for each in (model, make_llama(**changes | {'model.mup_base_width': None}))
  )
  for path, factor in {'wq': 0.5**0.5, 'wo': 0.5**0.5}.items():
    w, w0 = (params['layers']['attn'][path] for params in (scaled, plain))
    np.testing.assert_allclose(w, w0 * factor, rtol=1e-6)
  np.testing.assert_allclose(scaled['lm_head']['kernel'], plain['lm_head']['kernel'] / 2, rtol=1e-6)
  assert (scaled['embed']['table'] == plain['embed']['table']).all()
  assert (scaled['final_norm']['scale'] == 1).all()


def test_the_parametrisation_is_told(tiny_config):
  cfg = tiny_config(**UNTIED, **{'model.mup_base_width': 16}).model
  assert mup.describe(cfg) == (
    '2 times as wide as the base model (16, 2 heads over 1, d_ff 40); optim.learning_rate is of that one'
  )


@pytest.mark.parametrize(
  ('changes', 'told'),
  [
    ({'model.mup_base_width': 16}, 'want model.tie_embeddings=False'),
    ({**UNTIED, 'model.mup_base_width': 8}, '1 heads over 0.5 key/value heads.*nearest: 16'),
    ({**UNTIED, 'model.mup_base_width': 24}, '3 heads over 1.5 key/value heads.*nearest: 16 or 32'),
    ({**UNTIED, 'model.mup_base_width': 0}, 'at least 1'),
  ],
)
def test_what_cannot_be_scaled_is_refused(tiny_config, changes, told):
  with pytest.raises(UserError, match=f'model.mup_base_width.*{told}'):
    tiny_config(**changes)


@pytest.fixture(scope='module')
def coordinates():
  """The benchmark, whose functions are the check."""
  path = Path(__file__).parents[2] / 'benchmarks/coordinate_check.py'
  spec = importlib.util.spec_from_file_location('coordinate_check', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


def test_coordinate_check(coordinates):
  """Of 8 times the width, over the base width, where both are one."""

  def moved(width, base):
    return coordinates.moved(coordinates.config(width, 'normal', base, num_layers=1, rate=2e-3), steps=3)

  base, standard, scaled = moved(32, None), moved(256, None), moved(256, 32)
  for name in ('embedding', 'layer 1'):
    assert 0.9 < scaled[name] / base[name] < 1.1
  # The head's first weights count less and less beside its updates: towards a constant, from above.
  assert 0.3 < scaled['logits'] / base['logits'] < 1
  assert standard['layer 1'] / base['layer 1'] > 4
  assert standard['logits'] / base['logits'] > 4
