"""Maximal update parametrisation: how first weights with learning rates follow the width of a model.

Table 3 of Yang et al. 2022 (Tensor Programs V, arXiv 2203.03466) for Adam: the forward pass is the same, so a
checkpoint is as plain as any. With m = d_model / mup_base_width:

            std of the first weights     Adam's learning rate
  input     as it is                     as it is               embedding, norm scales, biases
  hidden    1 / sqrt(fan_in)             1 / m                  attention, feed-forward
  output    1 / fan_in                   1 / m                  lm_head

All this is relative to the model of width mup_base_width with the same head_dim, 1 / m of the heads, of d_ff:
every fan_in is m times as large as there. Scores are q.k / sqrt(head_dim), which stays as it is, too.
"""

from collections.abc import Mapping
from typing import Literal

from llamax.core.config import ModelConfig

Role = Literal['input', 'hidden', 'output']

# The letters whose sizes grow with the width. The others stay: H, V, E; L counts layers.
_WIDE = 'DNKF'


def role(letters: str) -> Role:
  """What a parameter is to the width, by its dimension letters: wide to wide, wide to narrow, anything else."""
  # H is a part of what the heads before it are.
  wide = [letter in _WIDE for letter in letters if letter not in 'LH']
  if sum(wide) == 2:
    return 'hidden'
  return 'output' if wide == [True, False] else 'input'


def width_ratio(cfg: ModelConfig) -> float:
  """m: 1 under the standard parametrisation."""
  return 1.0 if cfg.mup_base_width is None else cfg.d_model / cfg.mup_base_width


def init_factor(cfg: ModelConfig, letters: str) -> float:
  """What the first values of a parameter are multiplied by.

  `fan_in` follows the width by itself, as 1 / sqrt(fan_in); the other kinds of `model.init` know no width.
  """
  power = {'input': 0.0, 'hidden': -0.5, 'output': -1.0}[role(letters)]
  if cfg.init == 'fan_in' and power:
    power += 0.5
  return width_ratio(cfg) ** power


def lr_factor(cfg: ModelConfig, letters: str) -> float:
  """What Adam's learning rate of a parameter is multiplied by."""
  return 1.0 if role(letters) == 'input' else 1.0 / width_ratio(cfg)


def lr_factors(cfg: ModelConfig, dims: Mapping[str, str]) -> dict[str, float] | None:
  """Parameter path -> `lr_factor`; None under the standard parametrisation. dims: path -> letters."""
  if cfg.mup_base_width is None:
    return None
  return {path: lr_factor(cfg, letters) for path, letters in dims.items()}


def describe(cfg: ModelConfig) -> str:
  """The base model, in a line."""
  m = width_ratio(cfg)
  heads, kv_heads, d_ff = (n / m for n in (cfg.num_heads, cfg.num_kv_heads, cfg.d_ff))
  return (
    f'{m:g} times as wide as the base model ({cfg.mup_base_width}, {heads:g} heads over {kv_heads:g}, '
    f'd_ff {d_ff:g}); optim.learning_rate is of that one'
  )
