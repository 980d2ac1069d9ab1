"""A digest of every file of a checkpoint, so that a flipped bit is found before it is trained on."""

import dataclasses
import functools
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from llamax.core import storage

MANIFEST = 'digests.json'
# The digest of a file: XXH3 (128 bits) of the digests of its pieces, so that several cores work on one file.
_ALGORITHM = 'xxh3_128 of pieces of 64 MiB'
_PIECE = 64 << 20
_BUFFER = 256 << 10  # stays in a core's cache
_THREADS = 8
_IRREGULAR = 'is no regular file'

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Damage:
  """One file of a checkpoint that is not as it was written. file: relative to the step's folder."""

  file: str
  why: str

  def __str__(self) -> str:
    return f'{self.file} {self.why}'


def write(
  folder: Path, hashed: bool = True, step: int | None = None, known: Mapping[str, list[Any]] | None = None
) -> dict[str, Any]:
  """Records each file under `folder` with its size and digest in `folder/digests.json`; fsyncs all of it.

  Args:
    hashed: False: sizes alone.
    step: None: the one that the folder is named after.
    known: {file: [bytes, digest]} of what was hashed as it was written: those files are not read again.

  Returns:
    The manifest. Raises OSError.
  """
  names, known = sorted(_files(folder)), known if hashed and known else {}
  with _pool() as pool:
    begun = {name: _describe(folder / name, hashed, pool) for name in names if name not in known}
    found = [known[name] if name in known else begun[name]() for name in names]
  content = {
    'format': 1,
    'step': folder.name if step is None else str(step),
    'algorithm': _ALGORITHM if hashed else None,
    'files': dict(zip(names, found, strict=True)),
  }
  manifest = {**content, 'digest': _digest_of(content)}
  storage.write_json(folder / MANIFEST, manifest)
  storage.sync_tree(folder)
  return manifest


def read(folder: Path) -> dict[str, Any]:
  """The manifest of a step. Raises OSError when it cannot be read, ValueError when it is damaged itself."""
  manifest = json.loads(_regular(folder / MANIFEST).read_bytes())
  content = {key: manifest[key] for key in ('format', 'step', 'algorithm', 'files')}
  if manifest.get('digest') != _digest_of(content):
    raise ValueError('its own digest does not fit what it says')
  return manifest


def verify(folder: Path, sizes_only: bool = False, progress: Progress = lambda count: None) -> list[Damage]:
  """What is not as the manifest records: all of it, [] when the step is whole.

  Reads every byte once, unless `sizes_only` or the step was saved without digests.

  Args:
    progress: told the bytes just read, by any thread.
  """
  try:
    manifest = read(folder)
  except FileNotFoundError:
    return [Damage(MANIFEST, 'is missing')]
  except (OSError, ValueError, KeyError, TypeError) as error:
    return [Damage(MANIFEST, f'cannot be read ({error})')]
  if manifest['step'] != folder.name:
    return [Damage(MANIFEST, f'is that of step {manifest["step"]}')]
  hashed = manifest['algorithm'] is not None and not sizes_only
  with _pool() as pool:
    written = manifest['files']
    # Of another size, it is damaged: none of it is read.
    found = {name: _describe(folder / name, hashed, pool, progress, written[name][0]) for name in written}
    compared = [_compare(name, written[name], hashed, found[name]) for name in found]
  return [damage for damage in compared if damage]


def read_file(folder: Path, name: str) -> bytes:
  """One small file of a step, compared with the manifest. Raises OSError, ValueError when it is damaged."""
  try:
    size, digest = read(folder)['files'][name]
  except (KeyError, TypeError):
    raise ValueError(f'{MANIFEST} does not tell of {name}') from None
  content = _regular(folder / name).read_bytes()
  if len(content) != size or digest not in (None, of_bytes(content)):
    raise ValueError(f'{name} is not as {MANIFEST} records it')
  return content


