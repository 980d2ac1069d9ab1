"""The streaming copy: each tensor of a checkpoint into another, in memory that does not grow with the model."""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llamax.convert import layout as layouts
from llamax.convert.layout import Layout
from llamax.convert.source import DTYPES, Source
from llamax.convert.target import Target, Wanted
from llamax.core import storage
from llamax.core.errors import UserError

INCOMPLETE = '.incomplete'
_BUDGET = 1 << 30  # bytes of tensors that are held whole at a time; a larger one goes alone
_CAST_BYTES = 1 << 22  # of numbers that change their dtype at a time
_SYNC_EVERY = 1 << 30  # bytes between two moments from which a killed copy goes on
_VERSION = 1  # of the journal


@dataclasses.dataclass(frozen=True)
class Step:
  """One tensor's way. ours: its path. wanted: as the target writes it."""

  ours: str
  source_name: str
  source_layout: Layout
  source_dtype: np.dtype
  target_layout: Layout
  wanted: Wanted

  @property
  def changed(self) -> bool:
    return self.source_layout.letters != self.target_layout.letters

  @property
  def num_bytes(self) -> int:
    return self.wanted.num_bytes


def make_plan(source: Source, target: Target, dtype: str | None) -> list[Step]:
  """Each tensor's way, in the order of a forward pass.

  Args:
    dtype: what all tensors are cast to; None: each stays what it is.

  Raises:
    UserError: tensors are missing, too many, misshapen; the target cannot hold them.
  """
  # The source first: what its config lies about, its own files refute.
  places = source.places
  steps, theirs = [], target.places
  for ours, place in places.items():
    entry, there = source.entries[place.theirs], theirs[ours]
    # What is not a dtype of numpy, as q8_0, is made of float32 by the target.
    kept = DTYPES.get(dtype, DTYPES['float32']) if dtype else entry.dtype
    wanted = Wanted(there.theirs, there.layout.shape, target.dtype_of(there.theirs, kept))
    steps.append(Step(ours, place.theirs, place.layout, entry.dtype, there.layout, wanted))
  return steps


def copy(
  source: Source,
  target: Target,
  steps: list[Step],
  destination: Path,
  options: dict[str, Any],
  *,
  threads: int,
  progress: Callable[[int], None],
  say: Callable[[str], None],
) -> None:
  """Writes `destination`: it is there whole or not at all. A copy that was killed goes on where it was.

  Args:
    options: whatever else decides the bytes that are written; another value starts the copy again.
    progress: called with the bytes written.

  Raises:
    UserError: `destination` exists, another copy to it is under way, it cannot be written, or a number does not
      fit the dtype. FormatError: the source is damaged.
  """
  require_free(destination)
  folder = destination.with_name(destination.name + INCOMPLETE)
  with _writing(destination):
    destination.parent.mkdir(parents=True, exist_ok=True)
  with _writing(destination), _held(folder):
    journal = _Journal(folder, _digest(source, target, steps, options))
    if journal.done:
      say(f'going on with {folder}: {len(journal.done)} of {len(steps)} tensors are there')
    target.folder = folder
    target.lay_out(folder, [step.wanted for step in steps])
    _run(source, target, steps, journal, threads, progress)
    target.finish()
    result = folder / target.result
    if result.is_dir():
      storage.sync_tree(result)
    else:
      storage.sync(result)
    storage.move(result, destination)
  storage.remove_tree(folder)


def require_free(destination: Path) -> None:
  """UserError unless `destination` can become a new file or folder."""
  if destination.exists() or destination.is_symlink():
    raise UserError(f'{destination} exists already; nothing is overwritten: remove it, or give another name')
  nearest = next(parent for parent in destination.absolute().parents if parent.exists())
  if not nearest.is_dir():
    raise UserError(f'{nearest} is no folder; nothing can be written below it: give another name')


def _run(
  source: Source,
  target: Target,
  steps: list[Step],
  journal: '_Journal',
  threads: int,
  progress: Callable[[int], None],
) -> None:
  budget, failed = _Budget(_BUDGET), threading.Event()
  lock, pending, unsynced = threading.Lock(), [], 0

  def one(step: Step) -> None:
    if failed.is_set():
      return
    try:
      _move(source, target, step, budget, progress)
    except BaseException:
      failed.set()
      raise

  for step in steps:
    if step.ours in journal.done:
      progress(step.num_bytes)
  left = [step for step in steps if step.ours not in journal.done]
  with concurrent.futures.ThreadPoolExecutor(threads, 'convert') as pool:
    running = {pool.submit(one, step): step for step in left}
    try:
      for future in concurrent.futures.as_completed(running):
        future.result()
        step = running[future]
        with lock:
          pending.append(step.ours)
          unsynced += step.num_bytes
        if unsynced >= _SYNC_EVERY:
          target.sync()
          journal.note(pending)
          pending, unsynced = [], 0
    except BaseException:
      failed.set()
      pool.shutdown(cancel_futures=True)
      raise
  target.sync()
  journal.note(pending)


