"""The devices of a TPU slice that this machine does not have, as the real TPU compiler knows them."""

import atexit
import contextlib
import functools
import importlib.util
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from llamax.core.errors import UserError, nearest
from llamax.launch.tpus import GENERATIONS

EXAMPLES = ('v4:4x4x8', 'v5e:2x4', 'v5e:16x16', 'v5p:4x4x4', 'v6e:8x8', 'tpu7x:4x4x4')


def topology_devices(name: str) -> list[jax.Device]:
  """The devices of one slice, 'v5e:16x16' for instance; on v4, tpu7x a chip is two of them.

  They can be compiled for; nothing can run on them.

  Raises:
    UserError: no such slice, or libtpu is not installed.
  """
  chips = num_chips(name)
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      f'--topology={name} needs the TPU compiler (no TPU), which is not installed: pip install llamax[tpu]'
    )
  from jax.experimental import topologies

  with _environment():
    try:
      description = topologies.get_topology_desc(platform='tpu', topology_name=name)
    except Exception as error:
      reason = str(error).splitlines()[0]
      raise UserError(
        f'--topology={name} ({chips} chips): the TPU compiler refuses it: {reason}{_hint(name)}'
      ) from None
  return list(description.devices)


def num_chips(name: str) -> int:
  """Chips of a slice by its name; UserError for what is none."""
  found = re.fullmatch(r'([a-z0-9]+):([0-9]+(?:x[0-9]+)*)', name)
  if not found or found[1] not in GENERATIONS:
    generation = name.partition(':')[0]
    near = nearest(generation, GENERATIONS) if found else ''
    raise UserError(
      f'--topology={name!r} is no TPU slice; want GENERATION:SHAPE, such as {", ".join(EXAMPLES)}.{near}'
    )
  kind, sides = GENERATIONS[found[1]], [int(side) for side in found[2].split('x')]
  chips = math.prod(sides)
  if len(sides) != kind.dims or not 1 <= chips <= kind.most_chips:
    raise UserError(
      f'--topology={name}: the shape of a {found[1]} slice has {kind.dims} sides, such as '
      f'{"x".join("4" * kind.dims)}, with at most {kind.most_chips} chips in all; '
      f'this one has {len(sides)} sides, {chips} chips.{_hint(name)}'
    )
  return chips


def _hint(name: str) -> str:
  same = [example for example in EXAMPLES if example.partition(':')[0] == name.partition(':')[0]]
  return f' Slices that work: {", ".join(same)}'


@functools.cache
def _log_folder() -> Path:
  """Where the compiler logs to, for the life of this process."""
  folder = tempfile.mkdtemp(prefix='llamax-tpu-log-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return Path(folder)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
  """What libtpu reads when it is loaded, which is once per process: what the user has set goes first."""
  wanted = {
    # Without it a second process that compiles at the same time is refused.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
    # Else it asks the network what TPU machine this is, then complains about the answer.
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_HOST_BOUNDS': '1,1,1',
    'TPU_LOG_DIR': str(_log_folder()),
  }
  added = [key for key in wanted if key not in os.environ]
  os.environ.update({key: wanted[key] for key in added})
  try:
    yield
  finally:
    for key in added:
      os.environ.pop(key, None)


def compiler_warnings() -> str | None:
  """All that the TPU compiler warned of in this process; None where its log is elsewhere.

  It is elsewhere when libtpu was loaded before (a program that uses its TPU), or the user has set TPU_LOG_DIR.
  """
  folder = _log_folder()
  # tpu_driver.HOST.USER.log.LEVEL.DATE-TIME.PID, made on first use; each level has what is worse as well.
  if not list(folder.glob('*.log.INFO.*')):
    return None
  return ''.join(file.read_text(errors='replace') for file in sorted(folder.glob('*.log.WARNING.*')))
