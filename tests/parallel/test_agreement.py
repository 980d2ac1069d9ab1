"""What one process alone agrees on with itself; several do in tests/faults/test_hosts.py."""

import jax
import numpy as np

from llamax.core.config import MeshConfig
from llamax.parallel import agreement
from llamax.parallel.agreement import Agreement
from llamax.parallel.mesh import make_mesh
from llamax.parallel.rules import one_row_each


def test_alone_the_numbers_come_back_at_once():
  own = Agreement(make_mesh(MeshConfig(2, 2, 2), jax.devices()), ('signal', 'age'))
  own.send({'age': 3, 'signal': 15}, None)
  assert own.read() == {'signal': 15, 'age': 3}


def test_the_greatest_of_all_hosts_comes_back_one_step_late(monkeypatch):
  monkeypatch.setattr(agreement.jax, 'process_count', lambda: 2)
  own = Agreement(make_mesh(MeshConfig(2, 2, 2), jax.devices()), ('signal', 'age'))
  assert own.read() == {'signal': 0, 'age': 0}
  own.send({'signal': 15, 'age': 2**31 - 1}, jax.numpy.zeros(()))
  assert own.read() == {'signal': 15, 'age': 2**31 - 1}
  assert len({shard.index[0].start for shard in own._array().addressable_shards}) == 8


def test_each_device_has_a_row_of_its_own():
  """Else a host's numbers could be lost behind a copy that another one holds."""
  mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
  places = one_row_each(mesh).devices_indices_map((8, 2)).values()
  assert len({index[0].indices(8) for index in places}) == 8
  for device in range(8):
    numbers = np.zeros((8, 2), np.int32)
    numbers[device] = (15, 3)
    array = jax.device_put(numbers, one_row_each(mesh))
    np.testing.assert_array_equal(agreement._greatest(array, None), (15, 3))
