"""The logits of a checkpoint in float64, computed from its tensors as they lie in the file.

This is what a conversion is judged by, so it shares nothing with one: neither our layouts nor our model.
Formulas are taken from the papers; each format is described anew in llamax/convert/conventions.py.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from llamax.core.config import ModelConfig
from llamax.core.errors import UserError

_BLOCK_NUMBERS = 1 << 22  # of one tensor in memory at a time, in float64


class Tensor(Protocol):
  """A tensor of a file: its rows [start:stop] are read when they are needed."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  def read(self, start: int, stop: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Convention:
  """How a format writes a LLaMA.

  names: part -> name of its tensor, the layer as '*'. A part that a format cannot have is left out.
  out_first: matrices are [out, in], else [in, out].
  interleaved: the rotation turns numbers (2i, 2i + 1) of a head, else (i, i + H / 2).
  """

  names: Mapping[str, str]
  out_first: bool
  interleaved: bool

  def name(self, part: str, layer: int = 0) -> str:
    """Raises UserError: the format has no such part."""
    if part not in self.names:
      raise UserError(f'{part} has no place in this format: it cannot hold such a model')
    return self.names[part].replace('*', str(layer))


def logits(
  tensors: Mapping[str, Tensor],
  convention: Convention,
  cfg: ModelConfig,
  tokens_BT: np.ndarray,
  rounding: Callable[[str, int], np.dtype | None] = lambda part, layer: None,
) -> np.ndarray:
  """Logits in float64.

  Args:
    tensors: name in the format -> tensor.
    tokens_BT: ids, each row a text of its own from position 0 on.
    rounding: (part, layer) -> dtype that this tensor is rounded to first; None: taken as it is.

  Returns:
    [B, T, V].

  Raises:
    UserError: the model has parts that are not known here; a tensor is missing or of another size.
  """
  _require_known(cfg)
  weights = _Weights(tensors, convention, rounding)
  x_BTD = weights.rows('embed', 0, tokens_BT, (cfg.vocab_size, cfg.d_model))
  angles_TP = np.arange(tokens_BT.shape[1])[:, None] * frequencies(cfg)[None]
  for layer in range(cfg.num_layers):
    normed_BTD = _rms_norm(x_BTD, weights.vector('attn_norm', layer, cfg.d_model), cfg.norm_eps)
    x_BTD = x_BTD + _attention(normed_BTD, weights, layer, cfg, angles_TP)
    normed_BTD = _rms_norm(x_BTD, weights.vector('mlp_norm', layer, cfg.d_model), cfg.norm_eps)
    x_BTD = x_BTD + _feed_forward(normed_BTD, weights, layer, cfg)
  normed_BTD = _rms_norm(x_BTD, weights.vector('final_norm', 0, cfg.d_model), cfg.norm_eps)
  if cfg.tie_embeddings:
    return weights.product('embed', 0, normed_BTD, cfg.vocab_size, out_first=True)
  return weights.product('head', 0, normed_BTD, cfg.vocab_size)


def frequencies(cfg: ModelConfig) -> np.ndarray:
  """Radians per position of each of the H / 2 pairs (Su et al. 2021, 3.2.2), in float64.

  Raises:
    UserError: `rope_scaling` is not known here.
  """
  pairs, theta = cfg.head_dim // 2, float(cfg.rope_theta)
  plain = np.array([theta ** (-2.0 * i / cfg.head_dim) for i in range(pairs)])
  if cfg.rope_scaling == 'none':
    return plain
  if cfg.rope_scaling == 'linear':  # Chen et al. 2023, eq. 4
    return plain / cfg.rope_factor
  if cfg.rope_scaling == 'llama3':
    return np.array([_llama3(f, cfg) for f in plain])
  if cfg.rope_scaling == 'yarn':
    return np.array([_yarn(i, f, cfg) for i, f in enumerate(plain)])
  raise UserError(f'model.rope_scaling={cfg.rope_scaling!r} is not known to the reference')


def _llama3(frequency: float, cfg: ModelConfig) -> float:
  """The three bands of wavelengths of Llama 3.1 (its released `apply_scaling`)."""
  wavelength = 2 * math.pi / frequency
  longest_kept = cfg.rope_original_max_len / cfg.rope_high_freq_factor
  shortest_squeezed = cfg.rope_original_max_len / cfg.rope_low_freq_factor
  if wavelength < longest_kept:
    return frequency
  if wavelength > shortest_squeezed:
    return frequency / cfg.rope_factor
  smooth = cfg.rope_original_max_len / wavelength - cfg.rope_low_freq_factor
  smooth /= cfg.rope_high_freq_factor - cfg.rope_low_freq_factor
  return (1 - smooth) * frequency / cfg.rope_factor + smooth * frequency


