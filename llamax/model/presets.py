"""The table of named model sizes, each a full set of ModelConfig fields with its parameter count."""

from collections.abc import Mapping
from typing import Any

from llamax.core.errors import UserError, nearest

# What every decoder below shares; a family states its differences.
LLAMA: dict[str, Any] = {
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
  'rope_theta': 10_000.0,
  'rope_scaling': 'none',
  # Read only under a rope_scaling: the bands of Llama 3.1 and of YaRN (arXiv 2309.00071, section 3.2).
  'rope_factor': 1.0,
  'rope_low_freq_factor': 1.0,
  'rope_high_freq_factor': 4.0,
  'rope_beta_fast': 32.0,
  'rope_beta_slow': 1.0,
  # The papers do not print their initialisation; the published configurations say a normal of 0.02.
  'init': 'normal',
  'init_std': 0.02,
  'dropout': 0.0,
}
TIED = {'tie_embeddings': True}

# LLaMA: arXiv 2302.13971, table 2; d_ff and norm_eps from the params.json released with the weights.
LLAMA1 = LLAMA | {'vocab_size': 32_000, 'max_seq_len': 2048, 'norm_eps': 1e-6}
# Llama 2: arXiv 2307.09288, table 1.
LLAMA2 = LLAMA | {'vocab_size': 32_000, 'max_seq_len': 4096}
# Code Llama: arXiv 2308.12950, section 2.4; trained on 16,384 tokens. (Its 7B and 13B have 16 more ids.)
CODE_LLAMA = LLAMA | {'vocab_size': 32_000, 'max_seq_len': 16_384, 'rope_theta': 1e6}
# Llama 3: arXiv 2407.21783, table 3. 3.1 adds the long-context frequencies, 3.2 (model card) small tied sizes.
LLAMA3 = LLAMA | {'vocab_size': 128_256, 'max_seq_len': 8192, 'rope_theta': 500_000.0}
LLAMA31 = LLAMA3 | {
  'max_seq_len': 131_072,
  'rope_scaling': 'llama3',
  'rope_factor': 8.0,
  'rope_original_max_len': 8192,
}
LLAMA32 = LLAMA31 | {'rope_factor': 32.0} | TIED
# TinyLlama: arXiv 2401.02385, section 2.2.
TINY_LLAMA = LLAMA | {'vocab_size': 32_000, 'max_seq_len': 2048}
# Mistral 7B v0.1: arXiv 2310.06825, table 1 (context 8192; its config.json names 32,768 positions).
MISTRAL = LLAMA | {'vocab_size': 32_000, 'max_seq_len': 8192, 'sliding_window': 4096}
# Mistral 7B v0.3 (model card): no window, as v0.2 before it; a longer vocabulary.
MISTRAL_V03 = LLAMA | {'vocab_size': 32_768, 'max_seq_len': 32_768, 'rope_theta': 1e6}
# Qwen 2.5: arXiv 2412.15115, table 1, the config.json of the base models. Trained on 32,768 tokens; the
# 131,072 positions that some of those files name are reached with YaRN.
QWEN25 = LLAMA | {'max_seq_len': 32_768, 'rope_theta': 1e6, 'qkv_bias': True}
QWEN25_SMALL = QWEN25 | {'vocab_size': 151_936, 'norm_eps': 1e-6} | TIED
QWEN25_LARGE = QWEN25 | {'vocab_size': 152_064}
# Qwen 3: arXiv 2505.09388, table 1; trained on 32,768 tokens (section 3.2).
QWEN3 = LLAMA | {
  'vocab_size': 151_936,
  'max_seq_len': 32_768,
  'rope_theta': 1e6,
  'norm_eps': 1e-6,
  'qk_norm': True,
}
# Our own sizes for experiments: what writes to the residual starts smaller with depth (GPT-2, section 2.3).
# Most of the small ones share the embedding with the head: two tables would outweigh the layers.
OWN = LLAMA | {'vocab_size': 32_000, 'max_seq_len': 2048, 'init': 'depth_scaled'}

