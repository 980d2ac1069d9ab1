"""A small train state on any mesh, for the tests of this folder."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llamax.core.config import CheckpointConfig


@flax.struct.dataclass
class State:
  step: Any
  params: Any
  opt_state: Any


# Wide enough that a shard does not fit into the index, where orbax keeps what is below 1,024 bytes.
SHAPES = {'table': (16, 320), 'wq': (3, 8, 4, 6), 'scale': (24,)}
SPECS = {'table': ('fsdp', 'tensor'), 'wq': (None, 'fsdp', 'tensor')}
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-2)))


@dataclasses.dataclass
class TinyState:
  """States of a made-up run, whose leaves all differ from step to step."""

  mesh: Any

  @classmethod
  def on(cls, *sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    axes = ('data', 'fsdp', 'tensor')
    return cls(jax.make_mesh(sizes, axes, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices))

  def abstract(self):
    def init():
      params = {
        'embed': {'table': jnp.zeros(SHAPES['table'])},
        'layers': {'attn': {'wq': jnp.zeros(SHAPES['wq'], jnp.bfloat16)}},
        'final_norm': {'scale': jnp.zeros(SHAPES['scale'])},
      }
      return State(jnp.int32(0), params, TX.init(params))

    def shard(path, leaf):
      spec = SPECS.get(getattr(path[-1], 'key', None), ())
      sharding = NamedSharding(self.mesh, PartitionSpec(*spec))
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(shard, jax.eval_shape(init))

  def at(self, step):
    """The state after `step` updates: made on the host, so that no test waits for a compiler."""
    leaves, structure = jax.tree.flatten(self.abstract())

    def fill(i, leaf):
      if leaf.dtype == np.int32:
        value = np.int32(step)
      else:
        value = np.random.default_rng([step, i]).normal(size=leaf.shape).astype(leaf.dtype)
      return jax.device_put(value, leaf.sharding)

    return jax.tree.unflatten(structure, [fill(i, leaf) for i, leaf in enumerate(leaves)])


@pytest.fixture(scope='session')
def tiny():
  """`tiny(data, fsdp, tensor)`: the state's maker on a mesh of these sizes."""
  return TinyState.on


@pytest.fixture(scope='session')
def cfg():
  """`cfg(keep_last=3)`: a checkpoint section with these changes."""
  base = CheckpointConfig(
    every=1,
    every_minutes=None,
    keep_last=9,
    keep_every=None,
    keep_best=0,
    keep_before_trouble=0,
    asynchronous=True,
    digests=True,
    on_failed_save='continue',
    grace_seconds=25.0,
    lease_seconds=60.0,
  )
  return lambda **changes: dataclasses.replace(base, **changes)


@pytest.fixture
def same_bytes():
  """Whether two pytrees have the same structure, names, dtypes, bytes."""

  def same(a, b):
    kinds = jax.tree.map(lambda x: (str(x.dtype), x.shape, np.asarray(x).tobytes()), (a, b))
    return jax.tree.structure(a) == jax.tree.structure(b) and kinds[0] == kinds[1]

  return same
