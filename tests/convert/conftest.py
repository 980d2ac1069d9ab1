"""Tiny checkpoints of Hugging Face, written by the safetensors library from numpy arrays."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 61,
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 128,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10000.0,
  'tie_word_embeddings': False,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
# name -> changes of CONFIG
FAMILIES = {
  'llama': {},
  'llama_tied': {'tie_word_embeddings': True},
  'llama_biases': {'attention_bias': True, 'mlp_bias': True},
  'mistral': {'model_type': 'mistral', 'sliding_window': 7, 'architectures': ['MistralForCausalLM']},
  'qwen2': {'model_type': 'qwen2', 'hidden_size': 48, 'architectures': ['Qwen2ForCausalLM']},
  'qwen3': {'model_type': 'qwen3', 'architectures': ['Qwen3ForCausalLM']},
}
DTYPES = {'float32': np.float32, 'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}


def tensors(config: dict[str, Any], dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
  """Every tensor that transformers stores for `config`, with random numbers; norms near 1."""
  rng = np.random.default_rng(seed)
  V, D, F = config['vocab_size'], config['hidden_size'], config['intermediate_size']
  N, K, H = config['num_attention_heads'], config['num_key_value_heads'], config['head_dim']
  family = config['model_type']
  shapes: dict[str, tuple[int, ...]] = {'model.embed_tokens.weight': (V, D), 'model.norm.weight': (D,)}
  for i in range(config['num_hidden_layers']):
    at = f'model.layers.{i}'
    shapes |= {
      f'{at}.input_layernorm.weight': (D,),
      f'{at}.post_attention_layernorm.weight': (D,),
      f'{at}.self_attn.q_proj.weight': (N * H, D),
      f'{at}.self_attn.k_proj.weight': (K * H, D),
      f'{at}.self_attn.v_proj.weight': (K * H, D),
      f'{at}.self_attn.o_proj.weight': (D, N * H),
      f'{at}.mlp.gate_proj.weight': (F, D),
      f'{at}.mlp.up_proj.weight': (F, D),
      f'{at}.mlp.down_proj.weight': (D, F),
    }
    if family == 'qwen2' or config.get('attention_bias'):
      shapes |= {f'{at}.self_attn.{x}_proj.bias': (n * H,) for x, n in (('q', N), ('k', K), ('v', K))}
    if config.get('attention_bias'):
      shapes[f'{at}.self_attn.o_proj.bias'] = (D,)
    if config.get('mlp_bias'):
      shapes |= {f'{at}.mlp.{x}_proj.bias': (n,) for x, n in (('gate', F), ('up', F), ('down', D))}
    if family == 'qwen3':
      shapes |= {f'{at}.self_attn.{x}_norm.weight': (H,) for x in 'qk'}
  if not config['tie_word_embeddings']:
    shapes['lm_head.weight'] = (V, D)
  found = {}
  for name, shape in shapes.items():
    noise = rng.standard_normal(shape).astype(np.float32)
    values = 1 + 0.3 * noise if 'norm' in name else noise * (0.5 if len(shape) == 1 else shape[1] ** -0.5)
    found[name] = values.astype(DTYPES[dtype])
  return found


@pytest.fixture
def make_hf(tmp_path):
  """(**changes of CONFIG) -> (folder, its tensors)."""

  def make(name: str = 'hf', dtype: str = 'float32', files: int = 1, seed: int = 0, **changes: Any):
    return write_folder(tmp_path / name, dtype, files, seed, **changes)

  return make


def write_folder(folder: Path, dtype: str, files: int = 1, seed: int = 0, **changes: Any):
  """(folder, its tensors), of CONFIG with `changes`."""
  folder.mkdir()
  config = CONFIG | changes
  weights = tensors(config, dtype, seed)
  (folder / 'config.json').write_text(json.dumps(config))
  write_weights(folder, weights, files)
  return folder, weights


def write_weights(folder: Path, weights: dict[str, np.ndarray], files: int = 1) -> None:
  if files == 1:
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    return
  names = [f'model-{i + 1:05d}-of-{files:05d}.safetensors' for i in range(files)]
  table = {name: names[i % files] for i, name in enumerate(weights)}
  for file in names:
    save_file({name: weights[name] for name in weights if table[name] == file}, folder / file)
  index = {'metadata': {'total_size': sum(w.nbytes for w in weights.values())}, 'weight_map': table}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def read_weights(folder: Path) -> dict[str, np.ndarray]:
  """All tensors of a directory, by the safetensors library."""
  from safetensors import safe_open

  found = {}
  for file in sorted(folder.glob('*.safetensors')):
    with safe_open(file, framework='np') as opened:
      found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dict
  return found


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
  """Bit for bit, dtypes too."""
  return first.keys() == second.keys() and all(
    a.dtype == second[name].dtype and a.shape == second[name].shape and a.tobytes() == second[name].tobytes()
    for name, a in first.items()
  )
