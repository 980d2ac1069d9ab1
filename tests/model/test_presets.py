"""The preset table: complete, published parameter counts from shapes, from arithmetic, from transformers."""

import dataclasses
import subprocess
import sys
import typing

import pytest

from llamax.core.config import ComputeConfig, ModelConfig
from llamax.core.errors import UserError
from llamax.model.llama import Llama, num_params
from llamax.model.parts import known_parts
from llamax.model.presets import NUM_PARAMS, PRESETS, fill

# The totals that the model hubs show (Qwen 3's small sizes there count the shared table twice).
PUBLISHED = {
  'llama_7b': 6_738_415_616,
  'llama_13b': 13_015_864_320,
  'llama_65b': 65_285_660_672,
  'llama2_7b': 6_738_415_616,
  'llama2_70b': 68_976_648_192,
  'codellama_34b': 33_743_970_304,
  'llama3_8b': 8_030_261_248,
  'llama3_70b': 70_553_706_496,
  'llama31_405b': 405_853_388_800,
  'llama32_1b': 1_235_814_400,
  'llama32_3b': 3_212_749_824,
  'tinyllama_1b': 1_100_048_384,
  'mistral_7b': 7_241_732_096,
  'mistral_7b_v03': 7_248_023_552,
  'qwen25_0_5b': 494_032_768,
  'qwen25_1_5b': 1_543_714_304,
  'qwen25_3b': 3_085_938_688,
  'qwen25_7b': 7_615_616_512,
  'qwen25_14b': 14_770_033_664,
  'qwen25_32b': 32_763_876_352,
  'qwen25_72b': 72_706_203_648,
  'qwen3_0_6b': 751_632_384 - 151_936 * 1024,
  'qwen3_8b': 8_190_735_360,
}
OWN = {'15m': 15e6, '60m': 60e6, '125m': 125e6, '350m': 350e6, '1b': 1e9}
COMPUTE = ComputeConfig('float32', 'float32', 'xla', 512, 'none', True, 1, None)


def preset(name):
  return ModelConfig(preset=name, **PRESETS[name])


def by_arithmetic(m):
  attention = 2 * m.d_model * m.head_dim * (m.num_heads + m.num_kv_heads)
  if m.qkv_bias:
    attention += m.head_dim * (m.num_heads + 2 * m.num_kv_heads)
  if m.qk_norm:
    attention += 2 * m.head_dim
  layer = attention + 3 * m.d_model * m.d_ff + 2 * m.d_model
  tables = 1 if m.tie_embeddings else 2
  return tables * m.vocab_size * m.d_model + m.num_layers * layer + m.d_model


@pytest.mark.parametrize('name', PRESETS)
def test_preset_sets_every_field_to_a_value_of_its_type(name):
  model = preset(name)  # An unknown or missing field is a TypeError.
  for field in dataclasses.fields(ModelConfig):
    kinds = typing.get_args(field.type) or (field.type,)
    assert type(getattr(model, field.name)) in kinds, field.name
  for kind in ('attention', 'mlp', 'norm', 'position'):
    assert getattr(model, kind) in known_parts(kind)


@pytest.mark.parametrize('name', PRESETS)
def test_num_params_is_that_of_the_model_built(name):
  model = preset(name)
  assert NUM_PARAMS[name] == by_arithmetic(model)
  assert NUM_PARAMS[name] == num_params(Llama(model, COMPUTE))


@pytest.mark.parametrize(('name', 'count'), PUBLISHED.items())
def test_num_params_is_the_published_one(name, count):
  assert NUM_PARAMS[name] == count


@pytest.mark.parametrize(('name', 'said'), OWN.items())
def test_our_sizes_have_about_the_parameters_of_their_name(name, said):
  assert 0.95 < NUM_PARAMS[f'llamax_{name}'] / said < 1.05


@pytest.mark.parametrize(
  ('name', 'kind'),
  [
    ('llama2_70b', 'Llama'),
    ('llama32_1b', 'Llama'),
    ('mistral_7b', 'Mistral'),
    ('qwen25_0_5b', 'Qwen2'),
    ('qwen25_14b', 'Qwen2'),
    ('qwen3_0_6b', 'Qwen3'),
    ('qwen3_32b', 'Qwen3'),
  ],
)
def test_num_params_is_that_of_transformers(name, kind):
  torch = pytest.importorskip('torch', reason='needs the parity extra: torch, transformers')
  transformers = pytest.importorskip('transformers', reason='needs the parity extra: torch, transformers')
  m = preset(name)
  config = getattr(transformers, f'{kind}Config')(
    vocab_size=m.vocab_size,
    hidden_size=m.d_model,
    intermediate_size=m.d_ff,
    num_hidden_layers=m.num_layers,
    num_attention_heads=m.num_heads,
    num_key_value_heads=m.num_kv_heads,
    head_dim=m.head_dim,
    tie_word_embeddings=m.tie_embeddings,
  )
  with torch.device('meta'):
    model = getattr(transformers, f'{kind}ForCausalLM')(config)
  model.tie_weights()
  assert NUM_PARAMS[name] == sum(p.numel() for p in model.parameters())


def test_what_tells_the_families_apart():
  """Numbers that no parameter count shows."""
  assert [PRESETS[f'llama_{size}']['norm_eps'] for size in ('7b', '13b', '33b', '65b')] == [1e-6] * 3 + [1e-5]
  thetas = {'llama2_7b': 1e4, 'codellama_34b': 1e6, 'llama3_8b': 5e5, 'mistral_7b': 1e4, 'qwen25_7b': 1e6}
  assert {name: PRESETS[name]['rope_theta'] for name in thetas} == thetas
  assert (PRESETS['mistral_7b']['sliding_window'], PRESETS['mistral_7b_v03']['sliding_window']) == (4096, 0)
  scaling = {k: v for k, v in PRESETS['llama32_3b'].items() if k.startswith('rope_') and 'beta' not in k}
  assert scaling == {
    'rope_theta': 5e5,
    'rope_scaling': 'llama3',
    'rope_factor': 32.0,
    'rope_original_max_len': 8192,
    'rope_low_freq_factor': 1.0,
    'rope_high_freq_factor': 4.0,
  }
  assert PRESETS['llama31_8b'] == PRESETS['llama32_3b'] | {
    key: PRESETS['llama3_8b'][key] for key in ('d_model', 'num_layers', 'num_heads', 'd_ff', 'tie_embeddings')
  } | {'rope_factor': 8.0, 'head_dim': 128}
  assert [PRESETS[f'qwen25_{size}']['norm_eps'] for size in ('3b', '7b', '14b')] == [1e-6, 1e-6, 1e-5]
  # A context extension starts from what the model was trained for.
  assert PRESETS['qwen3_8b']['rope_original_max_len'] == 32_768


def test_fill_replaces_none_alone():
  section = {'preset': 'llamax_15m', 'd_model': None, 'num_layers': 3, 'dropout': 0.0, 'tie_embeddings': False}
  assert fill(section) == section | {'d_model': 288}
  assert section['d_model'] is None  # The input stays.


def test_unknown_preset_names_the_nearest():
  with pytest.raises(UserError, match=r"preset='llama_8b' is not known\. Did you mean .*'llama31_8b'.*\?"):
    fill({'preset': 'llama_8b'})
  for section in ({}, {'preset': None}, {'preset': 7}):
    with pytest.raises(UserError, match='want the name of a preset'):
      fill(section)


def test_presets_need_no_jax():
  code = 'import sys, llamax.model.presets; sys.exit(bool({"jax", "flax", "numpy"} & set(sys.modules)))'
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
