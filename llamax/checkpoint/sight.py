"""Whether this process sees the lease of its run in its own workdir: whether they share a disk."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from llamax.checkpoint import lease_folder
from llamax.checkpoint.holder import Holder, Process, here

_NEAR_SECONDS = 1.0  # on the machine of the holder
_FAR_SECONDS = 15.0  # a network disk shows late what another host has written


def unseen(
  workdir: Path,
  holder: Holder,
  process: Process | None = None,
  clock: Callable[[], float] = time.monotonic,
  sleep: Callable[[float], None] = time.sleep,
) -> str | None:
  """None once the lease of `holder` is found in `workdir`, else why not. Writes nothing there.

  process: this one. clock, sleep: for tests.
  """
  near = (process or here()).same_machine(holder.process)
  limit = _NEAR_SECONDS if near else _FAR_SECONDS
  path, start = lease_folder.path_of(workdir.absolute() / 'lease', holder.token), clock()
  while why := _missing(path, holder):
    if clock() - start >= limit:
      return f'{why}, also after {limit:.0f} s'
    sleep(0.1)
  return None


def _missing(path: Path, holder: Holder) -> str | None:
  _look_anew(path.parent)
  try:
    found = lease_folder.read(path.parent, holder.token)
  except FileNotFoundError:
    return f'there is no {path}'
  except OSError as error:
    return f'{path} cannot be read ({error.strerror or error})'
  if found and found.identity == holder.identity:
    return None
  return f'{path} is of another run ({found})' if found else f'{path} is unfinished'


def _look_anew(folder: Path) -> None:
  """Opens each folder above: NFS remembers for up to a minute that a name was not there, until that."""
  for path in (*reversed(folder.parents), folder):
    with contextlib.suppress(OSError):
      os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
