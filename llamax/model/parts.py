"""The parts an architecture is composed of, found by the names in the config."""

import importlib
import importlib.util
import pkgutil
import re
from typing import Any

from llamax.core.config import ModelConfig
from llamax.core.errors import UserError, nearest

# kind -> name in the config -> where it stands. A part that is not here is llamax/model/variants/NAME.py,
# whose PARTS = {kind: object} holds it: a variant is one new file.
BUILT_IN = {
  'attention': {'gqa': 'llamax.model.attention:GroupedQueryAttention'},
  'mlp': {'swiglu': 'llamax.model.mlp:SwiGlu'},
  'norm': {'rmsnorm': 'llamax.model.layers:RMSNorm', 'layernorm': 'llamax.model.layers:LayerNorm'},
  'position': {'rope': 'llamax.model.rope:Rope', 'none': 'llamax.model.rope:NoPosition'},
}
_VARIANTS = 'llamax.model.variants'


def find_part(cfg: ModelConfig, kind: str) -> Any:
  """The class that `model.<kind>` names; UserError for an unknown name."""
  name = getattr(cfg, kind)
  if name in BUILT_IN[kind]:
    module, _, attribute = BUILT_IN[kind][name].partition(':')
    return getattr(importlib.import_module(module), attribute)
  # Only a plain word reaches the import system, only below the variants package: the name may come from a
  # checkpoint that someone else made.
  if re.fullmatch(r'[a-z][a-z0-9_]*', name) and importlib.util.find_spec(f'{_VARIANTS}.{name}'):
    parts = importlib.import_module(f'{_VARIANTS}.{name}').PARTS
    if kind in parts:
      return parts[kind]
  raise UserError(f'model.{kind}={name!r} is not known.{nearest(name, known_parts(kind))}')


def known_parts(kind: str) -> list[str]:
  """Names that `model.<kind>` may have."""
  package = importlib.import_module(_VARIANTS)
  names = [found.name for found in pkgutil.iter_modules(package.__path__)]
  variants = [n for n in names if kind in importlib.import_module(f'{_VARIANTS}.{n}').PARTS]
  return sorted([*BUILT_IN[kind], *variants])
