"""Meta's model in numpy: complex rotation of neighbours, written from its equations, apart from our code.

Also what fairscale's parallel layers make of a weight, in torch's words.
"""

import numpy as np


def logits(params, weights, tokens, positions):
  """[T, V] in float64. params: of params.json. weights: name -> float64 array. tokens, positions: [T]."""
  heads, dim = params['n_heads'], params['dim']
  keys, width = params.get('n_kv_heads', heads), params.get('head_dim', dim // heads)
  turn = np.exp(1j * np.outer(positions, frequencies(params, width)))
  mask = np.where(np.tril(np.ones((len(tokens),) * 2)) > 0, 0.0, -np.inf)
  if params.get('sliding_window'):
    mask[
      np.subtract.outer(np.arange(len(tokens)), np.arange(len(tokens))) >= params['sliding_window']
    ] = -np.inf
  eps = params['norm_eps']
  h = weights['tok_embeddings.weight'][tokens]
  for layer in range(params['n_layers']):
    at = f'layers.{layer}'
    x = rms(h, weights[f'{at}.attention_norm.weight'], eps)
    q = rotate((x @ weights[f'{at}.attention.wq.weight'].T).reshape(len(tokens), heads, width), turn)
    k = rotate((x @ weights[f'{at}.attention.wk.weight'].T).reshape(len(tokens), keys, width), turn)
    v = (x @ weights[f'{at}.attention.wv.weight'].T).reshape(len(tokens), keys, width)
    mixed = []
    for head in range(heads):
      own = head * keys // heads
      scores = q[:, head] @ k[:, own].T / np.sqrt(width) + mask
      share = np.exp(scores - scores.max(-1, keepdims=True))
      mixed.append(share / share.sum(-1, keepdims=True) @ v[:, own])
    h = h + np.concatenate(mixed, -1) @ weights[f'{at}.attention.wo.weight'].T
    x = rms(h, weights[f'{at}.ffn_norm.weight'], eps)
    gate = x @ weights[f'{at}.feed_forward.w1.weight'].T
    up = x @ weights[f'{at}.feed_forward.w3.weight'].T
    h = h + (gate / (1 + np.exp(-gate)) * up) @ weights[f'{at}.feed_forward.w2.weight'].T
  return rms(h, weights['norm.weight'], eps) @ weights['output.weight'].T


def rms(x, weight, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotate(x, turn):
  """Neighbouring numbers are one complex number."""
  pairs = x[..., ::2] + 1j * x[..., 1::2]
  turned = pairs * turn[:, None]
  return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def frequencies(params, width):
  """With Llama 3.1's bands (apply_scaling in Meta's model.py); factor 32 in the tied models of 3.2."""
  plain = params.get('rope_theta', 10_000.0) ** (-np.arange(0, width, 2) / width)
  if not params.get('use_scaled_rope'):
    return plain
  factor = params['test_factor']
  found = []
  for frequency in plain:
    wave = 2 * np.pi / frequency
    smooth = (8192 / wave - 1) / (4 - 1)
    if wave < 8192 / 4:
      found.append(frequency)
    elif wave > 8192:
      found.append(frequency / factor)
    else:
      found.append((1 - smooth) * frequency / factor + smooth * frequency)
  return np.array(found)


OUT, INTO = ('wq', 'wk', 'wv', 'w1', 'w3', 'output'), ('wo', 'w2')


def dim_of(name, llama3):
  """Along which fairscale cuts a weight; None: each rank has all of it."""
  kind = name.removesuffix('.weight').rsplit('.', 1)[-1]
  if kind == 'tok_embeddings':
    return 0 if llama3 else 1
  return 0 if kind in OUT else 1 if kind in INTO else None


def split(weights, count, llama3):
  """What each rank's state dict holds, from torch tensors."""
  ranks = [{} for _ in range(count)]
  for name, weight in weights.items():
    dim = dim_of(name, llama3)
    parts = [weight] * count if dim is None else [part.clone() for part in weight.chunk(count, dim)]
    for rank, part in zip(ranks, parts, strict=True):
      rank[name] = part
  return ranks


def join(ranks, llama3):
  import torch

  found = {}
  for name, first in ranks[0].items():
    dim = dim_of(name, llama3)
    found[name] = first if dim is None else torch.cat([rank[name] for rank in ranks], dim)
  return found
