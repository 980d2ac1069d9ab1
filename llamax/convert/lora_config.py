"""PEFT's adapter_config.json: which modules a LoRA changes, with what rank, by how much."""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from llamax.convert.errors import printable
from llamax.convert.json_file import Fields, read_json

FILE = 'adapter_config.json'

_MAX_RANK = 1 << 16
# Modules that 'all-linear' leaves out.
_NOT_LINEAR = ('model.embed_tokens', 'lm_head')
# Fields that say how an adapter was trained, or that are looked at below; any other that is set is refused.
_KNOWN = {
  *('peft_type', 'task_type', 'auto_mapping', 'base_model_name_or_path', 'revision', 'inference_mode'),
  *('peft_version', 'lora_dropout', 'megatron_core', 'qalora_group_size', 'ensure_weight_tying', 'eva_config'),
  *('runtime_config', 'ephemeral_gpu_offload', 'loftq_config', 'r', 'lora_alpha', 'use_rslora', 'bias'),
  *('target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern', 'rank_pattern'),
  *('alpha_pattern', 'init_lora_weights', 'modules_to_save'),
  'fan_in_fan_out',  # of GPT-2's layers: PEFT itself sets it aside for the Linear ones of a LLaMA
}
# Ways to begin that leave the weights of the model what they were.
_STARTS = (True, False, None, 'gaussian', 'orthogonal', 'eva')
_QUANTIFIER = re.compile(r'[*+{]|(?<![(*+}])\?')
_LAYER = re.compile(r'model\.layers\.(\d+)\.')


class AdapterConfig:
  """The adapter_config.json of a folder. Modules are named as in Hugging Face's model."""

  def __init__(self, folder: Path):
    """Raises FormatError: it is missing, damaged, or of a kind that is more than W + scale * B A."""
    self.path = folder / FILE
    self._fields = Fields(self.path, read_json(self.path))
    self._refuse()
    self._rank = self._fields.count('r', 8)
    self._alpha = self._fields.number('lora_alpha', 8.0)
    self._by_root = self._fields.flag('use_rslora', False)

  def _refuse(self) -> None:
    fields = self._fields
    if (kind := fields.text('peft_type')) != 'LORA':
      raise fields.wrong('peft_type', f'is {printable(kind)}; llamax merges LORA')
    if (bias := fields.text('bias', 'none')) != 'none':
      raise fields.wrong('bias', f'is {printable(bias)}; llamax merges adapters without biases')
    if fields.raw('modules_to_save'):
      raise fields.wrong('modules_to_save', 'is set: it replaces whole modules, which llamax does not merge')
    start = fields.raw('init_lora_weights')
    if not any(type(start) is type(known) and start == known for known in _STARTS):
      raise fields.wrong(
        'init_lora_weights',
        f'is {printable(repr(start))}: its base are other weights than those of the model; let PEFT convert it '
        'first (path_initial_model_for_weight_conversion)',
      )
    for name in fields.left():
      if name not in _KNOWN and (value := fields.raw(name)):
        raise fields.wrong(name, f'is {printable(repr(value))}: llamax does not merge this kind of LoRA')

  def covers(self, module: str, is_there: bool) -> bool:
    """Whether the adapter changes a module. is_there: whether it has tensors for it, if nothing else tells."""
    targets = self._fields.raw('target_modules')
    if targets is None:
      return is_there
    if not self._is_among('target_modules', targets, module):
      return False
    if isinstance(targets, list) and not self._is_in_layers(module):
      return False
    left_out = self._fields.raw('exclude_modules')
    return not left_out or not self._is_among('exclude_modules', left_out, module)

  def ranks(self, modules: Iterable[str]) -> dict[str, int]:
    """Module -> rank. Raises FormatError: there are no modules, or a rank is impossible."""
    found = {module: self._by_pattern('rank_pattern', module, self._rank) for module in modules}
    if not found:
      targets = printable(repr(self._fields.raw('target_modules')))
      raise self._fields.wrong('target_modules', f'is {targets}: none of them is a matrix of this model')
    for module, rank in found.items():
      if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise self._fields.wrong(
          'rank_pattern', f'is {printable(repr(rank))} for {module}; want 1 to {_MAX_RANK:,}'
        )
    return {module: int(rank) for module, rank in found.items()}

  def scale(self, module: str, rank: int) -> float:
    """What B A is multiplied by: alpha / r, or with the root of r (Kalajdzievski 2023)."""
    alpha = self._by_pattern('alpha_pattern', module, self._alpha)
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
      raise self._fields.wrong(
        'alpha_pattern', f'is {printable(repr(alpha))} for {module}; want a number above 0'
      )
    return alpha / (math.sqrt(rank) if self._by_root else rank)

  def _is_among(self, field: str, names: object, module: str) -> bool:
    if isinstance(names, str) and names.lower() == 'all-linear':
      return module not in _NOT_LINEAR
    if isinstance(names, str):
      return self._matches(field, names, [module])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
      raise self._fields.wrong(field, f'is {printable(repr(names))}; want texts')
    return any(f'.{module}'.endswith(f'.{name}') for name in names)

  def _is_in_layers(self, module: str) -> bool:
    layers = self._fields.raw('layers_to_transform')
    if layers is None or layers == []:
      return True
    layer = _LAYER.match(module)
    return layer is not None and int(layer[1]) in (layers if isinstance(layers, list) else [layers])

  def _by_pattern(self, field: str, module: str, default: float) -> float:
    """The value of the first pattern that an ending of the module's name matches."""
    table = self._fields.raw(field) or {}
    if not isinstance(table, dict):
      raise self._fields.wrong(field, f'is {printable(repr(table))}; want values by pattern')
    for pattern, value in table.items():
      if self._matches(field, pattern, _endings(module)):
        return value
    return default

  def _matches(self, field: str, pattern: str, texts: Iterable[str]) -> bool:
    # Someone else's regular expression: repetitions of repetitions would take for ever.
    if len(pattern) > 256 or len(_QUANTIFIER.findall(pattern)) > 3 or re.search(r'\)[*+{?]', pattern):
      raise self._fields.wrong(field, f'{printable(pattern)}: a pattern of so many repetitions is not tried')
    try:
      found = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
      raise self._fields.wrong(field, f'{printable(pattern)}: is no regular expression') from None
    return any(found.fullmatch(text) for text in texts)


def _endings(module: str) -> Iterator[str]:
  """'a.b.c' -> 'a.b.c', 'b.c', 'c'."""
  parts = module.split('.')
  for i in range(len(parts)):
    yield '.'.join(parts[i:])