def _move(
  source: Source,
  target: Target,
  step: Step,
  budget: '_Budget',
  progress: Callable[[int], None],
) -> None:
  entry = source.entries[step.source_name]
  whole = not layouts.streams(step.source_layout, step.target_layout)
  size = entry.shape[0] * max(1, _row_bytes(entry))
  with budget.taken(size if whole else min(size, layouts.BLOCK_BYTES)):
    for first, theirs, there, array in _pieces(entry, step, whole):
      for start, block in layouts.blocks(_bits(array), theirs, there):
        for at, part in _cast(block.view(array.dtype), step):
          target.write(step.wanted.name, first + start + at, part)
          progress(part.nbytes)


def _pieces(entry: Any, step: Step, whole: bool) -> Iterator[tuple[int, Layout, Layout, np.ndarray]]:
  """(first row in the target, layout there, layout here, numbers) of what is read at a time."""
  here, there = step.source_layout, step.target_layout
  if whole:
    yield 0, here, there, entry.read(0, entry.shape[0])
    return
  letter = here.letters[0]
  count = here.sizes[letter]
  at_a_time = max(1, layouts.BLOCK_BYTES // max(1, _row_bytes(entry) * here.row_unit))
  # Whole files, where the tensor is cut into several: each is then read once, for its digest too.
  together = getattr(entry, 'rows_together', 1) // here.row_unit
  if together > 1:
    at_a_time = max(1, at_a_time // together) * together
  for start in range(0, count, at_a_time):
    stop = min(count, start + at_a_time)
    part = {**here.sizes, letter: stop - start}
    yield (
      start * there.row_unit,
      Layout(here.text, part),
      Layout(there.text, part),
      entry.read(start * here.row_unit, stop * here.row_unit),
    )


def _row_bytes(entry: Any) -> int:
  return int(np.prod(entry.shape[1:], dtype=np.int64)) * entry.dtype.itemsize


def _bits(array: np.ndarray) -> np.ndarray:
  """The same bytes as integers: numpy rearranges those several times faster than bfloat16."""
  return array.view(np.dtype(f'u{array.dtype.itemsize}'))


def _cast(block: np.ndarray, step: Step) -> Iterator[tuple[int, np.ndarray]]:
  """(row, numbers in the wanted dtype), a few rows at a time: a cast holds several copies of them."""
  if block.dtype == step.wanted.dtype:
    yield 0, block
    return
  rows = max(1, _CAST_BYTES * len(block) // max(1, block.nbytes))
  for at in range(0, len(block), rows):
    yield at, _cast_rows(block[at : at + rows], step)


def _cast_rows(block: np.ndarray, step: Step) -> np.ndarray:
  with np.errstate(over='ignore'):
    cast = block.astype(step.wanted.dtype)
  wide, narrow = block.astype(np.float32), cast.astype(np.float32)
  if not np.array_equal(np.isfinite(wide), np.isfinite(narrow)):
    worst = np.abs(wide[np.isfinite(wide)]).max()
    raise UserError(
      f'{step.source_name} holds {worst:.6g}, beyond {step.wanted.dtype.name}; take another --dtype'
    )
  return cast


class _Budget:
  """Lets tensors in as long as their bytes fit; one that never fits goes alone."""

  def __init__(self, limit: int):
    self._limit, self._used, self._changed = limit, 0, threading.Condition()

  @contextlib.contextmanager
  def taken(self, size: int) -> Iterator[None]:
    with self._changed:
      self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit)
      self._used += size
    try:
      yield
    finally:
      with self._changed:
        self._used -= size
        self._changed.notify_all()


class _Journal:
  """Which tensors are on the disk: lines that are written only after a sync of what they name."""

  def __init__(self, folder: Path, digest: str):
    self.path = folder / 'journal.jsonl'
    self.done: set[str] = set()
    if self.path.exists():
      first, *rest = self.path.read_text().split('\n')
      if first == digest:
        # The last line of a killed copy may be cut off; it lacks its newline, so it is the last part.
        self.done = {name for line in rest[:-1] for name in json.loads(line)}
        os.truncate(self.path, self.path.stat().st_size - len(rest[-1].encode()) if rest else 0)
        return
    for entry in folder.iterdir():
      if entry.name != _LOCK:
        storage.remove_tree(entry) if entry.is_dir() else entry.unlink()
    self.path.write_text(digest + '\n')

  def note(self, names: list[str]) -> None:
    self.done.update(names)
    with open(self.path, 'a') as file:
      file.write(json.dumps(names) + '\n')
      file.flush()
      os.fsync(file.fileno())


def _digest(source: Source, target: Target, steps: list[Step], options: dict[str, Any]) -> str:
  """Of all that decides what is written."""
  seen = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(source.files)]
  ways = [[step.ours, step.wanted.name, list(step.wanted.shape), step.wanted.dtype.name] for step in steps]
  text = json.dumps([_VERSION, source.format, target.format, seen, ways, options], sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


_LOCK = 'lock'


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
  """Makes `folder` ours alone; the system lets go of it when this process ends, however it ends."""
  folder.mkdir(exist_ok=True)
  with open(folder / _LOCK, 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f'another llamax convert is writing {folder}; wait for it, or give another name'
      ) from None
    yield


@contextlib.contextmanager
def _writing(destination: Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f'{destination} cannot be written: {error.strerror or error}'
      f'{f" ({error.filename})" if error.filename else ""}; what is there is kept: the same command goes on'
    ) from None
