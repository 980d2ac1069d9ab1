"""Devices laid out on the named axes data, fsdp, tensor."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from llamax.core.config import MeshConfig
from llamax.core.errors import UserError, divisors_near

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # the axes that split the rows of a batch


def mesh_sizes(cfg: MeshConfig, num_devices: int) -> dict[str, int]:
  """Axis sizes with the -1 filled in; UserError when they do not multiply to `num_devices`."""
  sizes = {axis: getattr(cfg, axis) for axis in AXES}
  fixed = math.prod(n for n in sizes.values() if n != -1)
  shown = ', '.join(f'{axis}={n}' for axis, n in sizes.items())
  if -1 in sizes.values():
    if num_devices % fixed:
      raise UserError(
        f'mesh ({shown}): the fixed axes need a multiple of {fixed} devices, there are {num_devices}; '
        f'nearest product of the fixed axes: {divisors_near(num_devices, fixed)}'
      )
    return {axis: num_devices // fixed if n == -1 else n for axis, n in sizes.items()}
  if fixed != num_devices:
    raise UserError(
      f'mesh ({shown}) is for {fixed} devices, there are {num_devices}; set one axis to -1 (all that remain)'
    )
  return sizes


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
  """A mesh over all of `devices`; the fastest links go to the last axes."""
  sizes = mesh_sizes(cfg, len(devices))
  kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=list(devices))


def describe(mesh: jax.sharding.Mesh) -> str:
  """'data=1 x fsdp=8 x tensor=1 (8 x cpu)'."""
  shape = ' x '.join(f'{axis}={n}' for axis, n in mesh.shape.items())
  return f'{shape} ({mesh.size} x {np.asarray(mesh.devices).flat[0].device_kind})'
