"""params.json of Meta's releases is read as our presets, written so that Meta's rules give the same model."""

import dataclasses

import pytest

from llamax.convert.errors import FormatError
from llamax.convert.hf_config import same_function
from llamax.convert.json_file import Fields
from llamax.convert.meta_params import Found, hidden_dim, read_model, write_beside, write_params
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError
from llamax.model.presets import PRESETS

_LLAMA1 = {'multiple_of': 256, 'norm_eps': 1e-6, 'vocab_size': -1}
_LLAMA2 = {'multiple_of': 256, 'norm_eps': 1e-5, 'vocab_size': -1}
_LLAMA3 = {'vocab_size': 128_256, 'norm_eps': 1e-5, 'rope_theta': 500_000.0, 'n_kv_heads': 8}
_LLAMA31 = _LLAMA3 | {'use_scaled_rope': True}
_BIG = {'multiple_of': 4096, 'ffn_dim_multiplier': 1.3}


def sizes(dim, n_layers, n_heads):
  return {'dim': dim, 'n_layers': n_layers, 'n_heads': n_heads}


# What was released with the weights.
RELEASED = {
  'llama_7b': _LLAMA1 | sizes(4096, 32, 32),
  'llama_13b': _LLAMA1 | sizes(5120, 40, 40),
  'llama_33b': _LLAMA1 | sizes(6656, 60, 52),
  'llama_65b': _LLAMA1 | sizes(8192, 80, 64) | {'norm_eps': 1e-5},
  'llama2_7b': _LLAMA2 | sizes(4096, 32, 32),
  'llama2_13b': _LLAMA2 | sizes(5120, 40, 40),
  'llama2_70b': _LLAMA2 | sizes(8192, 80, 64) | _BIG | {'n_kv_heads': 8},
  'codellama_34b': _LLAMA2
  | sizes(8192, 48, 64)
  | {'n_kv_heads': 8, 'ffn_dim_multiplier': 1.0, 'rope_theta': 1000000},
  'llama3_8b': _LLAMA3 | sizes(4096, 32, 32) | {'multiple_of': 1024, 'ffn_dim_multiplier': 1.3},
  'llama3_70b': _LLAMA3 | sizes(8192, 80, 64) | _BIG,
  'llama31_8b': _LLAMA31 | sizes(4096, 32, 32) | {'multiple_of': 1024, 'ffn_dim_multiplier': 1.3},
  'llama31_70b': _LLAMA31 | sizes(8192, 80, 64) | _BIG,
  'llama31_405b': _LLAMA31 | sizes(16384, 126, 128) | {'multiple_of': 4096, 'ffn_dim_multiplier': 1.2},
  'llama32_1b': _LLAMA31 | sizes(2048, 16, 32) | {'multiple_of': 256, 'ffn_dim_multiplier': 1.5},
  'llama32_3b': _LLAMA31 | sizes(3072, 28, 24) | {'multiple_of': 256, 'ffn_dim_multiplier': 1.0},
  'mistral_7b': sizes(4096, 32, 32)
  | {'head_dim': 128, 'hidden_dim': 14336, 'n_kv_heads': 8, 'norm_eps': 1e-05, 'sliding_window': 4096}
  | {'vocab_size': 32000},
  'mistral_7b_v03': sizes(4096, 32, 32)
  | {'head_dim': 128, 'hidden_dim': 14336, 'n_kv_heads': 8, 'norm_eps': 1e-05, 'vocab_size': 32768}
  | {'rope_theta': 1000000.0},
}


def config(name):
  return ModelConfig(preset=name, **PRESETS[name])


def found(cfg, old=False):
  return Found(cfg.vocab_size, cfg.d_ff, cfg.tie_embeddings, old)


def read(params, found, beside=None):
  return read_model(Fields('params.json', params), beside and Fields('llamax.json', beside), found)


@pytest.mark.parametrize('name', RELEASED)
def test_released_models_are_our_presets(name):
  wanted = config(name)
  cfg, family, notes = read(RELEASED[name], found(wanted, old=name.startswith('llama_')))
  assert same_function(cfg, wanted) == []
  assert family == ('mistral' if 'mistral' in name else 'llama')
  assert len(notes) == 1 and str(wanted.max_seq_len) in notes[0]


