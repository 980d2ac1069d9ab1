"""Host rows -> one global array over the mesh."""

import jax

from llamax.core.types import Batch
from llamax.parallel.rules import batch_sharding


def global_batch(rows: Batch, mesh: jax.sharding.Mesh) -> Batch:
  """This host's rows of each array [B / hosts, T] -> global [B, T], split over the batch axes."""
  sharding = batch_sharding(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in rows.items()}  # type: ignore


def own_rows(batch: Batch) -> Batch:
  """This host's part of a global batch of host arrays [B, T], where every host has read all of it."""
  host, hosts = jax.process_index(), jax.process_count()
  rows = len(batch['tokens']) // hosts
  return {name: x[host * rows : (host + 1) * rows] for name, x in batch.items()}  # type: ignore


def platform() -> tuple[str, str | None]:
  """The backend in use, with a warning line when jax fell back to the CPU beside an accelerator."""
  import glob
  import os

  name = jax.default_backend()
  if name != 'cpu' or os.environ.get('JAX_PLATFORMS') == 'cpu':
    return name, None
  if os.path.exists('/dev/nvidiactl'):
    return name, "this machine has an NVIDIA GPU, jax uses the CPU: pip install 'jax[cuda12]' of this jax version"
  if glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'):
    return name, "this machine has a TPU, jax uses the CPU: pip install 'jax[tpu]', or see who holds the TPU"
  return name, None
