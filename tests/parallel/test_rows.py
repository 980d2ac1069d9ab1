"""A host reads the rows that its devices hold, whatever the mesh makes of the hosts."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llamax.core.config import MeshConfig
from llamax.parallel import rows
from llamax.parallel.mesh import make_mesh


def of_host(monkeypatch, devices):
  """host_rows as the host that has these devices of the mesh sees it."""

  def fake(mesh):
    real = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))

    def here(shape):
      return {device: index for device, index in real.devices_indices_map(shape).items() if device in devices}

    return SimpleNamespace(addressable_devices_indices_map=here)

  monkeypatch.setattr(rows, 'batch_sharding', fake)
  monkeypatch.setattr(rows, 'host_rows', rows.host_rows.__wrapped__)


@pytest.mark.parametrize(
  ('sizes', 'host', 'wanted'),
  [
    ((1, 8, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6, 7)),
    ((2, 2, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6, 7)),
    ((2, 2, 2), (4, 5), (8, 9, 10, 11)),
    ((1, 2, 4), (0, 1), (0, 1, 2, 3, 4, 5, 6, 7)),
    ((1, 1, 8), (6, 7), tuple(range(16))),
    ((1, 8, 1), (1, 5), (2, 3, 10, 11)),
  ],
  ids=str,
)
def test_a_host_holds_the_rows_of_its_devices(monkeypatch, sizes, host, wanted):
  mesh = make_mesh(MeshConfig(*sizes), jax.devices())
  of_host(monkeypatch, [mesh.devices.flat[i] for i in host])
  assert rows.host_rows(mesh, 16) == wanted
  batch = {'tokens': np.arange(16 * 3).reshape(16, 3)}
  np.testing.assert_array_equal(rows.own_rows(batch, mesh)['tokens'][:, 0], [3 * row for row in wanted])


@pytest.mark.parametrize('sizes', [(1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_rows_come_back_from_the_devices_as_they_went(sizes):
  mesh = make_mesh(MeshConfig(*sizes), jax.devices())
  batch = {'tokens': np.arange(16 * 3, dtype=np.int32).reshape(16, 3)}
  found = rows.global_batch(batch, mesh)['tokens']
  np.testing.assert_array_equal(found, batch['tokens'])
  assert found.sharding.spec == jax.sharding.PartitionSpec(('data', 'fsdp'), None)