def require_file(path: Path, written: list[Any], content: memoryview | None = None) -> None:
  """ValueError unless a file is as its entry of a manifest says. Reads all of it, on this thread.

  Args:
    content: all that was read of it; None: it is read.
  """

  def describe() -> list[Any]:
    if content is not None:
      return [len(content), of_bytes(content)]
    found = _regular(path).stat().st_size
    return [found, joined([_piece(path, at, lambda count: None) for at in range(0, max(found, 1), _PIECE)])]

  if damage := _compare(f'"{path}"', written, written[1] is not None, describe):
    raise ValueError(str(damage))


def size(folder: Path) -> int:
  """Bytes of all files that the manifest of a step records. Raises as `read`."""
  return sum(entry[0] for entry in read(folder)['files'].values())


def _compare(name: str, written: list[Any], hashed: bool, describe: Callable[[], list[Any]]) -> Damage | None:
  size, digest = written
  try:
    found = describe()
  except FileNotFoundError:
    return Damage(name, 'is missing')
  except OSError as error:
    return Damage(name, _IRREGULAR if isinstance(error, _Irregular) else f'cannot be read ({error.strerror})')
  if found[0] != size:
    return Damage(name, f'has {found[0]:,} bytes; {size:,} were written')
  if hashed and found[1] != digest:
    return Damage(name, f'has digest {found[1][:12]}; {str(digest)[:12]} was written')
  return None


def _files(folder: Path) -> Iterator[str]:
  for parent, _, names in os.walk(folder):
    for name in names:
      relative = str(Path(parent, name).relative_to(folder))
      if relative != MANIFEST:
        yield relative


def _describe(
  path: Path,
  hashed: bool,
  pool: Executor,
  progress: Progress = lambda count: None,
  expected: int | None = None,
) -> Callable[[], list[Any]]:
  """Begins to read a file; the function gives [bytes, digest or None] of it, or raises OSError.

  Args:
    expected: its bytes; when it has others, it is not read. None: any.
  """
  try:
    size = _regular(path).stat().st_size
  except OSError as error:
    return functools.partial(_fail, error)
  if not hashed or expected not in (None, size):
    return lambda: [size, None]
  pieces = [pool.submit(_piece, path, at, progress) for at in range(0, max(size, 1), _PIECE)]

  def finished() -> list[Any]:
    parts = [piece.result() for piece in pieces]
    return [size, joined(parts)]

  return finished


def joined(pieces: list[bytes]) -> str:
  """The digest of a file, from the XXH3 (128 bits) of each 64 MiB of it."""
  return xxhash.xxh3_128_hexdigest(b''.join(pieces))


def of_bytes(content: bytes | memoryview) -> str:
  """The digest of a file that holds just these bytes."""
  return joined(
    [xxhash.xxh3_128_digest(content[at : at + _PIECE]) for at in range(0, max(len(content), 1), _PIECE)]
  )


def _regular(path: Path) -> Path:
  """`path`, of a file that ends: whoever opens a named pipe waits for ever. Raises OSError."""
  if not stat.S_ISREG(path.stat().st_mode):
    raise _Irregular(_IRREGULAR)
  return path


class _Irregular(OSError):
  """A folder, a pipe, a device where a file was written."""


def _fail(error: OSError) -> list[Any]:
  raise error


def _piece(path: Path, at: int, progress: Progress) -> bytes:
  """The digest of up to _PIECE bytes. Read, not mapped: a disk that fails under a map ends the process."""
  state, left, buffer = xxhash.xxh3_128(), _PIECE, memoryview(bytearray(_BUFFER))
  with open(path, 'rb', buffering=0) as file:
    file.seek(at)
    while left and (count := file.readinto(buffer[:left])):
      state.update(buffer[:count])
      left -= count
      progress(count)
  return state.digest()


def _pool() -> ThreadPoolExecutor:
  return ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), 'digests')


def _digest_of(content: dict[str, Any]) -> str:
  return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
