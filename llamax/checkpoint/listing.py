"""What a run directory holds in checkpoints, told without jax, orbax or a device."""

import contextlib
import dataclasses
import datetime
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamax.checkpoint import digests, retention, steps
from llamax.core import storage
from llamax.core.config import CheckpointConfig
from llamax.core.errors import UserError

_DAMAGED = 'damaged-'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One checkpoint. name: its step, or `damaged-<step>` for one that a run has put aside."""

  name: str
  step: int
  bytes: int
  files: int
  digest: str | None  # of all files, their names, their sizes; None: unknown
  mesh: dict[str, int]
  written: str  # ISO 8601, UTC; by the clock of the disk's host
  loss: float | None  # on the first validation split, if that was evaluated then
  kept: tuple[str, ...]  # the rules that keep it
  damage: tuple[str, ...]  # files that are missing or have another size; their bytes have not been read

  @property
  def state(self) -> str:
    if self.damage:
      return f'damaged: {self.damage[0]}' + (f' (+{len(self.damage) - 1})' if self.damage[1:] else '')
    return 'put aside' if self.name.startswith(_DAMAGED) else 'whole'


def folder_of(workdir: str | Path) -> Path:
  """WORKDIR/checkpoints; UserError where that is none."""
  folder = Path(workdir) / 'checkpoints'
  if not folder.is_dir():
    raise UserError(f'{workdir} is not the folder of a run: it has no folder {folder.name!r}')
  return folder


def names(folder: Path) -> list[str]:
  """The steps, ascending, then what was put aside."""
  aside = sorted(
    path.name for path in folder.glob(f'{_DAMAGED}*') if _step_of(path.name) is not None and path.is_dir()
  )
  return [*map(str, steps.steps(folder)), *aside]


def chosen(folder: Path, wanted: Sequence[str]) -> list[str]:
  """`wanted`, as `names` writes them ('7,000' is step 7000). UserError for one that is not there."""
  present, found = names(folder), []
  for word in wanted:
    name = word.replace(',', '').replace('_', '')
    name = str(int(name)) if name.isdecimal() else word
    if name not in present:
      raise UserError(f'{folder} has no checkpoint {word!r}; it has {", ".join(present) or "none"}')
    found.append(name)
  return list(dict.fromkeys(found))


def entries(folder: Path) -> list[Entry]:
  """All checkpoints, in the order of `names`, but for those removed meanwhile. Reads no array."""
  metas = {name: _meta(folder / name) for name in names(folder)}
  listed = steps.steps(folder)
  losses = {step: loss for step in listed if (loss := _loss(metas[str(step)])) is not None}
  why: dict[int, list[str]] = {}
  newest = next((metas[str(step)] for step in reversed(listed) if metas[str(step)]), {})
  with contextlib.suppress(KeyError, TypeError):  # The meta data of another version.
    settings = CheckpointConfig(**newest['config']['checkpoint'])
    why = retention.reasons(listed, losses, steps.protected(folder), settings)
  found = [_entry(folder / name, meta, losses, why) for name, meta in metas.items()]
  return [entry for entry in found if is_there(folder, entry.name)]


def is_there(folder: Path, name: str) -> bool:
  """Whether a run that goes on has not removed it: asked after damage was found, which then was none."""
  return (folder / name).is_dir()


def remove(folder: Path, name: str) -> None:
  """Renames a checkpoint away, then deletes it: half of one is never listed. Raises OSError."""
  trash = folder / steps.TRASH
  trash.mkdir(exist_ok=True)
  away = trash / f'{name}-{uuid.uuid4().hex[:8]}'
  storage.move(folder / name, away)
  storage.remove_tree(away)


def _entry(
  path: Path, meta: dict[str, Any], losses: Mapping[int, float], why: Mapping[int, list[str]]
) -> Entry:
  step, aside = _step_of(path.name), path.name.startswith(_DAMAGED)
  assert step is not None
  try:
    manifest = digests.read(path)
    count, size, digest = len(manifest['files']), digests.size(path), manifest['digest']
  except (OSError, ValueError, KeyError, TypeError):
    sizes = _sizes(path)
    count, size, digest = len(sizes), sum(sizes), None
  # Under its new name a step put aside does not fit its own manifest.
  damage = () if aside else tuple(map(str, digests.verify(path, sizes_only=True)))
  return Entry(
    name=path.name,
    step=step,
    bytes=size,
    files=count,
    digest=digest,
    mesh=meta.get('mesh') or meta.get('config', {}).get('mesh', {}),
    written=_written(path),
    loss=_loss(meta),
    kept=() if aside else tuple(why.get(step, ())),
    damage=damage,
  )


def _step_of(name: str) -> int | None:
  number = name.removeprefix(_DAMAGED).partition('-')[0]
  return int(number) if number.isdecimal() else None


def _meta(folder: Path) -> dict[str, Any]:
  try:
    return steps.meta(folder)
  except (OSError, ValueError):
    return {}


def _loss(meta: Mapping[str, Any]) -> float | None:
  loss = meta.get('validation_loss')
  return loss if isinstance(loss, float) else None


def _written(folder: Path) -> str:
  for path in (folder / digests.MANIFEST, folder):
    with contextlib.suppress(OSError):  # Not there, or removed by the run this instant.
      seconds = path.lstat().st_mtime
      return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec='seconds')
  return ''


def _sizes(folder: Path) -> list[int]:
  """Bytes of each file, of those that are there by the time they are looked at."""
  sizes = []
  for parent, _, files in os.walk(folder):
    for name in files:
      with contextlib.suppress(OSError):
        sizes.append(Path(parent, name).lstat().st_size)
  return sizes
