"""A digest of every file of a checkpoint, so that a flipped bit is found before it is trained on."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from llamax.core import storage

MANIFEST = 'digests.json'
_ALGORITHM = 'xxh3_128'
_BUFFER = 1 << 20
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Damage:
  """One file of a checkpoint that is not as it was written. file: relative to the step's folder."""

  file: str
  why: str

  def __str__(self) -> str:
    return f'{self.file} {self.why}'


def write(folder: Path, hashed: bool = True) -> dict[str, Any]:
  """Records each file under `folder` with its size and digest in `folder/digests.json`; fsyncs all of it.

  Args:
    hashed: False: sizes alone.

  Returns:
    The manifest. Raises OSError.
  """
  names = sorted(_files(folder))
  found = _map(lambda name: _describe(folder / name, hashed), names)
  content = {
    'format': 1,
    'step': folder.name,
    'algorithm': _ALGORITHM if hashed else None,
    'files': dict(zip(names, found, strict=True)),
  }
  manifest = {**content, 'digest': _digest_of(content)}
  storage.write_json(folder / MANIFEST, manifest)
  storage.sync_tree(folder)
  return manifest


def read(folder: Path) -> dict[str, Any]:
  """The manifest of a step. Raises OSError when it cannot be read, ValueError when it is damaged itself."""
  manifest = json.loads((folder / MANIFEST).read_bytes())
  content = {key: manifest[key] for key in ('format', 'step', 'algorithm', 'files')}
  if manifest.get('digest') != _digest_of(content):
    raise ValueError('its own digest does not fit what it says')
  return manifest


def verify(
  folder: Path, sizes_only: bool = False, progress: Callable[[int], None] = lambda count: None
) -> list[Damage]:
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
  names: Sequence[str] = list(manifest['files'])
  found = _map(lambda name: _compare(folder, name, manifest['files'][name], hashed, progress), names)
  return [damage for damage in found if damage]


def size(folder: Path) -> int:
  """Bytes of all files that the manifest of a step records. Raises as `read`."""
  return sum(entry[0] for entry in read(folder)['files'].values())


def _compare(
  folder: Path, name: str, recorded: Sequence[Any], hashed: bool, progress: Callable[[int], None]
) -> Damage | None:
  size, digest = recorded
  try:
    found = _describe(folder / name, hashed, progress)
  except FileNotFoundError:
    return Damage(name, 'is missing')
  except OSError as error:
    return Damage(name, f'cannot be read ({error.strerror})')
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


def _describe(path: Path, hashed: bool, progress: Callable[[int], None] = lambda count: None) -> list[Any]:
  """[bytes, digest or None] of a file."""
  if not hashed:
    return [path.stat().st_size, None]
  state, size, buffer = xxhash.xxh3_128(), 0, memoryview(bytearray(_BUFFER))
  with open(path, 'rb', buffering=0) as file:
    while count := file.readinto(buffer):
      state.update(buffer[:count])
      size += count
      progress(count)
  return [size, state.hexdigest()]


def _map(function: Any, names: Sequence[str]) -> list[Any]:
  with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), 'digests') as pool:
    return list(pool.map(function, names))


def _digest_of(content: dict[str, Any]) -> str:
  return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
