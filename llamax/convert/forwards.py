"""Logits of a written checkpoint by the programs that are going to run it: transformers, llamax."""

import importlib.util
import os
from typing import Any

import numpy as np

from llamax.convert.source import Entry, Source
from llamax.core.config import ComputeConfig
from llamax.core.errors import UserError

_BLOCK_NUMBERS = 1 << 24  # of the unembedding in memory at a time
_COMPUTE = ComputeConfig(
  param_dtype='float32',
  compute_dtype='float32',
  attention='xla',
  splash_block=128,
  remat='none',
  scan_layers=True,
  loss_chunks=1,
  compilation_cache=None,
)


def why_not_transformers(target: Source) -> str | None:
  """What keeps transformers from loading a Hugging Face directory; None: nothing does."""
  if not all(importlib.util.find_spec(name) for name in ('torch', 'transformers')):
    return 'transformers is not installed'
  if not any(file.suffix == '.safetensors' for file in target.files):
    return 'transformers would unpickle this'
  needed = 4 * sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in target.entries.values())
  free = _free_bytes()
  if needed > free // 2:
    return f'transformers would take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free'
  return None


def _free_bytes() -> int:
  return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def by_transformers(target: Source, tokens_BT: np.ndarray) -> np.ndarray:
  """[B, T, V] of a Hugging Face directory, loaded by transformers, computed in float32.

  Raises:
    UserError: transformers refuses it, or finds tensors missing or too many.
  """
  import torch
  import transformers

  try:
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
      target.path,
      dtype=torch.float32,
      attn_implementation='eager',
      use_safetensors=True,
      local_files_only=True,
      trust_remote_code=False,
      output_loading_info=True,
    )
  except (ValueError, OSError, RuntimeError, KeyError) as error:
    raise UserError(f'transformers does not load {target.path}: {error}') from error
  model, found = loaded
  wrong = {kind: sorted(map(str, found.get(kind) or ())) for kind in ('missing_keys', 'unexpected_keys')}
  if any(wrong.values()):
    listed = ', '.join(f'{kind}: {names[:4]}' for kind, names in wrong.items() if names)
    raise UserError(f'transformers finds other tensors in {target.path}: {listed}')
  with torch.no_grad():
    return model.eval()(torch.from_numpy(tokens_BT.astype(np.int64)), use_cache=False).logits.numpy()


def by_llamax(target: Source, tokens_BT: np.ndarray) -> np.ndarray:
  """[B, T, V] of a llamax checkpoint by llamax's own layers in float32, one of them in memory at a time.

  Raises:
    UserError: a tensor is missing or misshapen.
  """
  import jax
  import jax.numpy as jnp

  from llamax.model.attention import Tokens
  from llamax.model.llama import Block
  from llamax.model.parts import find_part

  cfg = target.cfg
  positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
  tokens = Tokens(
    positions_BT, jnp.ones_like(positions_BT), find_part(cfg, 'position').tables(cfg, positions_BT)
  )
  block, norm = Block(cfg, _COMPUTE, dropout_on=False), find_part(cfg, 'norm')(cfg.norm_eps, 'float32')

  @jax.jit
  def layer(params: Any, x_BTD: Any) -> Any:
    return block.apply({'params': params}, x_BTD, None, tokens)[0]

  table = target.entry('embed/table')
  x_BTD = jnp.asarray(np.stack([[_exact(table, i, i + 1)[0] for i in row] for row in tokens_BT.tolist()]))
  # TPUs, newer GPUs multiply float32 in fewer bits unless they are asked not to.
  with jax.default_matmul_precision('float32'):
    for i in range(cfg.num_layers):
      # Waited for: what runs ahead would hold the weights of many layers.
      x_BTD = layer(_tree(target, f'layers/{i}/'), x_BTD).block_until_ready()
    hidden_BTD = norm.apply({'params': _tree(target, 'final_norm/')}, x_BTD)
  return _unembed(target, np.asarray(hidden_BTD))


def _tree(target: Source, prefix: str) -> dict[str, Any]:
  """The parameters under `prefix`, nested as the model takes them; it casts each when it is needed."""
  import jax.numpy as jnp

  tree: dict[str, Any] = {}
  for ours in target.places:
    if ours.startswith(prefix):
      *parents, name = ours.removeprefix(prefix).split('/')
      node, entry = tree, target.entry(ours)
      for parent in parents:
        node = node.setdefault(parent, {})
      node[name] = jnp.asarray(entry.read(0, entry.shape[0]))
  return tree


def _unembed(target: Source, hidden_BTD: np.ndarray) -> np.ndarray:
  cfg = target.cfg
  head = target.entry('embed/table' if cfg.tie_embeddings else 'lm_head/kernel')
  logits_BTV = np.zeros((*hidden_BTD.shape[:2], cfg.vocab_size), np.float32)
  step = max(1, _BLOCK_NUMBERS // head.shape[1])
  for start in range(0, head.shape[0], step):
    piece = slice(start, min(start + step, head.shape[0]))
    block = _exact(head, piece.start, piece.stop)
    if cfg.tie_embeddings:
      logits_BTV[..., piece] = hidden_BTD @ block.T
    else:
      logits_BTV += hidden_BTD[..., piece] @ block
  return logits_BTV


def _exact(entry: Entry, start: int, stop: int) -> np.ndarray:
  return entry.read(start, stop).astype(np.float32)
