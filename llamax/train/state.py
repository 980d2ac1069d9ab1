"""What a training run carries from step to step."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from llamax.core.types import Array, PyTree
from llamax.model.llama import Llama, init_params, param_dims
from llamax.parallel.rules import param_spec, path_of, tree_shardings


@flax.struct.dataclass
class TrainState:
  """Arrays only. step: int32 scalar, updates done so far; the data position is a function of it."""

  step: Array
  params: PyTree
  opt_state: PyTree


def _init(model: Llama, tx: optax.GradientTransformation, seed: int) -> TrainState:
  params = init_params(model, jax.random.key(seed))
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def abstract_state(model: Llama, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, dtypes, shardings of the whole state; nothing is allocated."""
  shapes = jax.eval_shape(lambda: _init(model, tx, 0))
  shardings = tree_shardings(shapes, mesh, param_dims(model.cfg))
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
  )


def init_state(
  model: Llama, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh, seed: int
) -> TrainState:
  """A fresh state, born sharded: no device ever holds more than its part."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, tx, mesh))
  with jax.set_mesh(mesh):
    return jax.jit(lambda: _init(model, tx, seed), out_shardings=shardings)()


def state_of(params: PyTree, tx: optax.GradientTransformation, like: TrainState) -> TrainState:
  """A fresh state with these parameters, which are given away.

  Args:
    like: shapes, dtypes, shardings of the whole state.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, like)

  def begin(params: PyTree) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

  return jax.jit(begin, donate_argnums=0, out_shardings=shardings)(params)


def nonfinite_leaves(state: TrainState) -> list[str]:
  """The paths of the arrays that hold a NaN or an Inf; each device reads its part once, all hosts learn it."""
  leaves, mesh = {}, None
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      leaves[path_of(key_path)], mesh = leaf, leaf.sharding.mesh
  finite = jax.device_get(_finite(mesh)(list(leaves.values())))
  return [path for path, good in zip(leaves, finite, strict=True) if not good]


@functools.cache
def _finite(mesh: jax.sharding.Mesh):
  def each(leaves):
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])

  return jax.jit(each, out_shardings=NamedSharding(mesh, param_spec('')))
