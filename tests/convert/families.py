"""Tiny models of each family: as transformers configures them, as llamax does."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from llamax.core.config import ModelConfig

_THEIRS = {
  'vocab_size': 97,
  'hidden_size': 48,
  'intermediate_size': 56,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': 10,
  'max_position_embeddings': 128,
  'rms_norm_eps': 1e-5,
}
_OURS: dict[str, Any] = {
  'preset': 'none',
  'vocab_size': 97,
  'd_model': 48,
  'd_ff': 56,
  'num_layers': 3,
  'num_heads': 6,
  'num_kv_heads': 2,
  'head_dim': 10,
  'max_seq_len': 128,
  'attention': 'gqa',
  'mlp': 'swiglu',
  'norm': 'rmsnorm',
  'position': 'rope',
  'norm_eps': 1e-5,
  'tie_embeddings': False,
  'qk_norm': False,
  'qkv_bias': False,
  'out_bias': False,
  'mlp_bias': False,
  'sliding_window': 0,
  'rope_theta': 500.0,
  'rope_scaling': 'none',
  'rope_factor': 1.0,
  'rope_original_max_len': 128,
  'rope_low_freq_factor': 1.0,
  'rope_high_freq_factor': 4.0,
  'rope_beta_fast': 32.0,
  'rope_beta_slow': 1.0,
  'init': 'normal',
  'init_std': 0.02,
  'dropout': 0.0,
}
# A base so small that a tiny head has fast, middling, slow pairs.
_PLAIN = {'rope_type': 'default', 'rope_theta': 500.0}
_ORIGINAL = {'original_max_position_embeddings': 32}
_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 2.0, **_ORIGINAL}
_OUR_LLAMA3 = {
  'rope_scaling': 'llama3',
  'rope_factor': 8.0,
  'rope_original_max_len': 32,
  'rope_high_freq_factor': 2.0,
}
_YARN = {'rope_type': 'yarn', 'factor': 4.0, 'beta_fast': 4.0, 'beta_slow': 1.0, **_ORIGINAL}
_OUR_YARN = {'rope_scaling': 'yarn', 'rope_factor': 4.0, 'rope_original_max_len': 32, 'rope_beta_fast': 4.0}
_NARROW = {'head_dim': 8}  # Qwen 2.5 has no other width than D / N

# name -> (transformers' class prefix, its config's differences, its rope_parameters, ours)
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
  'llama2': (
    'Llama',
    {'num_key_value_heads': 6, 'head_dim': 8},
    {},
    {'num_kv_heads': 6, 'head_dim': 8},
  ),
  'llama31': ('Llama', {}, _LLAMA3, _OUR_LLAMA3),
  'llama32_tied': ('Llama', {'tie_word_embeddings': True}, _LLAMA3, {'tie_embeddings': True, **_OUR_LLAMA3}),
  'linear': (
    'Llama',
    {},
    {'rope_type': 'linear', 'factor': 4.0},
    {'rope_scaling': 'linear', 'rope_factor': 4.0},
  ),
  'yarn': ('Llama', {}, _YARN, _OUR_YARN),
  'biases': (
    'Llama',
    {'attention_bias': True, 'mlp_bias': True},
    {},
    {'qkv_bias': True, 'out_bias': True, 'mlp_bias': True},
  ),
  'mistral': ('Mistral', {'sliding_window': 7}, {}, {'sliding_window': 7}),
  'qwen25': ('Qwen2', {'rms_norm_eps': 1e-6}, {}, {'qkv_bias': True, 'norm_eps': 1e-6, **_NARROW}),
  'qwen3': ('Qwen3', {}, {}, {'qk_norm': True}),
}


def our_config(name: str, **changes: Any) -> ModelConfig:
  return ModelConfig(**(_OURS | FAMILIES[name][3] | changes))


def their_model(name: str, seed: int = 0, **changes: Any) -> Any:
  """A transformers model in torch's default dtype; norms, biases away from 1 and 0, attention far from even."""
  import torch
  import transformers

  family, differences, rope, _ = FAMILIES[name]
  settings = _THEIRS | differences | changes | {'rope_parameters': _PLAIN | rope}
  if family == 'Qwen2':
    del settings['head_dim']
  config = getattr(transformers, f'{family}Config')(**settings, use_cache=False)
  config._attn_implementation = 'eager'
  model = getattr(transformers, f'{family}ForCausalLM')(config).to(torch.get_default_dtype())
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for parameter_name, p in model.named_parameters():
      noise = torch.from_numpy(rng.standard_normal(tuple(p.shape)))
      if parameter_name.endswith('norm.weight'):
        p.copy_(1 + 0.3 * noise)
      elif parameter_name.endswith('.bias') or 'embed_tokens' in parameter_name:
        p.copy_(0.5 * noise)
      else:
        p.copy_(noise / p.shape[1] ** 0.5)
  return model.eval()


