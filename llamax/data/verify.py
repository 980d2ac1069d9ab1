"""The content of a prepared folder's files against the SHA-256 that prepare.json records."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llamax.core import storage
from llamax.core.errors import UserError
from llamax.data.format import MANIFEST, read_json
from llamax.data.retry import retried

CACHE = 'LLAMAX_CACHE'  # environment variable: another folder than ~/.cache/llamax
_THREADS = 16  # storage far away answers many questions at a time
_LISTED = 5  # damaged files that one message names
_SAID_FROM = 4 << 30  # bytes to read from which on it is worth a line
# A file changed so shortly before it was read could change again without a new time stamp.
_SETTLED_SECONDS = 2.0

File = Mapping[str, Any]  # name, size, sha256
Stamp = list[int]


def verify(folder: str, files: Sequence[File], everything: Sequence[File]) -> None:
  """Reads each of `files`, unless it was verified before and has not been touched since.

  What was verified is remembered per folder under ~/.cache/llamax: the data may be read-only, or shared.

  Args:
    everything: all that the manifest records, to recognise a file that stands under another's name.

  Raises:
    UserError: a file has other content; each is named, with what was found, what is recorded.
  """
  paths = [os.path.join(folder, file['name']) for file in files]
  memory = _memory_of(folder)
  known = _remembered(memory)
  stamps = retried(lambda: [_stamp(path) for path in paths], folder)
  todo = [i for i, file in enumerate(files) if known.get(file['name']) != [*stamps[i], file['sha256']]]
  if not todo:
    return
  size = sum(files[i]['size'] for i in todo)
  if size >= _SAID_FROM:
    print(f'verifying {size / 1e9:,.0f} GB of {folder} (once; data.verify_digests) ...', flush=True)
  started = time.time()
  with ThreadPoolExecutor(_THREADS) as pool:
    found = list(pool.map(digest, [paths[i] for i in todo]))
  bad = [(paths[i], sha, files[i]) for i, sha in zip(todo, found, strict=True) if sha != files[i]['sha256']]
  if bad:
    raise _damaged(bad, everything)
  settled = {
    files[i]['name']: [*stamps[i], files[i]['sha256']]
    for i in todo
    if stamps[i] == _stamp(paths[i]) and stamps[i][-1] / 1e9 < started - _SETTLED_SECONDS
  }
  _remember(memory, settled)


def digest(path: str) -> str:
  """SHA-256 of a file, hex. Raises Stop(STORAGE) when the storage fails again and again."""

  def read() -> str:
    with open(path, 'rb') as f:
      return hashlib.file_digest(f, 'sha256').hexdigest()

  return retried(read, path)


def _damaged(bad: Sequence[tuple[str, str, File]], everything: Sequence[File]) -> UserError:
  names = {file['sha256']: file['name'] for file in everything}
  lines = [
    f'{path} has sha256 {found[:16]}, {MANIFEST} records {file["sha256"][:16]}'
    + (f' (this is the content of {names[found]})' if found in names else '')
    for path, found, file in bad[:_LISTED]
  ]
  if len(bad) > _LISTED:
    lines.append(f'... and {len(bad) - _LISTED} more')
  return UserError(
    '\n  '.join(lines)
    + '\nThe data has changed: restore it, or prepare again with --overwrite (the cache of a '
    'tfds: source: delete its folder)'
  )


def _stamp(path: str) -> Stamp:
  """Changes when the file is written, replaced, or given an older date by hand."""
  about = os.stat(path)
  return [about.st_size, about.st_mtime_ns, about.st_ino, about.st_ctime_ns]


def _memory_of(folder: str) -> Path:
  name = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:32]
  return Path(os.environ.get(CACHE, '~/.cache/llamax'), 'verified', f'{name}.json').expanduser()


def _remembered(memory: Path) -> dict[str, Any]:
  try:
    found = read_json(str(memory))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _remember(memory: Path, settled: Mapping[str, Any]) -> None:
  """A home folder that cannot be written costs reading the data again the next time, no more."""
  try:
    memory.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(memory, _remembered(memory) | dict(settled))
  except OSError:
    pass
