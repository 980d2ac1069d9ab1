"""The files that leases are made of: WORKDIR/lease/<token>.json, one per holder, the highest token holds."""

import contextlib
import os
import uuid
from pathlib import Path

from llamax.checkpoint.holder import Holder, from_bytes
from llamax.checkpoint.steps import TRASH, WRITER
from llamax.core import storage


def path_of(folder: Path, token: int) -> Path:
  return folder / f'{token}.json'


def tokens(folder: Path) -> list[int]:
  return _numbers(folder, '', '.json')


def newest(folder: Path) -> int | None:
  return max(tokens(folder), default=None)


def read(folder: Path, token: int) -> Holder | None:
  """None: torn, or just being written. Raises OSError, FileNotFoundError among them."""
  return from_bytes(path_of(folder, token).read_bytes())


def create(folder: Path, holder: Holder) -> bool:
  """Makes the file of a token, durably; False when the token is another's, or the folder is gone."""
  path = path_of(folder, holder.token)
  try:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
  except (FileExistsError, FileNotFoundError):
    return False
  try:
    try:
      os.write(handle, holder.to_bytes())
      os.fsync(handle)
    finally:
      os.close(handle)
    storage.sync(folder)
  except OSError:
    path.unlink(missing_ok=True)
    raise
  return True


def overwrite(folder: Path, holder: Holder) -> None:
  """Writes the new text of a lease over its old one, if the file is still that lease's. Raises OSError.

  In place: no new block is needed, so that a full disk does not stop it, a kill leaves no debris, a file that
  was deleted stays so. Without fsync: who reads it after a power cut sees another boot of this host.
  """
  handle = os.open(path_of(folder, holder.token), os.O_RDWR)
  try:
    found = from_bytes(os.read(handle, 1 << 16))
    if found is None or found.identity == holder.identity:
      os.pwrite(handle, holder.to_bytes(), 0)
  finally:
    os.close(handle)


def remove_older(folder: Path, token: int) -> None:
  """Tidies up; a file that stays does no harm."""
  with contextlib.suppress(OSError):
    for old in tokens(folder):
      if old < token:
        path_of(folder, old).unlink(missing_ok=True)


def writers(checkpoints: Path) -> list[int]:
  """Tokens of the holders that left unfinished steps."""
  return _numbers(checkpoints, WRITER, '')


def fence_older(checkpoints: Path, token: int) -> None:
  """Renames away what older holders are writing, so that their last rename, which would commit it, fails."""
  for old in writers(checkpoints):
    if old < token:
      (checkpoints / TRASH).mkdir(exist_ok=True)
      with contextlib.suppress(FileNotFoundError):
        name = f'{WRITER}{old}'
        storage.move(checkpoints / name, checkpoints / TRASH / f'{name}-{uuid.uuid4().hex}')


def _numbers(folder: Path, prefix: str, suffix: str) -> list[int]:
  """The N of the files named PREFIX N SUFFIX."""
  try:
    names = os.listdir(folder)
  except FileNotFoundError:
    return []
  fitting = (name for name in names if name.startswith(prefix) and name.endswith(suffix))
  numbers = (name.removeprefix(prefix).removesuffix(suffix) for name in fitting)
  return [int(number) for number in numbers if number.isdecimal()]