@pytest.mark.parametrize('name', [name for name in PRESETS if not name.startswith('qwen')])
def test_what_is_written_is_read_again(name):
  cfg = config(name)
  family = 'mistral' if 'mistral' in name else 'llama'
  params, beside = write_params(cfg, family), write_beside(cfg)
  again, same_family, notes = read(params, found(cfg), beside)
  assert same_function(again, cfg) == [] and same_family == family and not notes


@pytest.mark.parametrize('name', [name for name in RELEASED if name.startswith('llama')])
def test_the_same_words_as_meta(name):
  """Apart from those that make no difference, or that older code does not know."""
  cfg = config(name)
  written = write_params(cfg, 'llama')
  known = {key: value for key, value in RELEASED[name].items() if value is True or value != 1.0} | {
    'vocab_size': cfg.vocab_size
  }
  assert written == known


@pytest.mark.parametrize('d_ff', [*range(1, 60), 100, 1000, 5632, 11_008, 14_335, 53_249])
@pytest.mark.parametrize('width', [2, 24, 4096])
def test_any_width_of_the_feed_forward_can_be_said(width, d_ff):
  cfg = dataclasses.replace(
    config('llama_7b'), d_model=width, num_heads=1, num_kv_heads=1, head_dim=width, d_ff=d_ff
  )
  params = write_params(cfg, 'llama')
  assert hidden_dim(width, params['multiple_of'], params.get('ffn_dim_multiplier')) == d_ff
  assert len(str(params.get('ffn_dim_multiplier', ''))) <= 8


UNSAYABLE = {
  'qk_norm': True,
  'qkv_bias': True,
  'out_bias': True,
  'mlp_bias': True,
  'sliding_window': 4096,
  'rope_scaling': 'yarn',
  'head_dim': 64,
  'mlp': 'moe',
}


@pytest.mark.parametrize('field', UNSAYABLE)
def test_what_meta_has_no_word_for(field):
  with pytest.raises(UserError, match=rf'model\.{field}={UNSAYABLE[field]}: '):
    write_params(dataclasses.replace(config('llama2_7b'), **{field: UNSAYABLE[field]}), 'llama')


@pytest.mark.parametrize('field', ['rope_factor', 'rope_low_freq_factor', 'rope_original_max_len'])
def test_a_scaling_that_meta_does_not_compute(field):
  with pytest.raises(UserError, match=rf'model\.{field}='):
    write_params(dataclasses.replace(config('llama31_8b'), **{field: 3}), 'llama')


def test_mistral_has_words_of_its_own():
  cfg = dataclasses.replace(config('mistral_7b'), head_dim=64)
  assert write_params(cfg, 'mistral')['head_dim'] == 64
  with pytest.raises(UserError, match=r'model\.sliding_window=4096'):
    write_params(cfg, 'llama')


WRONG = {
  'vocab_size': (31_999, 'has 32,000 rows'),
  'multiple_of': (4096, 'the tensors have 11,008'),
  'hidden_dim': (11_000, 'the tensors have 11,008'),
  'n_kv_heads': (5, 'does not divide'),
  'n_heads': (4096, 'rotary'),
  'dim': (0, 'whole number'),
  'n_layers': ('3', 'whole number'),
  'norm_eps': (float('nan'), 'above 0'),
  'rope_theta': (-1.0, 'above 0'),
  'use_scaled_rope': (1, 'true or false'),
  'quantization_args': ({'scheme': 'int4'}, 'quantised'),
  'lora_args': ({'rank': 4}, 'adapter'),
  'moe': ({'num_experts': 8}, 'mixture'),
}


@pytest.mark.parametrize('field', WRONG)
def test_a_wrong_field_is_named(field):
  value, words = WRONG[field]
  with pytest.raises(FormatError, match=words) as error:
    read(RELEASED['llama_7b'] | {field: value}, found(config('llama_7b')))
  assert error.value.field == field


def test_tied_in_our_words_but_not_in_the_tensors():
  cfg = config('llama32_1b')
  with pytest.raises(FormatError, match='tie_embeddings'):
    read(RELEASED['llama32_1b'], dataclasses.replace(found(cfg), tied=False), write_beside(cfg))


def test_unknown_fields_are_named():
  cfg = config('llama_7b')
  assert 'colour' in read(RELEASED['llama_7b'] | {'colour': 1, 'max_batch_size': 3}, found(cfg))[2][-1]
