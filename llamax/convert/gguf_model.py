"""The keys by which GGUF says what function a model is, as a ModelConfig, in both directions."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llamax.convert.errors import printable
from llamax.convert.hf_config import family_of
from llamax.convert.json_file import Fields
from llamax.convert.rows import Row
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError
from llamax.model.presets import LLAMA

# Whose RoPE pairs are neighbours, whose are halves: llama.cpp decides by the architecture.
INTERLEAVED = {'llama': True, 'qwen2': False, 'qwen3': False}
# Meta's published scalings, for rope_freqs.weight, which says none of these: factor, low, high, original.
_PUBLISHED = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))
_FACTOR_ERROR = 1e-5  # float32 arithmetic in another order
ROPE_FACTORS = 'rope_freqs.weight'
SCALING_KEY = 'llamax.rope_scaling'
# Keys of an architecture that change no number that we compute.
_IDLE = ('vocab_size', 'tensor_data_layout', 'rope.scaling.finetuned', 'attention.layer_norm_epsilon')


def rows(architecture: str) -> tuple[Row, ...]:
  """GGUF's names; the order of q, k is that of the architecture's RoPE."""
  head = 'h p' if INTERLEAVED[architecture] else 'p h'
  return (
    Row('embed/table', 'token_embd.weight', 'V D'),
    Row('layers/*/attn_norm/scale', 'blk.*.attn_norm.weight', 'D'),
    Row('layers/*/attn/wq', 'blk.*.attn_q.weight', f'(N {head}) D'),
    Row('layers/*/attn/wk', 'blk.*.attn_k.weight', f'(K {head}) D'),
    Row('layers/*/attn/wv', 'blk.*.attn_v.weight', '(K H) D'),
    Row('layers/*/attn/wo', 'blk.*.attn_output.weight', 'D (N H)'),
    Row('layers/*/attn/bq', 'blk.*.attn_q.bias', f'(N {head})'),
    Row('layers/*/attn/bk', 'blk.*.attn_k.bias', f'(K {head})'),
    Row('layers/*/attn/bv', 'blk.*.attn_v.bias', '(K H)'),
    Row('layers/*/attn/bo', 'blk.*.attn_output.bias', 'D'),
    Row('layers/*/attn/q_norm/scale', 'blk.*.attn_q_norm.weight', 'H'),
    Row('layers/*/attn/k_norm/scale', 'blk.*.attn_k_norm.weight', 'H'),
    Row('layers/*/mlp_norm/scale', 'blk.*.ffn_norm.weight', 'D'),
    Row('layers/*/mlp/w_gate', 'blk.*.ffn_gate.weight', 'F D'),
    Row('layers/*/mlp/w_up', 'blk.*.ffn_up.weight', 'F D'),
    Row('layers/*/mlp/w_down', 'blk.*.ffn_down.weight', 'D F'),
    Row('layers/*/mlp/b_gate', 'blk.*.ffn_gate.bias', 'F'),
    Row('layers/*/mlp/b_up', 'blk.*.ffn_up.bias', 'F'),
    Row('layers/*/mlp/b_down', 'blk.*.ffn_down.bias', 'D'),
    Row('final_norm/scale', 'output_norm.weight', 'D'),
    Row('lm_head/kernel', 'output.weight', 'V D'),
  )


def architecture_of(cfg: ModelConfig, family: str) -> str:
  """llama.cpp's name for a model. Raises UserError: it has none that computes this one."""
  family = family_of(cfg, family)
  architecture = family if family in INTERLEAVED else 'llama'
  wrong = ''
  if architecture == 'qwen3' and (cfg.qkv_bias or cfg.out_bias):
    wrong = 'its Qwen 3 has no biases: model.qkv_bias, model.out_bias'
  if architecture != 'llama' and cfg.rope_scaling == 'llama3':
    wrong = f"model.rope_scaling='llama3' is for its llama alone, not for {architecture}"
  if wrong:
    raise UserError(f'llama.cpp does not compute this model: {wrong}; write another format')
  return architecture


