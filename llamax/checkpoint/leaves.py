"""Leaf names: a train state as the flat table that a checkpoint stores."""

from collections.abc import Mapping
from typing import Any

import jax

from llamax.core.errors import UserError
from llamax.core.types import PyTree

_LISTED = 12  # differing leaves that one message names


def named_leaves(tree: PyTree) -> dict[str, Any]:
  """{'params/layers/attn/wq': leaf}, in flattening order: the same for any container of the same fields."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  named = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}
  assert len(named) == len(paths) and '' not in named, f'leaf names are not unique: {list(named)}'
  return named


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
  """{'a/b': x} -> {'a': {'b': x}}: pure dicts, so that reading needs none of the classes that wrote."""
  nested: dict[str, Any] = {}
  for name, leaf in named.items():
    *parents, last = name.split('/')
    inner = nested
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[last] = leaf
  return nested


def leaf_table(named: Mapping[str, Any]) -> dict[str, str]:
  """{name: 'float32[2,16]'}: dtype, shape of each leaf."""
  return {name: f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]' for name, leaf in named.items()}


def require_same_leaves(found: Mapping[str, str], wanted: Mapping[str, str], where: str) -> None:
  """UserError unless both tables are equal. Orbax itself would cast a dtype in silence."""
  names = [*wanted, *(name for name in found if name not in wanted)]
  differing = [name for name in names if found.get(name) != wanted.get(name)]
  if not differing:
    return
  lines = [
    f'  {name}: wanted {wanted.get(name, "nothing")}, found {found.get(name, "nothing")}'
    for name in differing[:_LISTED]
  ]
  if len(differing) > _LISTED:
    lines.append(f'  ... {len(differing) - _LISTED} more')
  raise UserError(
    '\n'.join([f'{where} does not fit the arrays of this run:', *lines])
    + '\nModel, optimizer or dtypes are not those that it was saved with: give the config its saved values '
    "(the workdir's config.json has them) or take another workdir."
  )
