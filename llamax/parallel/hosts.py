"""Starts the processes of a run as one, before jax looks at any device."""

import glob
import importlib.util
import os

import jax


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