def write_keys(cfg: ModelConfig, architecture: str) -> dict[str, Any]:
  """All keys of the architecture, for `lay_out`. rope_factors() go beside them."""
  keys: dict[str, Any] = {
    'vocab_size': cfg.vocab_size,
    'context_length': cfg.max_seq_len,
    'embedding_length': cfg.d_model,
    'block_count': cfg.num_layers,
    'feed_forward_length': cfg.d_ff,
    'attention.head_count': cfg.num_heads,
    'attention.head_count_kv': cfg.num_kv_heads,
    'attention.key_length': cfg.head_dim,
    'attention.value_length': cfg.head_dim,
    'attention.layer_norm_rms_epsilon': float(cfg.norm_eps),
    'rope.dimension_count': cfg.head_dim,
    'rope.freq_base': float(cfg.rope_theta),
  }
  if cfg.sliding_window:
    keys['attention.sliding_window'] = cfg.sliding_window
  if cfg.rope_scaling in ('linear', 'yarn'):
    keys |= {'rope.scaling.type': cfg.rope_scaling, 'rope.scaling.factor': float(cfg.rope_factor)}
  if cfg.rope_scaling == 'yarn':
    keys |= {
      'rope.scaling.original_context_length': cfg.rope_original_max_len,
      'rope.scaling.yarn_beta_fast': float(cfg.rope_beta_fast),
      'rope.scaling.yarn_beta_slow': float(cfg.rope_beta_slow),
    }
  found = {f'{architecture}.{key}': value for key, value in keys.items()}
  if cfg.rope_scaling == 'llama3' and _scaling(cfg) not in _PUBLISHED:
    found[SCALING_KEY] = [float(number) for number in _scaling(cfg)]
  return found


def _scaling(cfg: ModelConfig) -> tuple[float, float, float, int]:
  return cfg.rope_factor, cfg.rope_low_freq_factor, cfg.rope_high_freq_factor, cfg.rope_original_max_len


def rope_factors(theta: float, head_dim: int, scaling: tuple[float, float, float, int]) -> np.ndarray:
  """float32 [H / 2]: what llama.cpp divides the frequency of each pair by, under Llama 3.1's scaling."""
  factor, low, high, original = scaling
  wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  turns = original / wavelengths
  smooth = (turns - low) / (high - low)
  between = 1 / ((1 - smooth) / factor + smooth)
  return np.select([turns > high, turns < low], [1.0, factor], between).astype(np.float32)


def factors_of(cfg: ModelConfig) -> np.ndarray | None:
  """The tensor rope_freqs.weight, for a model that has one."""
  return rope_factors(cfg.rope_theta, cfg.head_dim, _scaling(cfg)) if cfg.rope_scaling == 'llama3' else None