def their_weights(model: Any) -> dict[str, np.ndarray]:
  return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


class InMemory:
  """An array as a tensor of a file; counts the most rows that were asked for at once."""

  def __init__(self, array: np.ndarray):
    self.array, self.most = array, 0

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  @property
  def dtype(self) -> np.dtype:
    return self.array.dtype

  def read(self, start: int, stop: int) -> np.ndarray:
    self.most = max(self.most, stop - start)
    return np.ascontiguousarray(self.array[start:stop])


def in_memory(weights: dict[str, np.ndarray]) -> dict[str, InMemory]:
  return {name: InMemory(array) for name, array in weights.items()}


def hf_weights(cfg: ModelConfig, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
  """Random weights under Hugging Face's names, [out, in]; no torch is needed."""
  rng = np.random.default_rng(seed)
  D, F, H = cfg.d_model, cfg.d_ff, cfg.head_dim
  heads = {'q': cfg.num_heads, 'k': cfg.num_kv_heads, 'v': cfg.num_kv_heads}
  shapes: dict[str, tuple[int, ...]] = {'model.embed_tokens.weight': (cfg.vocab_size, D)}
  for i in range(cfg.num_layers):
    attn, mlp = f'model.layers.{i}.self_attn', f'model.layers.{i}.mlp'
    shapes |= {f'{attn}.{x}_proj.weight': (count * H, D) for x, count in heads.items()}
    shapes |= {f'{attn}.{x}_proj.bias': (count * H,) for x, count in heads.items() if cfg.qkv_bias}
    shapes |= {f'{attn}.{x}_norm.weight': (H,) for x in 'qk' if cfg.qk_norm}
    shapes |= {f'{attn}.o_proj.weight': (D, cfg.num_heads * H)}
    shapes |= {f'{mlp}.{x}_proj.weight': (F, D) for x in ('gate', 'up')}
    shapes |= {f'{mlp}.down_proj.weight': (D, F)}
    if cfg.out_bias:
      shapes[f'{attn}.o_proj.bias'] = (D,)
    if cfg.mlp_bias:
      shapes |= {f'{mlp}.{x}_proj.bias': (D if x == 'down' else F,) for x in ('gate', 'up', 'down')}
    shapes |= {f'model.layers.{i}.{x}_layernorm.weight': (D,) for x in ('input', 'post_attention')}
  shapes['model.norm.weight'] = (D,)
  if not cfg.tie_embeddings:
    shapes['lm_head.weight'] = (cfg.vocab_size, D)
  weights = {}
  for name, shape in shapes.items():
    noise = rng.standard_normal(shape)
    if name.endswith('norm.weight'):
      noise = 1 + 0.3 * noise
    elif name.endswith('.bias') or 'embed_tokens' in name:
      noise = 0.5 * noise
    else:
      noise = noise / shape[1] ** 0.5
    weights[name] = noise.astype(np.float32).astype(dtype)
  return weights


def write_hf(folder: Path, cfg: ModelConfig, weights: dict[str, np.ndarray], family: str = 'llama') -> Path:
  """A Hugging Face directory, its weights written by the safetensors library."""
  import safetensors.numpy

  from llamax.convert.hf_config import write_model

  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(write_model(cfg, family, 'float32', {'bos_token_id': 1})))
  safetensors.numpy.save_file(weights, folder / 'model.safetensors')
  return folder


def convert(source: Any, name: str, destination: Path, cast: str | None = None, **options: Any) -> Path:
  """What `llamax convert` does, without its words. cast: its --dtype. options: of the target."""
  from llamax.convert import copy, formats
  from llamax.convert.target import Model

  model = Model(source.cfg, source.family, source.tokenizer, source.generation)
  target = formats.open_target(name, model, **options)
  steps = copy.make_plan(source, target, cast)
  copy.copy(
    source, target, steps, destination, {}, threads=2, progress=lambda size: None, say=lambda text: None
  )
  return destination