def _yarn(pair: int, frequency: float, cfg: ModelConfig) -> float:
  """NTK-by-parts with the ramp over pairs of the released YaRN code (Peng et al. 2023, 3.2)."""

  def correction(rotations: float) -> float:
    ratio = cfg.rope_original_max_len / (rotations * 2 * math.pi)
    return cfg.head_dim * math.log(ratio) / (2 * math.log(cfg.rope_theta))

  low = max(math.floor(correction(cfg.rope_beta_fast)), 0)
  high = min(math.ceil(correction(cfg.rope_beta_slow)), cfg.head_dim - 1)
  ramp = (pair - low) / (high - low if high != low else 0.001)
  interpolated = min(max(ramp, 0.0), 1.0)
  return interpolated * frequency / cfg.rope_factor + (1 - interpolated) * frequency


def _magnitude(cfg: ModelConfig) -> float:
  """YaRN's factor on queries as on keys: 1 / sqrt(t) of Peng et al. 2023, eq. 15."""
  if cfg.rope_scaling != 'yarn' or cfg.rope_factor <= 1:
    return 1.0
  return 0.1 * math.log(cfg.rope_factor) + 1.0


def _rotated(x_BTNH: np.ndarray, angles_TP: np.ndarray, cfg: ModelConfig, interleaved: bool) -> np.ndarray:
  cos, sin = (turn(angles_TP)[None, :, None] * _magnitude(cfg) for turn in (np.cos, np.sin))
  half = cfg.head_dim // 2
  a, b = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
  out_BTNH = np.empty_like(x_BTNH)
  out_BTNH[..., a] = x_BTNH[..., a] * cos - x_BTNH[..., b] * sin
  out_BTNH[..., b] = x_BTNH[..., a] * sin + x_BTNH[..., b] * cos
  return out_BTNH


def _attention(
  x_BTD: np.ndarray, weights: '_Weights', layer: int, cfg: ModelConfig, angles_TP: np.ndarray
) -> np.ndarray:
  heads = {'q': cfg.num_heads, 'k': cfg.num_kv_heads, 'v': cfg.num_kv_heads}
  found = {}
  for of, count in heads.items():
    y_BTX = weights.product(f'w{of}', layer, x_BTD, count * cfg.head_dim)
    if cfg.qkv_bias:
      y_BTX = y_BTX + weights.vector(f'b{of}', layer, count * cfg.head_dim)
    y_BTNH = y_BTX.reshape(*x_BTD.shape[:2], count, cfg.head_dim)
    if of != 'v':
      if cfg.qk_norm:
        y_BTNH = _rms_norm(y_BTNH, weights.vector(f'{of}_norm', layer, cfg.head_dim), cfg.norm_eps)
      if cfg.position == 'rope':
        y_BTNH = _rotated(y_BTNH, angles_TP, cfg, weights.convention.interleaved)
    found[of] = y_BTNH
  context_BTX = _softmax_attention(found['q'], found['k'], found['v'], cfg.sliding_window)
  y_BTD = weights.product('wo', layer, context_BTX, cfg.d_model)
  return y_BTD + weights.vector('bo', layer, cfg.d_model) if cfg.out_bias else y_BTD


