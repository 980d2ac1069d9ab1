"""A transformers model beside the llamax model that must equal it, with the same random weights."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from llamax.core.config import ComputeConfig, ModelConfig
from llamax.model.llama import Llama

COMPUTE = ComputeConfig(
  param_dtype='float32',
  compute_dtype='float32',
  attention='xla',
  splash_block=128,
  remat='none',
  scan_layers=True,
  loss_chunks=1,
  compilation_cache=None,
)


# Every other field is a case's own.
PLAIN: dict[str, Any] = {
  'preset': 'none',
  'attention': 'gqa',
  'mlp': 'swiglu',
  'norm': 'rmsnorm',
  'position': 'rope',
  'tie_embeddings': False,
  'qk_norm': False,
  'qkv_bias': False,
  'out_bias': False,
  'mlp_bias': False,
  'sliding_window': 0,
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


@dataclasses.dataclass
class Twins:
  """torch_model: a transformers causal LM. params: its weights as llamax names them."""

  torch_model: Any
  cfg: ModelConfig
  params: dict[str, Any]

  def llama(self, **compute: Any) -> Llama:
    return Llama(self.cfg, dataclasses.replace(COMPUTE, **compute))


@pytest.fixture(autouse=True)
def one_thread():
  """Tensors this small are faster on one."""
  import torch

  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


@pytest.fixture
def make_twins():
  """(transformers family, its config, llamax's overrides) -> Twins; drawn from numpy, seeded."""

  def make(family: str, theirs: dict[str, Any], ours: dict[str, Any], seed: int = 0) -> Twins:
    import transformers

    config = getattr(transformers, f'{family}Config')(**theirs, attn_implementation='eager', use_cache=False)
    torch_model = getattr(transformers, f'{family}ForCausalLM')(config)
    _fill(torch_model, seed)
    cfg = ModelConfig(**(PLAIN | ours))
    return Twins(torch_model, cfg, _llamax_params(torch_model, cfg))

  return make


def _fill(torch_model: Any, seed: int) -> None:
  """Weights large enough that attention is far from uniform; norms, biases away from 1, 0."""
  import torch

  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, p in torch_model.named_parameters():
      noise = torch.from_numpy(rng.standard_normal(tuple(p.shape)).astype(np.float32))
      if name.endswith('norm.weight'):
        p.copy_(1 + 0.3 * noise)
      elif name.endswith('.bias') or 'embed_tokens' in name:
        p.copy_(0.5 * noise)
      else:
        p.copy_(noise / p.shape[1] ** 0.5)


def _llamax_params(torch_model: Any, cfg: ModelConfig) -> dict[str, Any]:
  """transformers' names and layouts -> llamax's. torch keeps a linear layer as [out, in]."""
  weights = {name: p.detach().numpy().copy() for name, p in torch_model.named_parameters()}

  def take(name: str, *shape: int) -> np.ndarray:
    w = weights.pop(name)
    w = w.T if w.ndim == 2 else w
    return w.reshape(shape) if shape else w

  N, K, H, D = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.d_model
  layers = []
  for i in range(cfg.num_layers):
    attn, mlp = f'model.layers.{i}.self_attn', f'model.layers.{i}.mlp'
    layer: dict[str, Any] = {
      'attn': {
        'wq': take(f'{attn}.q_proj.weight', D, N, H),
        'wk': take(f'{attn}.k_proj.weight', D, K, H),
        'wv': take(f'{attn}.v_proj.weight', D, K, H),
        'wo': take(f'{attn}.o_proj.weight', N, H, D),
      },
      'mlp': {f'w_{part}': take(f'{mlp}.{part}_proj.weight') for part in ('gate', 'up', 'down')},
      'attn_norm': {'scale': take(f'model.layers.{i}.input_layernorm.weight')},
      'mlp_norm': {'scale': take(f'model.layers.{i}.post_attention_layernorm.weight')},
    }
    if cfg.qkv_bias:
      layer['attn'] |= {f'b{x}': take(f'{attn}.{x}_proj.bias', h, H) for x, h in (('q', N), ('k', K), ('v', K))}
    if cfg.out_bias:
      layer['attn']['bo'] = take(f'{attn}.o_proj.bias')
    if cfg.qk_norm:
      layer['attn'] |= {f'{x}_norm': {'scale': take(f'{attn}.{x}_norm.weight')} for x in 'qk'}
    if cfg.mlp_bias:
      layer['mlp'] |= {f'b_{part}': take(f'{mlp}.{part}_proj.bias') for part in ('gate', 'up', 'down')}
    layers.append(layer)
  params: dict[str, Any] = {
    'embed': {'table': weights.pop('model.embed_tokens.weight')},
    'layers': _stack(layers),
    'final_norm': {'scale': take('model.norm.weight')},
  }
  if not cfg.tie_embeddings:
    params['lm_head'] = {'kernel': take('lm_head.weight')}
  assert not weights, f'weights without a place: {sorted(weights)}'
  return params


def _stack(layers: list[Any]) -> Any:
  if isinstance(layers[0], dict):
    return {key: _stack([layer[key] for layer in layers]) for key in layers[0]}
  return np.stack(layers)