_SIZE = ('d_model', 'num_layers', 'num_heads', 'num_kv_heads', 'head_dim', 'd_ff')
# name, parameters (a tied embedding counts once), family, _SIZE
_TABLE: tuple[tuple[str, int, dict[str, Any], tuple[int, ...]], ...] = (
  ('llama_7b', 6_738_415_616, LLAMA1, (4096, 32, 32, 32, 128, 11_008)),
  ('llama_13b', 13_015_864_320, LLAMA1, (5120, 40, 40, 40, 128, 13_824)),
  ('llama_33b', 32_528_943_616, LLAMA1, (6656, 60, 52, 52, 128, 17_920)),
  ('llama_65b', 65_285_660_672, LLAMA1 | {'norm_eps': 1e-5}, (8192, 80, 64, 64, 128, 22_016)),
  ('llama2_7b', 6_738_415_616, LLAMA2, (4096, 32, 32, 32, 128, 11_008)),
  ('llama2_13b', 13_015_864_320, LLAMA2, (5120, 40, 40, 40, 128, 13_824)),
  ('llama2_70b', 68_976_648_192, LLAMA2, (8192, 80, 64, 8, 128, 28_672)),
  ('codellama_34b', 33_743_970_304, CODE_LLAMA, (8192, 48, 64, 8, 128, 22_016)),
  ('llama3_8b', 8_030_261_248, LLAMA3, (4096, 32, 32, 8, 128, 14_336)),
  ('llama3_70b', 70_553_706_496, LLAMA3, (8192, 80, 64, 8, 128, 28_672)),
  ('llama31_8b', 8_030_261_248, LLAMA31, (4096, 32, 32, 8, 128, 14_336)),
  ('llama31_70b', 70_553_706_496, LLAMA31, (8192, 80, 64, 8, 128, 28_672)),
  ('llama31_405b', 405_853_388_800, LLAMA31, (16_384, 126, 128, 8, 128, 53_248)),
  ('llama32_1b', 1_235_814_400, LLAMA32, (2048, 16, 32, 8, 64, 8192)),
  ('llama32_3b', 3_212_749_824, LLAMA32, (3072, 28, 24, 8, 128, 8192)),
  ('tinyllama_1b', 1_100_048_384, TINY_LLAMA, (2048, 22, 32, 4, 64, 5632)),
  ('mistral_7b', 7_241_732_096, MISTRAL, (4096, 32, 32, 8, 128, 14_336)),
  ('mistral_7b_v03', 7_248_023_552, MISTRAL_V03, (4096, 32, 32, 8, 128, 14_336)),
  ('qwen25_0_5b', 494_032_768, QWEN25_SMALL, (896, 24, 14, 2, 64, 4864)),
  ('qwen25_1_5b', 1_543_714_304, QWEN25_SMALL, (1536, 28, 12, 2, 128, 8960)),
  ('qwen25_3b', 3_085_938_688, QWEN25_SMALL, (2048, 36, 16, 2, 128, 11_008)),
  ('qwen25_7b', 7_615_616_512, QWEN25_LARGE | {'norm_eps': 1e-6}, (3584, 28, 28, 4, 128, 18_944)),
  ('qwen25_14b', 14_770_033_664, QWEN25_LARGE, (5120, 48, 40, 8, 128, 13_824)),
  ('qwen25_32b', 32_763_876_352, QWEN25_LARGE, (5120, 64, 40, 8, 128, 27_648)),
  ('qwen25_72b', 72_706_203_648, QWEN25_LARGE, (8192, 80, 64, 8, 128, 29_568)),
  ('qwen3_0_6b', 596_049_920, QWEN3 | TIED, (1024, 28, 16, 8, 128, 3072)),
  ('qwen3_1_7b', 1_720_574_976, QWEN3 | TIED, (2048, 28, 16, 8, 128, 6144)),
  ('qwen3_4b', 4_022_468_096, QWEN3 | TIED, (2560, 36, 32, 8, 128, 9728)),
  ('qwen3_8b', 8_190_735_360, QWEN3, (4096, 36, 32, 8, 128, 12_288)),
  ('qwen3_14b', 14_768_307_200, QWEN3, (5120, 40, 40, 8, 128, 17_408)),
  ('qwen3_32b', 32_762_123_264, QWEN3, (5120, 64, 64, 8, 128, 25_600)),
  # `make train`: learns the standard library's look in minutes on two CPU cores.
  ('llamax_quickstart', 1_000_576, OWN | TIED | {'vocab_size': 2048}, (128, 4, 4, 2, 32, 352)),
  # The shape of stories15M (github.com/karpathy/llama2.c), with more positions.
  ('llamax_15m', 15_191_712, OWN | TIED, (288, 6, 6, 6, 48, 768)),
  ('llamax_60m', 60_039_680, OWN, (512, 8, 8, 8, 64, 1536)),
  ('llamax_125m', 123_685_632, OWN | TIED, (768, 12, 12, 12, 64, 2560)),
  ('llamax_350m', 341_099_520, OWN | TIED, (1024, 24, 16, 16, 64, 2816)),
  ('llamax_1b', 980_494_336, OWN, (2048, 18, 16, 8, 128, 5632)),
)

# What a context extension would extend is, where no family says otherwise, all that the model was trained for.
PRESETS: dict[str, dict[str, Any]] = {
  name: {'rope_original_max_len': family['max_seq_len']} | family | dict(zip(_SIZE, size, strict=True))
  for name, _, family, size in _TABLE
}
NUM_PARAMS: dict[str, int] = {name: count for name, count, _, _ in _TABLE}


def fill(model: Mapping[str, Any]) -> dict[str, Any]:
  """The config's model section with each None replaced by its preset's value.

  A key that is absent stays absent, for `Config.from_mapping` to name.

  Raises:
    UserError: `preset` is missing or names no preset; the message has the nearest names.
  """
  name = model.get('preset')
  if not isinstance(name, str):
    raise UserError(f'model.preset={name!r}: want the name of a preset. Known: {", ".join(PRESETS)}.')
  if name not in PRESETS:
    raise UserError(f'model.preset={name!r} is not known.{nearest(name, PRESETS, 3)}')
  preset = PRESETS[name]
  return {key: preset.get(key) if value is None else value for key, value in model.items()}