def read_model(
  path: Path, keys: Mapping[str, Any], tensors: Iterable[str], vocab_size: int, factors: np.ndarray | None
) -> tuple[ModelConfig, str]:
  """(config, architecture).

  Args:
    tensors: the names of all. vocab_size: rows of the embedding. factors: rope_freqs.weight, where it is there.

  Raises:
    FormatError: a key is missing, impossible, or asks for what llamax does not compute.
  """
  fields, names = Fields(path, _plain(keys)), set(tensors)
  a = fields.text('general.architecture')
  if a not in INTERLEAVED:
    raise fields.wrong('general.architecture', f'is {printable(a)}; llamax knows {", ".join(INTERLEAVED)}')
  layers = fields.count(f'{a}.block_count')
  if layers > len(names):
    raise fields.wrong(f'{a}.block_count', f'is {layers:,}; the file has {len(names):,} tensors')
  width, heads = fields.count(f'{a}.embedding_length'), fields.count(f'{a}.attention.head_count')
  head_dim = fields.count(f'{a}.attention.key_length', max(1, width // heads))
  for key in ('attention.value_length', 'rope.dimension_count'):
    if fields.count(f'{a}.{key}', head_dim) != head_dim:
      raise fields.wrong(
        f'{a}.{key}', f'is {fields.raw(f"{a}.{key}")}; llamax wants the key length, {head_dim}'
      )
  longest = fields.count(f'{a}.context_length')
  theta = fields.number(f'{a}.rope.freq_base', 10_000.0)
  cfg = ModelConfig(
    **LLAMA
    | {
      'preset': 'none',
      'vocab_size': vocab_size,
      'd_model': width,
      'num_layers': layers,
      'num_heads': heads,
      'num_kv_heads': fields.count(f'{a}.attention.head_count_kv', heads),
      'head_dim': head_dim,
      'd_ff': fields.count(f'{a}.feed_forward_length'),
      'max_seq_len': longest,
      'norm_eps': fields.number(f'{a}.attention.layer_norm_rms_epsilon'),
      'tie_embeddings': 'output.weight' not in names,
      'qk_norm': a == 'qwen3',
      'qkv_bias': 'blk.0.attn_q.bias' in names,
      'out_bias': 'blk.0.attn_output.bias' in names,
      'mlp_bias': 'blk.0.ffn_gate.bias' in names,
      'sliding_window': fields.count(f'{a}.attention.sliding_window', 0, least=0),
      'rope_theta': theta,
      **_rope(fields, a, longest, theta, head_dim, factors),
    }
  )
  if heads % cfg.num_kv_heads:
    key = f'{a}.attention.head_count_kv'
    raise fields.wrong(key, f'is {cfg.num_kv_heads}, which does not divide the {heads} heads')
  if head_dim % 2:
    raise fields.wrong(f'{a}.attention.key_length', f'is {head_dim}; rotary positions want an even number')
  _refuse_others(fields, a)
  return cfg, a


def _plain(keys: Mapping[str, Any]) -> dict[str, Any]:
  """A list of one value for each layer, all equal, as the value; float32 as the decimal that was meant."""
  found = {}
  for key, value in keys.items():
    if key.startswith('tokenizer.'):
      continue
    if isinstance(value, list) and value and all(type(v) is int and v == value[0] for v in value):
      value = value[0]
    if isinstance(value, float) and np.float64(np.float32(value)) == value:
      value = float(str(np.float32(value)))
    found[key] = value
  return found


def _rope(
  fields: Fields, a: str, longest: int, theta: float, head_dim: int, factors: np.ndarray | None
) -> dict[str, Any]:
  values: dict[str, Any] = {
    'rope_scaling': 'none',
    'rope_factor': 1.0,
    'rope_original_max_len': longest,
    'rope_low_freq_factor': 1.0,
    'rope_high_freq_factor': 4.0,
    'rope_beta_fast': 32.0,
    'rope_beta_slow': 1.0,
  }
  key = f'{a}.rope.scaling.type'
  kind = fields.text(key, 'none')
  if kind not in ('none', 'linear', 'yarn'):
    raise fields.wrong(key, f'is {printable(kind)}; llamax computes none, linear, yarn')
  # Names of old files for linear scaling, for a factor of YaRN beside the usual one.
  old = fields.number(f'{a}.rope.scale_linear', 1.0)
  if old != 1.0 and kind == 'none':
    kind = 'linear'
  factor = fields.number(f'{a}.rope.scaling.factor', old)
  for name in ('attn_factor', 'yarn_attn_factor', 'yarn_ext_factor'):
    if kind == 'yarn' and fields.number(f'{a}.rope.scaling.{name}', 1.0) != 1.0:
      raise fields.wrong(f'{a}.rope.scaling.{name}', 'makes a kind of YaRN that llamax does not compute')
  original = fields.count(f'{a}.rope.scaling.original_context_length', longest)
  fast = fields.number(f'{a}.rope.scaling.yarn_beta_fast', 32.0)
  slow = fields.number(f'{a}.rope.scaling.yarn_beta_slow', 1.0)
  if kind != 'none':
    values |= {'rope_scaling': kind, 'rope_factor': factor}
  if kind == 'yarn':
    values |= {'rope_original_max_len': original, 'rope_beta_fast': fast, 'rope_beta_slow': slow}
  if factors is None:
    return values
  if kind != 'none':
    raise fields.wrong(ROPE_FACTORS, f'stands beside {key}={kind}')
  factor, low, high, original = _match(fields, theta, head_dim, factors)
  return values | {
    'rope_scaling': 'llama3',
    'rope_factor': factor,
    'rope_low_freq_factor': low,
    'rope_high_freq_factor': high,
    'rope_original_max_len': original,
  }


def _match(fields: Fields, theta: float, head_dim: int, factors: np.ndarray) -> tuple[float, float, float, int]:
  """The scaling that gives these factors."""
  if factors.shape != (head_dim // 2,):
    raise fields.wrong(ROPE_FACTORS, f'has the shape {list(factors.shape)}; want [{head_dim // 2}]')
  candidates = list(_PUBLISHED)
  told = fields.raw(SCALING_KEY)
  if told is not None:
    if not isinstance(told, list) or len(told) != 4 or not all(isinstance(n, float) and n > 0 for n in told):
      raise fields.wrong(SCALING_KEY, f'is {printable(repr(told))}; want four numbers')
    factor, low, high, original = (float(str(np.float32(number))) for number in told)
    if not (low < high < math.inf and factor < math.inf and original == int(min(original, 1 << 31))):
      raise fields.wrong(SCALING_KEY, f'is {printable(repr(told))}, which is no scaling')
    # First: two scalings may give a short head the same factors.
    candidates.insert(0, (factor, low, high, int(original)))
  for scaling in candidates:
    if np.allclose(factors, rope_factors(theta, head_dim, scaling), rtol=_FACTOR_ERROR, atol=0):
      return scaling
  raise fields.wrong(
    ROPE_FACTORS, 'holds factors of none of the scalings of Llama 3.1, 3.2; llamax cannot say what made them'
  )


def _refuse_others(fields: Fields, a: str) -> None:
  """Keys that we never heard of may change what is computed, unless they say no."""
  if not fields.flag(f'{a}.attention.causal', True):
    raise fields.wrong(f'{a}.attention.causal', 'is false; llamax computes causal attention')
  for key in fields.left():
    if not key.startswith(f'{a}.') or key.removeprefix(f'{a}.') in _IDLE:
      continue
    if fields.raw(key) not in (0, ''):
      raise fields.wrong(
        key, f'is {printable(repr(fields.raw(key)))}; llamax does not compute what it asks for'
      )
