"""Meta's params.json as a ModelConfig, in both directions.

Its fields are those of ModelArgs in Meta's model.py. That code refuses unknown ones, so that what it has no
word for stands in a file of our own beside it. Mistral's releases have the same files and tensors, a few fields
of their own (mistral-inference, args.py).
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from llamax.convert.errors import printable
from llamax.convert.json_file import Fields
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError
from llamax.model.presets import LLAMA

# Llama 3.1's scaling, all of it constants in Meta's code; of the factor, Llama 3.2's tied models have another.
_LOW, _HIGH, _ORIGINAL_LEN = 1.0, 4.0, 8192
_FACTOR, _TIED_FACTOR = 8.0, 32.0
# Meta's own pairs of multiple_of, ffn_dim_multiplier.
_USUAL = ((256, None), (256, 1.5), (4096, 1.3), (1024, 1.3), (4096, 1.2), (256, 1.3), (256, 1.2))
# Bounds of an inference server, of no concern to the model.
_IDLE = ('max_batch_size', 'model_parallel_size')
_REFUSED = {
  'quantization_args': 'is there: these weights are quantised; take the checkpoint that they were made from',
  'lora_args': 'is there: merge the adapter first',
  'moe': 'is there: llamax has no mixture of experts',
}


@dataclasses.dataclass(frozen=True)
class Found:
  """What only the tensors say.

  tied: output.weight is absent, or the embedding once more. table_per_layer: each layer has a `rope.freqs`, as
  in LLaMA 1.
  """

  vocab_size: int
  d_ff: int
  tied: bool
  table_per_layer: bool


def read_model(fields: Fields, beside: Fields | None, found: Found) -> tuple[ModelConfig, str, list[str]]:
  """(config, family, notes).

  Args:
    beside: what `write_beside` wrote, where it is there.

  Raises:
    FormatError: a field is missing or impossible, or the tensors have other shapes than it says.
  """
  for name, problem in _REFUSED.items():
    if fields.raw(name):
      raise fields.wrong(name, problem)
  width, heads = fields.count('dim'), fields.count('n_heads')
  eps, theta = fields.number('norm_eps', 1e-5), fields.number('rope_theta', 10_000.0)
  window = fields.count('sliding_window', 0, least=0)
  _check_vocab_size(fields, found.vocab_size)
  _check_d_ff(fields, width, found.d_ff)
  length, notes = _max_seq_len(fields, beside, found)
  tied = _tied(beside, found)
  cfg = ModelConfig(
    **LLAMA
    | {
      'preset': 'none',
      'vocab_size': found.vocab_size,
      'd_model': width,
      'num_layers': fields.count('n_layers'),
      'num_heads': heads,
      'num_kv_heads': fields.count('n_kv_heads', heads),
      'head_dim': fields.count('head_dim', max(1, width // heads)),
      'd_ff': found.d_ff,
      'max_seq_len': length,
      'norm_eps': eps,
      'tie_embeddings': tied,
      'sliding_window': window,
      'rope_theta': theta,
      **_rope_scaling(fields, beside, tied, length),
    }
  )
  _check_heads(cfg, fields)
  unknown = [name for name in fields.left() if name not in _IDLE]
  if unknown:
    notes.append(f'{fields.path}: not used: {printable(", ".join(unknown))}')
  mistral = fields.raw('hidden_dim') is not None
  return cfg, 'mistral' if mistral else 'llama', notes


def _tied(beside: Fields | None, found: Found) -> bool:
  if beside is None:
    return found.tied
  tied = beside.flag('tie_embeddings', found.tied)
  if tied and not found.tied:
    raise beside.wrong('tie_embeddings', 'is true, but output.weight is not tok_embeddings.weight')
  return tied


def _rope_scaling(fields: Fields, beside: Fields | None, tied: bool, length: int) -> dict[str, Any]:
  scaled = fields.flag('use_scaled_rope', False)
  factor = 1.0
  if scaled:
    factor = _TIED_FACTOR if tied else _FACTOR
    factor = beside.number('rope_factor', factor) if beside else factor
  return {
    'rope_scaling': 'llama3' if scaled else 'none',
    'rope_factor': factor,
    'rope_original_max_len': _ORIGINAL_LEN if scaled else length,
    'rope_low_freq_factor': _LOW,
    'rope_high_freq_factor': _HIGH,
    'rope_beta_fast': 32.0,
    'rope_beta_slow': 1.0,
  }


def _check_vocab_size(fields: Fields, found: int) -> None:
  said = fields.raw('vocab_size')
  # LLaMA 1, 2 say -1: whatever the tokenizer has.
  if said not in (None, -1, found) or isinstance(said, bool):
    raise fields.wrong('vocab_size', f'is {printable(repr(said))}; tok_embeddings.weight has {found:,} rows')


def _check_heads(cfg: ModelConfig, fields: Fields) -> None:
  if cfg.num_heads % cfg.num_kv_heads:
    raise fields.wrong('n_kv_heads', f'is {cfg.num_kv_heads}, which does not divide the {cfg.num_heads} heads')
  if cfg.head_dim % 2:
    raise fields.wrong('n_heads', f'gives heads of width {cfg.head_dim}; rotary positions want an even one')


def _check_d_ff(fields: Fields, width: int, found: int) -> None:
  """The tensors decide; what the fields say must agree."""
  multiple = fields.count('multiple_of', 256)
  factor = fields.number('ffn_dim_multiplier', 1.0) if fields.raw('ffn_dim_multiplier') is not None else None
  said = fields.count('hidden_dim', 0, least=0) or hidden_dim(width, multiple, factor)
  if said != found:
    name = 'hidden_dim' if fields.raw('hidden_dim') else 'multiple_of'
    raise fields.wrong(name, f'makes the feed-forward {said:,} wide; the tensors have {found:,}')


def hidden_dim(width: int, multiple_of: int, ffn_dim_multiplier: float | None) -> int:
  """Meta's rule (model.py, FeedForward): two thirds of 4 * width, times the multiplier, rounded up."""
  hidden = int(2 * (4 * width) / 3)
  if ffn_dim_multiplier is not None:
    hidden = int(ffn_dim_multiplier * hidden)
  return multiple_of * -(-hidden // multiple_of)


def _multipliers(width: int, d_ff: int) -> Iterator[tuple[int, float | None]]:
  """Meta's own pairs, then those with the fewest digits."""
  yield from _USUAL
  rounded = [1 << bits for bits in range(8, -1, -1) if d_ff % (1 << bits) == 0]
  yield from ((multiple, None) for multiple in rounded)
  for multiple in rounded:
    # The middle of what is rounded up to d_ff.
    middle = (d_ff - multiple / 2 + 1) / int(8 * width / 3)
    yield from ((multiple, round(middle, digits)) for digits in range(1, 16))


def _max_seq_len(fields: Fields, beside: Fields | None, found: Found) -> tuple[int, list[str]]:
  """The file has no word for it: by the release that the other fields point to."""
  if fields.raw('max_seq_len') is not None:
    return fields.count('max_seq_len'), []
  if beside is not None:
    return beside.count('max_seq_len'), []
  theta = fields.number('rope_theta', 10_000.0)
  if fields.flag('use_scaled_rope', False):
    length, of = 131_072, 'Llama 3.1'
  elif theta == 500_000.0:
    length, of = 8192, 'Llama 3'
  elif fields.raw('hidden_dim') is not None:
    length, of = (8192, 'Mistral 0.1') if theta == 10_000.0 else (32_768, 'Mistral 0.2')
  elif theta == 1e6:
    length, of = 16_384, 'Code Llama'
  else:
    length, of = (2048, 'LLaMA 1') if found.table_per_layer else (4096, 'Llama 2')
  return length, [f'{fields.path} does not say how many positions the model is for: {length}, as {of}']


def write_params(cfg: ModelConfig, family: str) -> dict[str, Any]:
  """The content of params.json; fields that older code of Meta does not know are there only when needed.

  Raises:
    UserError: it has no words for what `cfg` is.
  """
  mistral = family == 'mistral'
  _require_sayable(cfg, mistral)
  found: dict[str, Any] = {'dim': cfg.d_model, 'n_layers': cfg.num_layers, 'n_heads': cfg.num_heads}
  if mistral:
    found |= {'head_dim': cfg.head_dim, 'hidden_dim': cfg.d_ff, 'n_kv_heads': cfg.num_kv_heads}
    if cfg.sliding_window:
      found['sliding_window'] = cfg.sliding_window
  elif cfg.num_kv_heads != cfg.num_heads:
    found['n_kv_heads'] = cfg.num_kv_heads
  found |= {'vocab_size': cfg.vocab_size, 'norm_eps': cfg.norm_eps}
  if not mistral:
    pairs = _multipliers(cfg.d_model, cfg.d_ff)
    multiple, factor = next(pair for pair in pairs if hidden_dim(cfg.d_model, *pair) == cfg.d_ff)
    found['multiple_of'] = multiple
    if factor is not None:
      found['ffn_dim_multiplier'] = factor
  if cfg.rope_theta != 10_000.0:
    found['rope_theta'] = cfg.rope_theta
  if cfg.rope_scaling == 'llama3':
    found['use_scaled_rope'] = True
  return found


def write_beside(cfg: ModelConfig) -> dict[str, Any]:
  """What params.json has no word for."""
  said = {'max_seq_len': cfg.max_seq_len, 'tie_embeddings': cfg.tie_embeddings}
  return said | {'rope_factor': cfg.rope_factor} if cfg.rope_scaling == 'llama3' else said


def _require_sayable(cfg: ModelConfig, mistral: bool) -> None:
  wanted: dict[str, tuple[Any, ...]] = {
    'attention': ('gqa',),
    'mlp': ('swiglu',),
    'norm': ('rmsnorm',),
    'position': ('rope',),
    'qk_norm': (False,),
    'qkv_bias': (False,),
    'out_bias': (False,),
    'mlp_bias': (False,),
    'rope_scaling': ('none',) if mistral else ('none', 'llama3'),
  }
  if not mistral:
    wanted |= {'sliding_window': (0,)}
  if cfg.rope_scaling == 'llama3':
    wanted |= {
      'rope_factor': (_FACTOR, _TIED_FACTOR),
      'rope_low_freq_factor': (_LOW,),
      'rope_high_freq_factor': (_HIGH,),
      'rope_original_max_len': (_ORIGINAL_LEN,),
    }
  for name, values in wanted.items():
    if getattr(cfg, name) not in values:
      said = ' or '.join(map(str, values))
      raise UserError(
        f'model.{name}={getattr(cfg, name)}: params.json has no word for it, Meta has {said}; '
        'write another format'
      )
  if not mistral and cfg.head_dim * cfg.num_heads != cfg.d_model:
    raise UserError(
      f'model.head_dim={cfg.head_dim}: Meta has d_model / num_heads = {cfg.d_model}/{cfg.num_heads}; '
      'write another format'
    )


def frequencies(rope_theta: float, head_dim: int) -> list[float]:
  """`rope.freqs`: radians per position of each pair, without scaling (LLaMA 1, 2 store them)."""
  return [math.pow(rope_theta, -2 * pair / head_dim) for pair in range(head_dim // 2)]


def is_llama3(cfg: ModelConfig) -> bool:
  """Whether Meta's code for Llama 3 runs it: embeddings split by vocabulary, no `rope.freqs`."""
  return cfg.rope_scaling == 'llama3' or cfg.rope_theta == 500_000.0
