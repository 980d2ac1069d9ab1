"""What this host has: its devices, its rows of the global batch."""

import glob
import importlib.util
import os

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


def skip_absent_tpu() -> None:
  """Keeps jax from looking for a TPU on a machine that has libtpu (to compile with) and no TPU."""
  installed = importlib.util.find_spec('libtpu') is not None
  if installed and not (_has_tpu() or _has_gpu() or os.environ.get('JAX_PLATFORMS')):
    jax.config.update('jax_platforms', 'cpu')


def _has_gpu() -> bool:
  return os.path.exists('/dev/nvidiactl')


def _has_tpu() -> bool:
  return bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))


def platform() -> tuple[str, str | None]:
  """The backend in use, with a warning line when jax fell back to the CPU beside an accelerator."""
  name = jax.default_backend()
  if name != 'cpu' or os.environ.get('JAX_PLATFORMS') == 'cpu':
    return name, None
  if _has_gpu():
    return (
      name,
      "this machine has an NVIDIA GPU, jax uses the CPU: pip install 'jax[cuda12]' of this jax version",
    )
  if _has_tpu():
    return name, "this machine has a TPU, jax uses the CPU: pip install 'jax[tpu]', or see who holds the TPU"
  return name, None
