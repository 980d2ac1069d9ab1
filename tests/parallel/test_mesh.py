"""Axis sizes, the device grid, what is said when they do not fit."""

import jax
import numpy as np
import pytest

from llamax.core.config import MeshConfig
from llamax.core.errors import UserError
from llamax.parallel.mesh import describe, make_mesh, mesh_sizes


@pytest.mark.parametrize(
  'cfg, num_devices, expected',
  [
    ((1, -1, 1), 8, (1, 8, 1)),
    ((-1, 2, 2), 8, (2, 2, 2)),
    ((2, 2, -1), 24, (2, 2, 6)),
    ((2, 3, 4), 24, (2, 3, 4)),
    ((1, -1, 1), 1, (1, 1, 1)),
    ((4, 2, -1), 8, (4, 2, 1)),
  ],
)
def test_mesh_sizes(cfg, num_devices, expected):
  assert tuple(mesh_sizes(MeshConfig(*cfg), num_devices).values()) == expected


@pytest.mark.parametrize(
  'cfg, reason',
  [
    ((2, 2, 4), r'mesh \(data=2, fsdp=2, tensor=4\) is for 16 devices, there are 8; set one axis to -1'),
    ((1, 1, 1), 'is for 1 devices, there are 8'),
    ((3, -1, 1), 'need a multiple of 3 devices, there are 8; nearest product of the fixed axes: 2 or 4'),
    ((-1, 4, 4), 'need a multiple of 16 devices, there are 8; nearest product of the fixed axes: 8'),
  ],
)
def test_a_mesh_that_does_not_fit_says_what_would(cfg, reason):
  with pytest.raises(UserError, match=reason):
    mesh_sizes(MeshConfig(*cfg), 8)


def test_make_mesh_uses_every_device_once():
  mesh = make_mesh(MeshConfig(2, -1, 2), jax.devices())
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert sorted(d.id for d in np.asarray(mesh.devices).flat) == sorted(d.id for d in jax.devices())
  # Explicit axes would make every jnp operation ask for shardings.
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_mesh_may_have_some_of_the_devices():
  mesh = make_mesh(MeshConfig(1, 1, -1), jax.devices()[5:7])
  assert {d.id for d in np.asarray(mesh.devices).flat} == {d.id for d in jax.devices()[5:7]}


def test_describe():
  assert describe(make_mesh(MeshConfig(2, -1, 1), jax.devices())) == 'data=2 x fsdp=4 x tensor=1 (8 x cpu)'
