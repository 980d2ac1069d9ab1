"""Which rows of the global batch this host holds, as the mesh splits it."""

import functools

import jax
import numpy as np

from llamax.core.types import Batch
from llamax.parallel.rules import batch_sharding


@functools.cache  # asked for at every step
def host_rows(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[int, ...]:
  """The rows of a global batch that devices of this host hold, ascending, each once.

  Hosts share rows where the mesh splits something else across them (tensor): each of them then reads these.
  """
  held: set[int] = set()
  for index in batch_sharding(mesh).addressable_devices_indices_map((batch_size, 1)).values():
    held.update(range(batch_size)[index[0]])  # type: ignore[index]
  return tuple(sorted(held))


def global_batch(rows: Batch, mesh: jax.sharding.Mesh) -> Batch:
  """This host's rows (`host_rows`) of each array, [rows, T] -> global [B, T], split over the batch axes."""
  sharding = batch_sharding(mesh)
  held, length = rows['tokens'].shape
  # As many rows for each device of the mesh as there are here for each one's.
  batch_size = held * mesh.size // len(host_rows(mesh, mesh.size))
  return {  # type: ignore[return-value]
    name: jax.make_array_from_process_local_data(sharding, np.asarray(x), (batch_size, length))
    for name, x in rows.items()
  }


def own_rows(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
  """This host's part of a global batch of host arrays [B, T], where every host has read all of it."""
  rows = list(host_rows(mesh, len(batch['tokens'])))
  return {name: x[rows] for name, x in batch.items()}  # type: ignore