def _softmax_attention(q_BTNH: np.ndarray, k_BTKH: np.ndarray, v_BTKH: np.ndarray, window: int) -> np.ndarray:
  """[B, T, N * H]. Query head n looks at key head n // (N / K), at itself and before, within the window."""
  batch, length, num_heads, head_dim = q_BTNH.shape
  group = num_heads // k_BTKH.shape[2]
  out_BTNH = np.empty_like(q_BTNH)
  t, s = np.arange(length)[:, None], np.arange(length)[None]
  hidden_TS = (s > t) | (s <= t - window if window else False)
  for b in range(batch):
    for n in range(num_heads):
      scores_TS = q_BTNH[b, :, n] @ k_BTKH[b, :, n // group].T / math.sqrt(head_dim)
      scores_TS = np.where(hidden_TS, -np.inf, scores_TS)
      weights_TS = np.exp(scores_TS - scores_TS.max(axis=1, keepdims=True))
      out_BTNH[b, :, n] = weights_TS / weights_TS.sum(axis=1, keepdims=True) @ v_BTKH[b, :, n // group]
  return out_BTNH.reshape(batch, length, num_heads * head_dim)


def _feed_forward(x_BTD: np.ndarray, weights: '_Weights', layer: int, cfg: ModelConfig) -> np.ndarray:
  def dense(part: str, x: np.ndarray, width: int) -> np.ndarray:
    y = weights.product(f'w_{part}', layer, x, width)
    return y + weights.vector(f'b_{part}', layer, width) if cfg.mlp_bias else y

  gate_BTF = dense('gate', x_BTD, cfg.d_ff)
  # tanh where the textbook has 1 / (1 + exp(-x)): that overflows.
  silu_BTF = gate_BTF * 0.5 * (1 + np.tanh(gate_BTF / 2))
  return dense('down', silu_BTF * dense('up', x_BTD, cfg.d_ff), cfg.d_model)


def _rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
  return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * scale


class _Weights:
  """Tensors by part, read in pieces, each number in float64."""

  def __init__(
    self,
    tensors: Mapping[str, Tensor],
    convention: Convention,
    rounding: Callable[[str, int], np.dtype | None],
  ):
    self.tensors, self.convention, self._rounding = tensors, convention, rounding

  def vector(self, part: str, layer: int, size: int) -> np.ndarray:
    tensor = self._find(part, layer, size)
    return self._exact(tensor, part, layer, 0, tensor.shape[0]).reshape(size)

  def rows(self, part: str, layer: int, ids: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The rows of a [V, D] table that `ids` name, as [*ids.shape, D]."""
    tensor = self._find(part, layer, shape[0] * shape[1])
    wanted, places = np.unique(ids, return_inverse=True)
    if wanted[0] < 0 or wanted[-1] >= shape[0]:
      raise UserError(
        f'the probe has ids from {wanted[0]} to {wanted[-1]}; the vocabulary ends at {shape[0] - 1}'
      )
    found = np.concatenate([self._exact(tensor, part, layer, i, i + 1) for i in wanted.tolist()])
    return found.reshape(-1, shape[1])[places.reshape(ids.shape)]

  def product(
    self, part: str, layer: int, x: np.ndarray, width: int, out_first: bool | None = None
  ) -> np.ndarray:
    """x [..., in] times a matrix to `width` numbers, whichever way the format writes it."""
    out_first = self.convention.out_first if out_first is None else out_first
    tensor = self._find(part, layer, x.shape[-1] * width)
    first, other = (width, x.shape[-1]) if out_first else (x.shape[-1], width)
    y = np.zeros((*x.shape[:-1], width))
    for start, block in self._blocks(tensor, part, layer):
      matrix = block.reshape(-1, other)
      at = start * (first // tensor.shape[0])  # a dim of heads stands for several numbers
      piece = slice(at, at + len(matrix))
      if out_first:
        y[..., piece] = x @ matrix.T
      else:
        y += x[..., piece] @ matrix
    return y

  def _find(self, part: str, layer: int, size: int) -> Tensor:
    name = self.convention.name(part, layer)
    tensor = self.tensors.get(name)
    if tensor is None:
      raise UserError(f'{name} is missing: the config asks for it')
    if math.prod(tensor.shape) != size or not tensor.shape:
      raise UserError(f'{name} is {list(tensor.shape)}: want {size:,} numbers, as the config says')
    return tensor

  def _blocks(self, tensor: Tensor, part: str, layer: int) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, _BLOCK_NUMBERS // max(1, math.prod(tensor.shape[1:])))
    for start in range(0, tensor.shape[0], step):
      stop = min(start + step, tensor.shape[0])
      yield start, self._exact(tensor, part, layer, start, stop)

  def _exact(self, tensor: Tensor, part: str, layer: int, start: int, stop: int) -> np.ndarray:
    rows, dtype = tensor.read(start, stop), self._rounding(part, layer)
    # Over float32, which holds what any of the formats can: bfloat16 knows few other casts.
    rows = rows if dtype is None else rows.astype(np.float32).astype(dtype)
    return rows.astype(np.float32).astype(np.float64) if rows.dtype != np.float64 else rows


def _require_known(cfg: ModelConfig) -> None:
  known = {'attention': ('gqa',), 'mlp': ('swiglu',), 'norm': ('rmsnorm',), 'position': ('rope', 'none')}
  for part, names in known.items():
    if getattr(cfg, part) not in names:
      raise UserError(
        f'model.{part}={getattr(cfg, part)!r} is not known to the reference, which knows {", ".join(names)}'
      )
