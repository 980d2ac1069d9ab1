"""Parameter path -> dimension letters -> mesh axes; the only place that writes a PartitionSpec."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llamax.core.errors import UserError, divisors_near, multiples_near
from llamax.core.types import PyTree
from llamax.parallel.mesh import BATCH_AXES

# Letters that are not listed stay whole on every device.
PARAM_AXES: dict[str, str | None] = {
  'D': 'fsdp',
  'N': 'tensor',
  'K': 'tensor',
  'F': 'tensor',
  'V': 'tensor',
  'H': None,
  'L': None,
}
# Activations keep their width whole: what fsdp splits is the batch.
ACTIVATION_AXES: dict[str, str | tuple[str, ...]] = {
  'B': BATCH_AXES,
  'N': 'tensor',
  'K': 'tensor',
  'F': 'tensor',
  'V': 'tensor',
}
# What a train state holds beside parameters or their moments.
SCALARS = {'step': '', 'count': ''}


def param_spec(letters: str) -> P:
  return P(*(PARAM_AXES[letter] for letter in letters))


def parts_of(letters: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
  """How often a mesh of these axis sizes cuts each dim of a parameter."""
  return tuple(sizes.get(PARAM_AXES[letter] or '', 1) for letter in letters)


def activation_spec(letters: str) -> P:
  return P(*(ACTIVATION_AXES.get(letter) for letter in letters))


def shard(x: jax.Array, letters: str) -> jax.Array:
  """Pins the layout of an activation; does nothing where no mesh is set."""
  if len(letters) != x.ndim:
    raise ValueError(f'{letters!r} names {len(letters)} dims of an array with {x.ndim}')
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, activation_spec(letters))


def path_of(key_path: tuple[Any, ...]) -> str:
  """A jax key path as 'opt_state/1/mu/layers/attn/wq'."""
  return jax.tree_util.keystr(key_path, simple=True, separator='/')


def letters_of(path: str, ndim: int, dims: Mapping[str, str]) -> tuple[str, str]:
  """The one rule that fits an array: (rule, letters). Moments share the ending of their parameter's path.

  Args:
    path: of the array in the train state.
    ndim: its number of dimensions.
    dims: parameter path -> letters, from `llamax.model.llama.param_dims`.
  """
  rules = {**dims, **SCALARS}
  hits = [rule for rule in rules if path == rule or path.endswith('/' + rule)]
  if len(hits) != 1 or len(rules[hits[0]]) != ndim:
    found = {hit: rules[hit] for hit in hits}
    raise ValueError(f'{path} has {ndim} dims; want exactly one rule of that many letters, matched {found}')
  return hits[0], rules[hits[0]]


def tree_specs(tree: PyTree, dims: Mapping[str, str]) -> PyTree:
  """A PartitionSpec for each array; ValueError where an array has not exactly one rule, or a rule no array."""
  used = set()

  def spec(key_path, leaf):
    rule, letters = letters_of(path_of(key_path), leaf.ndim, dims)
    used.add(rule)
    return param_spec(letters)

  specs = jax.tree_util.tree_map_with_path(spec, tree)
  unused = set(dims) - used
  if unused:
    raise ValueError(f'sharding rules that no array uses: {sorted(unused)}')
  return specs


def tree_shardings(tree: PyTree, mesh: jax.sharding.Mesh, dims: Mapping[str, str]) -> PyTree:
  """A NamedSharding for each array of a train state, or of its parameters."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree_specs(tree, dims))


def constrain(tree: PyTree, dims: Mapping[str, str]) -> PyTree:
  """Pins parameters or gradients to their rules' layout; does nothing where no mesh is set."""
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  return jax.tree.map(jax.lax.with_sharding_constraint, tree, tree_specs(tree, dims))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The layout of a [B, T] batch."""
  return NamedSharding(mesh, activation_spec('BT'))


def one_row_each(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The layout of an array with a row for every device, none held twice."""
  return NamedSharding(mesh, P(mesh.axis_names))


def check_fits(
  sizes: dict[str, int], batch_size: int, grad_accum: int, dims: dict[str, int], eval_rows: int | None = None
) -> None:
  """UserError unless the batch divides over the batch axes, each letter of `dims` over its mesh axis.

  Args:
    sizes: axis -> devices.
    batch_size: global rows per step. grad_accum: microbatches they are cut into.
    dims: letter -> size, for the letters that parameters are split by.
    eval_rows: global rows of an evaluation batch, where the config gives them.
  """
  shards = math.prod(sizes[axis] for axis in BATCH_AXES)
  if batch_size % (shards * grad_accum):
    raise UserError(
      f'the global batch of {batch_size} sequences does not divide over {shards} batch shards '
      f'(data={sizes["data"]} x fsdp={sizes["fsdp"]}) x train.grad_accum={grad_accum}; nearest batch in '
      f'sequences: {multiples_near(shards * grad_accum, batch_size)}'
    )
  if eval_rows and eval_rows % shards:
    raise UserError(
      f'eval.batch_size={eval_rows} does not divide over {shards} batch shards; nearest: '
      f'{multiples_near(shards, eval_rows)}'
    )
  for letter, size in dims.items():
    axis = PARAM_AXES[letter]
    if axis and size % sizes[axis]:
      raise UserError(
        f'mesh.{axis}={sizes[axis]} does not divide dim {letter}={size} of the model; nearest {axis}: '
        f'{divisors_near(size, sizes[axis])}'
      )
