"""Hugging Face's config.json as a ModelConfig, in both directions."""

import dataclasses
import math
from typing import Any

from llamax.convert.errors import printable
from llamax.convert.json_file import Fields
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError
from llamax.model.presets import LLAMA

# model_type -> class of transformers
FAMILIES = {
  'llama': 'LlamaForCausalLM',
  'mistral': 'MistralForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}
_ROPE_KINDS = {'default': 'none', 'none': 'none', 'linear': 'linear', 'llama3': 'llama3', 'yarn': 'yarn'}
# Fields of config.json that change no number that we compute.
_IDLE = {
  'architectures', 'model_type', 'torch_dtype', 'dtype', 'transformers_version', '_name_or_path', 'use_cache',
  'bos_token_id', 'eos_token_id', 'pad_token_id', 'initializer_range', 'attention_dropout', 'pretraining_tp',
  'output_attentions', 'output_hidden_states', 'return_dict', 'chunk_size_feed_forward', 'id2label', 'label2id',
  'problem_type', 'max_window_layers', 'use_mrope', '_attn_implementation', 'attn_implementation',
}  # fmt: skip


def read_model(fields: Fields) -> tuple[ModelConfig, str, list[str]]:
  """(config, family, notes on fields that are not used).

  Raises:
    FormatError: a field is missing or impossible. UserError: what it asks for, llamax does not compute.
  """
  family = fields.text('model_type')
  if family not in FAMILIES:
    raise fields.wrong('model_type', f'is {printable(family)}; llamax knows {", ".join(FAMILIES)}')
  _refuse(fields)
  heads, width = fields.count('num_attention_heads'), fields.count('hidden_size')
  head_dim = fields.count('head_dim', 128 if family == 'qwen3' else max(1, width // heads))
  longest = fields.count('max_position_embeddings')
  attention_bias = fields.flag('attention_bias', False) if family in ('llama', 'qwen3') else False
  cfg = ModelConfig(
    **LLAMA
    | {
      'preset': 'none',
      'vocab_size': fields.count('vocab_size'),
      'd_model': width,
      'num_layers': fields.count('num_hidden_layers'),
      'num_heads': heads,
      'num_kv_heads': fields.count('num_key_value_heads', heads),
      'head_dim': head_dim,
      'd_ff': fields.count('intermediate_size'),
      'max_seq_len': longest,
      'norm_eps': fields.number('rms_norm_eps', 1e-6),
      'tie_embeddings': fields.flag('tie_word_embeddings', False),
      'qk_norm': family == 'qwen3',
      'qkv_bias': family == 'qwen2' or attention_bias,
      'out_bias': attention_bias,
      'mlp_bias': fields.flag('mlp_bias', False) if family == 'llama' else False,
      'sliding_window': _window(fields, family),
      **_rope(fields, longest),
      'init_std': fields.number('initializer_range', 0.02),
    }
  )
  check_sizes(cfg, fields)
  return cfg, family, _notes(fields)


def check_sizes(cfg: ModelConfig, fields: Fields) -> None:
  """FormatError where heads do not divide or a head cannot be rotated."""
  if cfg.num_heads % cfg.num_kv_heads:
    raise fields.wrong(
      'num_key_value_heads', f'is {cfg.num_kv_heads}, which does not divide the {cfg.num_heads} heads'
    )
  if cfg.head_dim % 2:
    raise fields.wrong('head_dim', f'is {cfg.head_dim}; rotary positions want an even number')


def _refuse(fields: Fields) -> None:
  act = fields.text('hidden_act', 'silu')
  if act != 'silu':
    raise fields.wrong('hidden_act', f'is {printable(act)}; llamax computes silu')
  if fields.raw('quantization_config'):
    raise fields.wrong(
      'quantization_config',
      'is there: these weights are quantised; take the checkpoint that they were made from',
    )
  part = fields.number('partial_rotary_factor', 1.0)
  if part != 1.0:
    raise fields.wrong('partial_rotary_factor', f'is {part}; llamax rotates whole heads')


def _window(fields: Fields, family: str) -> int:
  """Keys that a query sees; 0: all."""
  window = fields.count('sliding_window', 0, least=0)
  kinds = fields.raw('layer_types')
  if family in ('llama',):
    return 0
  if family != 'mistral' and not fields.flag('use_sliding_window', False):
    window = 0
  if window and isinstance(kinds, list) and set(map(str, kinds)) == {'full_attention'}:
    window = 0
  if window and family != 'mistral':
    layers = fields.count('num_hidden_layers')
    full = fields.count('max_window_layers', layers, least=0)
    # transformers: layers below max_window_layers see everything.
    if full >= layers:
      return 0
    if full or (isinstance(kinds, list) and set(map(str, kinds)) != {'sliding_attention'}):
      raise fields.wrong(
        'max_window_layers', f'is {full}: some layers have a window, others none; llamax has one for all'
      )
  return window


def _rope(fields: Fields, longest: int) -> dict[str, Any]:
  """Both spellings: `rope_parameters` of transformers 5; `rope_theta` with `rope_scaling` of all before it."""
  new, old = fields.inner('rope_parameters'), fields.inner('rope_scaling')
  found = new or old
  theta = fields.number('rope_theta', 10_000.0)
  values: dict[str, Any] = {
    'rope_theta': new.number('rope_theta', theta) if new else theta,
    'rope_original_max_len': longest,
  }
  if not found:
    return values
  kind = found.text('rope_type', found.text('type', 'default'))
  if kind not in _ROPE_KINDS:
    raise found.wrong('rope_type', f'is {printable(kind)}; llamax computes {", ".join(_ROPE_KINDS)}')
  values['rope_scaling'] = _ROPE_KINDS[kind]
  if kind in ('default', 'none'):
    return values
  values['rope_factor'] = found.number('factor')
  if kind in ('llama3', 'yarn'):
    values['rope_original_max_len'] = found.count('original_max_position_embeddings', longest)
  if kind == 'llama3':
    values |= {f'rope_{name}': found.number(name) for name in ('low_freq_factor', 'high_freq_factor')}
  if kind == 'yarn':
    values |= {
      'rope_beta_fast': found.number('beta_fast', 32.0),
      'rope_beta_slow': found.number('beta_slow', 1.0),
    }
    usual = 0.1 * math.log(values['rope_factor']) + 1.0 if values['rope_factor'] > 1 else 1.0
    given = found.number('attention_factor', usual)
    special = [name for name in ('mscale', 'mscale_all_dim') if found.raw(name)]
    if special or not math.isclose(given, usual, rel_tol=1e-6) or not found.flag('truncate', True):
      name = special[0] if special else 'attention_factor'
      raise found.wrong(name, 'makes a kind of YaRN that llamax does not compute')
  return values


def _notes(fields: Fields) -> list[str]:
  notes = []
  if fields.raw('auto_map'):
    notes.append(f'{fields.path}: auto_map names code of its own; llamax never runs such code, it is left out')
  if dropped := fields.raw('attention_dropout'):
    notes.append(
      f'{fields.path}: attention_dropout={printable(dropped)} is left out; set model.dropout to train with it'
    )
  unknown = [name for name in fields.left() if name not in _IDLE]
  if unknown:
    notes.append(f'{fields.path}: not used: {printable(", ".join(unknown))}')
  return notes


def family_of(cfg: ModelConfig, family: str) -> str:
  """The family that can say what `cfg` is: `family` where it can. Raises UserError where none can."""
  _require_known_parts(cfg)
  able = [
    name
    for name in FAMILIES
    if cfg.qk_norm == (name == 'qwen3')
    and _biases(cfg)
    in {'llama': ('', 'qo', 'qom', 'm'), 'qwen2': ('q',), 'qwen3': ('', 'qo'), 'mistral': ('',)}[name]
    and (name != 'llama' or not cfg.sliding_window)
  ]
  if not able:
    raise UserError(
      f'no family of Hugging Face has this model: qk_norm={cfg.qk_norm}, qkv_bias={cfg.qkv_bias}, '
      f'out_bias={cfg.out_bias}, mlp_bias={cfg.mlp_bias}, sliding_window={cfg.sliding_window}'
    )
  return family if family in able else able[0]


def _biases(cfg: ModelConfig) -> str:
  return 'q' * cfg.qkv_bias + 'o' * cfg.out_bias + 'm' * cfg.mlp_bias


def _require_known_parts(cfg: ModelConfig) -> None:
  for name in ('attention', 'mlp', 'norm', 'position'):
    if getattr(cfg, name) != LLAMA[name]:
      raise UserError(
        f'model.{name}={getattr(cfg, name)!r} is of llamax alone; other formats hold {LLAMA[name]!r}'
      )


def write_model(cfg: ModelConfig, family: str, dtype: str, ids: dict[str, Any]) -> dict[str, Any]:
  """The content of config.json, with the rotary keys as all versions of transformers spell them.

  Args:
    dtype: of the weights. ids: bos_token_id, eos_token_id, pad_token_id where they are known.
  """
  family = family_of(cfg, family)
  rope = {'rope_theta': cfg.rope_theta, 'rope_type': 'default', **_rope_extra(cfg)}
  found: dict[str, Any] = {
    'architectures': [FAMILIES[family]],
    'model_type': family,
    'vocab_size': cfg.vocab_size,
    'hidden_size': cfg.d_model,
    'intermediate_size': cfg.d_ff,
    'num_hidden_layers': cfg.num_layers,
    'num_attention_heads': cfg.num_heads,
    'num_key_value_heads': cfg.num_kv_heads,
    'head_dim': cfg.head_dim,
    'hidden_act': 'silu',
    'max_position_embeddings': cfg.max_seq_len,
    'initializer_range': cfg.init_std,
    'rms_norm_eps': cfg.norm_eps,
    'tie_word_embeddings': cfg.tie_embeddings,
    'attention_dropout': 0.0,
    'use_cache': True,
    'torch_dtype': dtype,
    'dtype': dtype,
    'rope_theta': cfg.rope_theta,
    'rope_scaling': None if cfg.rope_scaling == 'none' else rope,
    'rope_parameters': rope,
    'bos_token_id': None,
    'eos_token_id': None,
    'pad_token_id': None,
    **ids,
  }
  if family == 'llama':
    found |= {'attention_bias': cfg.qkv_bias, 'mlp_bias': cfg.mlp_bias, 'pretraining_tp': 1}
  elif family == 'mistral':
    found['sliding_window'] = cfg.sliding_window or None
  else:
    windowed = bool(cfg.sliding_window)
    found |= {
      'use_sliding_window': windowed,
      'sliding_window': cfg.sliding_window or None,
      'max_window_layers': 0 if windowed else cfg.num_layers,
      'layer_types': ['sliding_attention' if windowed else 'full_attention'] * cfg.num_layers,
    }
    if family == 'qwen3':
      found['attention_bias'] = cfg.qkv_bias
  if family == 'qwen2' and cfg.head_dim * cfg.num_heads != cfg.d_model:
    raise UserError(
      f'Qwen 2 has head_dim = hidden_size / num_heads; model.head_dim={cfg.head_dim} cannot be said there'
    )
  return found


def _rope_extra(cfg: ModelConfig) -> dict[str, Any]:
  extra: dict[str, Any] = (
    {} if cfg.rope_scaling == 'none' else {'rope_type': cfg.rope_scaling, 'factor': cfg.rope_factor}
  )
  if cfg.rope_scaling in ('llama3', 'yarn'):
    extra['original_max_position_embeddings'] = cfg.rope_original_max_len
  if cfg.rope_scaling == 'llama3':
    extra |= {'low_freq_factor': cfg.rope_low_freq_factor, 'high_freq_factor': cfg.rope_high_freq_factor}
  if cfg.rope_scaling == 'yarn':
    extra |= {'beta_fast': cfg.rope_beta_fast, 'beta_slow': cfg.rope_beta_slow}
  return extra


def same_function(first: ModelConfig, second: ModelConfig) -> list[str]:
  """The fields in which two configs are not one function: how weights are drawn, dropped does not count."""
  apart = {'preset', 'init', 'init_std', 'dropout', 'mup_base_width'}
  rope = {
    'none': set(),
    'linear': {'factor'},
    'llama3': {'factor', 'original_max_len', 'low_freq_factor', 'high_freq_factor'},
  }
  rope['yarn'] = {'factor', 'original_max_len', 'beta_fast', 'beta_slow'}
  unread = {'factor', 'original_max_len', 'low_freq_factor', 'high_freq_factor', 'beta_fast', 'beta_slow'}
  if first.rope_scaling == second.rope_scaling:
    apart |= {f'rope_{name}' for name in unread - rope.get(first.rope_scaling, set())}
  names = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in apart]
  return [name for name in names if getattr(first, name) != getattr(second, name)]
