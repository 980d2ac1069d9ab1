"""The float64 reference gives the logits of transformers in float64, those of a complex rotation for Meta."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llamax.convert import reference
from llamax.convert.conventions import convention
from llamax.core.errors import UserError
from tests.convert.families import FAMILIES, in_memory, our_config

WHY = 'needs torch and transformers: pip install llamax[parity]'
B, T = 2, 72  # longer than the original context of the scaled cases, than Mistral's window


def tokens(seed=1):
  return np.random.default_rng(seed).integers(97, size=(B, T))


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
  """Family -> (weights, logits) of transformers in float64."""
  pytest.importorskip('torch', reason=WHY)
  pytest.importorskip('transformers', reason=WHY)
  folder = tmp_path_factory.mktemp('double')
  np.save(folder / 'tokens.npy', tokens())
  script = Path(__file__).with_name('double.py')
  path = f'{script.parents[2]}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
  subprocess.run(
    [sys.executable, script, folder / 'tokens.npy', folder], check=True, env=os.environ | {'PYTHONPATH': path}
  )
  found = {name: dict(np.load(folder / f'{name}.npz')) for name in FAMILIES}
  return {name: (arrays, arrays.pop('logits')) for name, arrays in found.items()}


@pytest.mark.parametrize('name', FAMILIES)
def test_logits_equal_those_of_transformers_in_float64(theirs, name):
  weights, logits = theirs[name]
  assert logits.dtype == np.float64 and logits.std() > 0.5
  ours = reference.logits(in_memory(weights), convention('hf', 'llama'), our_config(name), tokens())
  assert np.abs(ours - logits).max() < 1e-10


def meta_weights(cfg, seed=3):
  """A checkpoint in Meta's names, which are those of llama2.c's export too."""
  rng = np.random.default_rng(seed)

  def matrix(rows, columns):
    return rng.standard_normal((rows, columns)) / columns**0.5

  D, Q, KV, F = cfg.d_model, cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim, cfg.d_ff
  weights = {'tok_embeddings.weight': rng.standard_normal((cfg.vocab_size, D))}
  for i in range(cfg.num_layers):
    at = f'layers.{i}'
    weights |= {
      f'{at}.{norm}.weight': 1 + 0.3 * rng.standard_normal(D) for norm in ('attention_norm', 'ffn_norm')
    }
    weights |= {
      f'{at}.attention.{name}.weight': matrix(*shape)
      for name, shape in {'wq': (Q, D), 'wk': (KV, D), 'wv': (KV, D), 'wo': (D, Q)}.items()
    }
    shapes = {'w1': (F, D), 'w2': (D, F), 'w3': (F, D)}
    weights |= {f'{at}.feed_forward.{name}.weight': matrix(*shape) for name, shape in shapes.items()}
  return weights | {'norm.weight': 1 + 0.3 * rng.standard_normal(D), 'output.weight': matrix(cfg.vocab_size, D)}


def meta_forward(torch, weights, cfg, ids):
  """Meta's model in a few lines of torch: neighbours of a head are the parts of a complex number that turns."""
  w = {name: torch.from_numpy(array) for name, array in weights.items()}
  H, ids = cfg.head_dim, torch.from_numpy(ids)

  def norm(x, name):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + cfg.norm_eps) * w[name]

  turns = torch.outer(
    torch.arange(ids.shape[1], dtype=torch.float64),
    cfg.rope_theta ** (-torch.arange(0, H, 2, dtype=torch.float64) / H),
  )
  turns = torch.polar(torch.ones_like(turns), turns)[None, :, None]

  def rotate(x):
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], H // 2, 2)) * turns).flatten(3)

  x = w['tok_embeddings.weight'][ids]
  for i in range(cfg.num_layers):
    at = f'layers.{i}'
    h = norm(x, f'{at}.attention_norm.weight')
    q, k, v = ((h @ w[f'{at}.attention.w{of}.weight'].T).unflatten(-1, (-1, H)) for of in 'qkv')
    k, v = (part.repeat_interleave(cfg.num_heads // cfg.num_kv_heads, dim=2) for part in (rotate(k), v))
    q, k, v = (part.transpose(1, 2) for part in (rotate(q), k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + y.transpose(1, 2).flatten(2) @ w[f'{at}.attention.wo.weight'].T
    h = norm(x, f'{at}.ffn_norm.weight')
    gate = torch.nn.functional.silu(h @ w[f'{at}.feed_forward.w1.weight'].T)
    x = x + (gate * (h @ w[f'{at}.feed_forward.w3.weight'].T)) @ w[f'{at}.feed_forward.w2.weight'].T
  return (norm(x, 'norm.weight') @ w['output.weight'].T).numpy()


def test_logits_equal_those_of_metas_complex_rotation():
  torch = pytest.importorskip('torch', reason=WHY)
  cfg = our_config('llama2', num_kv_heads=2)
  weights = meta_weights(cfg)
  theirs = meta_forward(torch, weights, cfg, tokens())
  ours = reference.logits(in_memory(weights), convention('meta', 'llama'), cfg, tokens())
  assert theirs.std() > 0.5
  assert np.abs(ours - theirs).max() < 1e-10


def renamed(weights, theirs, ours, change=lambda name, array: array):
  """Tensors of one format under the names of another."""
  out = {}
  for part, name in theirs.names.items():
    for layer in range(3) if '*' in name else range(1):
      if theirs.name(part, layer) in weights:
        out[ours.name(part, layer)] = change(part, weights[theirs.name(part, layer)])
  return out


def test_formats_that_write_in_before_out_hold_the_transposed_matrices():
  cfg = our_config('llama2', num_kv_heads=2)
  weights, meta, easylm = meta_weights(cfg), convention('meta', 'llama'), convention('easylm', 'llama')
  turned = renamed(weights, meta, easylm, lambda part, array: array if part == 'embed' else array.T)
  want = reference.logits(in_memory(weights), meta, cfg, tokens())
  assert np.abs(reference.logits(in_memory(turned), easylm, cfg, tokens()) - want).max() < 1e-12


def test_a_matrix_of_heads_is_read_by_its_rows(monkeypatch):
  """llamax writes DNH, NHD: each row of wo, read two at a time, stands for H numbers."""
  monkeypatch.setattr(reference, '_BLOCK_NUMBERS', 2 * 10 * 48)
  cfg = our_config('llama31', num_kv_heads=2)
  rng = np.random.default_rng(0)
  flat = meta_weights(cfg) | {'output.weight': rng.standard_normal((97, 48))}
  hf, llamax = convention('hf', 'llama'), convention('llamax', 'llama')
  N, K, H, D = 6, 2, 10, 48

  def ours(part, array):
    shapes = {'wq': (D, N, H), 'wk': (D, K, H), 'wv': (D, K, H), 'wo': (N, H, D)}
    turned = array.T if array.ndim == 2 and part != 'embed' else array
    return turned.reshape(shapes.get(part, turned.shape))

  meta = convention('meta', 'llama')
  want = reference.logits(in_memory(renamed(flat, meta, hf)), hf, cfg, tokens())
  found = reference.logits(in_memory(renamed(flat, meta, llamax, ours)), llamax, cfg, tokens())
  assert np.abs(found - want).max() < 1e-12


def test_no_tensor_is_read_whole_when_it_is_large(monkeypatch):
  cfg = our_config('llama2', num_kv_heads=2)
  tensors = in_memory(meta_weights(cfg))
  want = reference.logits(tensors, convention('meta', 'llama'), cfg, tokens())
  for tensor in tensors.values():
    tensor.most = 0
  monkeypatch.setattr(reference, '_BLOCK_NUMBERS', 480)
  found = reference.logits(tensors, convention('meta', 'llama'), cfg, tokens())
  assert np.abs(found - want).max() < 1e-12
  assert max(tensor.most for tensor in tensors.values() if len(tensor.shape) > 1) == 10


def test_rounding_is_that_of_the_dtype():
  """What a tensor would be after a cast is what it is rounded to."""
  cfg, meta = our_config('llama2', num_kv_heads=2), convention('meta', 'llama')
  weights = {name: array.astype(np.float32) for name, array in meta_weights(cfg).items()}
  cast = {name: array.astype(ml_dtypes.bfloat16) for name, array in weights.items()}
  exact = reference.logits(in_memory(weights), meta, cfg, tokens())
  rounded = reference.logits(
    in_memory(weights), meta, cfg, tokens(), rounding=lambda part, layer: np.dtype(ml_dtypes.bfloat16)
  )
  assert np.array_equal(rounded, reference.logits(in_memory(cast), meta, cfg, tokens()))
  assert np.abs(rounded - exact).max() > 1e-3


@pytest.mark.parametrize(
  'change, message',
  [
    ({'mlp': 'geglu'}, 'model.mlp'),
    ({'rope_scaling': 'su'}, 'rope_scaling'),
    ({'d_ff': 57}, r'w1.weight is \[56, 48\]'),
    ({'num_layers': 4}, 'layers.3.attention_norm.weight is missing'),
    ({'vocab_size': 96}, 'tok_embeddings.weight'),
    ({'qk_norm': True}, 'q_norm has no place'),
  ],
)
def test_a_model_that_does_not_fit_is_a_users_mistake(change, message):
  weights = meta_weights(our_config('llama2', num_kv_heads=2))
  cfg = our_config('llama2', **{'num_kv_heads': 2} | change)
  with pytest.raises(UserError, match=message):
    reference.logits(in_memory(weights), convention('meta', 'llama'), cfg, tokens() % 96)


def test_an_unknown_format_has_no_convention():
  with pytest.raises(UserError, match=r'mtea.*meta'):
    convention('mtea', 'llama')
