"""Changes to files that are there whole or not at all, and that outlive a power cut."""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop

# The disk is well, the user's rights or the path are not: the same command fails again.
_MISTAKES = (
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.EISDIR,
  errno.ENOTDIR,
  errno.EEXIST,
  errno.ENAMETOOLONG,
  errno.ELOOP,
)
_LONGEST = 1 << 30  # bytes of one system call


def write_json(path: Path, value: Any) -> None:
  """`write_text` of `value` as JSON."""
  write_text(path, json.dumps(value, indent=2) + '\n')


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
  """`write_bytes` of `text` in UTF-8."""
  write_bytes(path, text.encode(), mode)


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
  """Writes `content` so that `path` holds the old content or the new one, whatever happens. Raises OSError.

  mode: the file's rights, less the umask.
  """
  beside = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
  try:
    with open(beside, 'wb', opener=lambda name, flags: os.open(name, flags, mode)) as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, path)
  finally:
    beside.unlink(missing_ok=True)
  sync(path.parent)


def write_output(path: Path, content: bytes) -> None:
  """Writes what the user asked to have at `path`, whole or not at all; makes the folder for it.

  It takes the place of no link, pipe or device that is there. Raises UserError, Stop.
  """
  with needed(path):
    if path.is_dir():
      raise UserError(f'{path} is a folder; want the name of a file')
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
      path.write_bytes(content)
    else:
      write_bytes(Path(os.path.realpath(path)), content)


@contextlib.contextmanager
def needed(path: Path) -> Iterator[Path]:
  """`path`, which a run cannot do without: its OSError is a UserError where no later try helps, else Stop."""
  try:
    yield path
  except OSError as error:
    # The one of a file written beside another, before it takes its place, tells nothing.
    found = error.filename2 or error.filename or path
    why = error.strerror or str(error)
    if error.errno in _MISTAKES:
      raise UserError(
        f'{path} cannot be written ({why}: {found}): something else is in the way there, or this user may not '
        'write; move it, or give another workdir'
      ) from None
    raise Stop(
      STORAGE, f'{path} cannot be written ({why}: {found}): is the disk full? The same command goes on'
    ) from None


def write_at(handle: int, content: memoryview, at: int) -> None:
  """All of `content`, bytes, from byte `at` of an open file. Raises OSError."""
  done = 0
  while done < len(content):
    done += os.pwrite(handle, content[done : done + _LONGEST], at + done)


def read_at(handle: int, into: memoryview, at: int) -> int:
  """Fills `into` with the bytes from `at` of an open file; returns how many there were. Raises OSError."""
  done = 0
  while done < len(into):
    count = os.preadv(handle, [into[done : done + _LONGEST]], at + done)
    if not count:
      break
    done += count
  return done


def sync(path: Path) -> None:
  """Asks the disk to keep a file that someone else wrote, or the names in a folder. Raises OSError."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def sync_tree(folder: Path) -> None:
  """`sync` of everything under `folder`, itself last: names are kept only after what they name."""
  for parent, _, files in os.walk(folder, topdown=False):
    for name in files:
      sync(Path(parent, name))
    sync(Path(parent))


def move(source: Path, target: Path) -> None:
  """Renames a file or folder within one disk, for good. Raises OSError; then nothing has moved."""
  os.rename(source, target)
  sync(target.parent)
  if source.parent != target.parent:
    # Taken away by someone else meanwhile: then there is no name in it to forget.
    with contextlib.suppress(FileNotFoundError):
      sync(source.parent)


def remove_tree(folder: Path) -> None:
  """Deletes a folder with all in it; what cannot be deleted stays, for the next try."""
  shutil.rmtree(folder, ignore_errors=True)
