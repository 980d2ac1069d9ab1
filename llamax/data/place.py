"""The folder that a dataset goes to: found complete, held while it is made, filled in one move."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from llamax.core.errors import UserError
from llamax.data.format import MANIFEST, check_files, read_manifest


def existing(out: str, overwrite: bool, about: dict[str, Any]) -> dict[str, Any] | None:
  """The manifest when `out` is complete already, None when it may be written.

  about: `settings`, `inputs_fingerprint`, `input_bytes` of what is wanted. UserError when `out` holds something
  else, or a damaged dataset, which `overwrite` permits to replace; what is no dataset is never replaced.
  """
  if not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
    return None
  if not os.path.isdir(out) or not os.path.exists(os.path.join(out, MANIFEST)):
    raise UserError(f'{out} exists but is no prepared dataset; nothing there is touched: choose another --out')
  try:
    manifest = read_manifest(out)
    check_files(out, manifest)
  except UserError:
    if overwrite:
      return None
    raise
  if manifest['inputs_fingerprint'] == about['inputs_fingerprint']:
    return manifest
  if overwrite:
    return None
  before, now = manifest['settings'], about['settings']
  changes = [
    f'{key}={before.get(key)} there, {value} now' for key, value in now.items() if before.get(key) != value
  ]
  if not changes:
    sizes = f'{manifest["input_bytes"]} bytes there, {about["input_bytes"]} now'
    changes = [f'the input files are others or have changed ({sizes})']
  raise UserError(f'{out} was prepared otherwise: {"; ".join(changes)}. Choose another --out, or --overwrite')


@contextlib.contextmanager
def locked(partial: str, say: Callable[[str], None]) -> Iterator[str]:
  """The folder of the work under way, held by this process alone."""
  lock = _lock(partial, say)
  try:
    yield partial
  finally:
    os.close(lock)


def _lock(partial: str, say: Callable[[str], None]) -> int:
  path = os.path.join(partial, 'lock')
  while True:
    os.makedirs(partial, exist_ok=True)
    try:
      lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
      continue  # removed in between by the process that had it
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f'waiting: another process works in {partial}')
      fcntl.flock(lock, fcntl.LOCK_EX)
    # Who held it may have finished, then removed the folder: that lock is on a file without a name.
    if os.path.exists(path) and os.path.samestat(os.fstat(lock), os.stat(path)):
      return lock
    os.close(lock)


def publish(whole: str, out: str) -> None:
  """Gives the finished folder its name; what was there before is gone only after that."""
  old = None
  if os.path.isdir(out) and os.listdir(out):
    old = f'{out}.partial-old-{uuid.uuid4().hex[:8]}'
    os.rename(out, old)
  try:
    os.replace(whole, out)
  except OSError:
    if old:
      os.rename(old, out)
    raise
  if old:
    shutil.rmtree(old)
