"""Writes the checkpoints of one run: the only owner of the folder of steps."""

import importlib.metadata
import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

from llamax.checkpoint import leaves, quiet, reading
from llamax.core.config import CheckpointConfig
from llamax.core.types import PyTree

_TRASH = 'trash'
_PACKAGES = ('llamax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')


class SaveError(RuntimeError):
  """A checkpoint could not be written; the older ones are as they were. The caller may train on, or stop."""


class Checkpoints:
  """The steps under `directory` (layout: `<directory>/<step>/{state,meta}`).

  A step counts from the moment its commit file is there, which is written last. Retention renames a step away
  before it deletes a file of it, and only after a newer one is committed. One writer at a time: opening removes
  what a killed writer left unfinished.
  """

  def __init__(self, directory: str | Path, cfg: CheckpointConfig):
    self.directory = Path(directory).resolve()
    self._cfg = cfg
    self._pending: int | None = None  # the step that is being written
    self._last_save: float | None = None
    self._sweeper: threading.Thread | None = None
    quiet.silence_leftovers()
    if jax.process_index() == 0:
      self.directory.mkdir(parents=True, exist_ok=True)
      self._remove_unfinished()
      _empty(self.directory / _TRASH)
    kept: list[Any] = [LatestN(cfg.keep_last)]
    if cfg.keep_every is not None:
      kept.append(EveryNSteps(cfg.keep_every))
    self._orbax = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(kept),
        # A folder that a kill left half-deleted or half-written never looks like a step.
        atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
        todelete_subdir=_TRASH,
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def should_save(self, step: int, now: float) -> bool:
    """Whether the state after `step` updates is due, by steps or by minutes. To be asked once per step.

    Args:
      step: updates done so far.
      now: seconds on a clock that never goes back. Minutes count from the first call, then from the last True.
    """
    if self._last_save is None:
      self._last_save = now
    by_step = self._cfg.every is not None and step > 0 and step % self._cfg.every == 0
    by_time = self._cfg.every_minutes is not None and now - self._last_save >= 60 * self._cfg.every_minutes
    if by_step or by_time:
      self._last_save = now
    return by_step or by_time

  def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> bool:
    """Starts to write (synchronously: writes) the state; False when `step` is committed already.

    Waits for the save before it. Returns as soon as the arrays are copied off the devices, so the next train
    step may donate them.

    Args:
      step: updates done so far.
      state: pytree of jax arrays.
      meta: anything JSON; `step`, `leaves` (name -> dtype[shape]), `versions` are added.

    Raises:
      SaveError: this save failed, or the one before it did (then this one was not begun).
    """
    self.wait()
    if step in self.steps():
      return False
    named = leaves.named_leaves(state)
    added = {'step': step, 'leaves': leaves.leaf_table(named), 'versions': _versions()}
    # Through JSON at once: what JSON cannot hold fails here; later changes by the caller do not reach it.
    stored = json.loads(json.dumps({**meta, **added}))
    items = {
      reading.STATE_ITEM: ocp.args.PyTreeSave(leaves.nest(named)),
      reading.META_ITEM: ocp.args.JsonSave(stored),
    }
    self._pending = step
    try:
      self._orbax.save(step, args=ocp.args.Composite(**items), force=True)
    except Exception as error:
      raise self._failure(error) from None
    if not self._cfg.asynchronous:
      self.wait()
    return True

  def check(self) -> None:
    """To be called each step: raises SaveError as soon as a save in the background is known to have failed."""
    if self._pending is not None and not self._orbax.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Blocks until nothing is being written; raises SaveError if that save failed."""
    if self._pending is None:
      return
    try:
      self._orbax.wait_until_finished()
      # Some failures orbax only logs: what counts is what the disk has.
      if self._pending not in self.steps():
        raise OSError(f'step {self._pending} was never committed')
    except Exception as error:
      raise self._failure(error) from None
    self._pending = None
    self._empty_trash()

  def close(self) -> None:
    """Finishes the save under way. Raises SaveError as `wait` does, with everything closed."""
    try:
      self.wait()
    finally:
      self._orbax.close()
      if self._sweeper is not None:
        self._sweeper.join()

  def steps(self) -> list[int]:
    return reading.steps(self.directory)

  def latest(self) -> int | None:
    return reading.latest(self.directory)

  def read_meta(self, step: int | None = None) -> dict[str, Any]:
    return reading.read_meta(self.directory, step)

  def restore(self, target: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
    """See `reading.restore`. Damaged steps newer than the one restored are put aside as `damaged-<step>`."""
    state, meta = reading.restore(self.directory, target, step)
    if step is None and jax.process_index() == 0:
      for damaged in self.steps():
        if damaged > meta['step']:
          self._put_aside(damaged)
      self._orbax.reload()
    return state, meta

  def _put_aside(self, step: int) -> None:
    """Renames a step, so that the run can write it again, but nothing of it is lost."""
    aside = self.directory / f'damaged-{step}'
    while aside.exists():
      aside = aside.with_name(f'{aside.name}-again')
    (self.directory / str(step)).rename(aside)

  def _failure(self, error: Exception) -> SaveError:
    step, self._pending = self._pending, None
    if jax.process_index() == 0:
      self._remove_unfinished()  # A full disk needs the room.
    self._orbax.reload()  # It counts as gone what it was to delete after this save.
    newest = self.latest()
    stands = 'there is no older one' if newest is None else f'the newest one is of step {newest}'
    return SaveError(
      f'the checkpoint of step {step} in {self.directory} was not written ({reading.one_line(error)}); '
      f'{stands}. Is the disk full, or the folder gone?'
    )

  def _remove_unfinished(self) -> None:
    """Deletes step folders without a commit file. Never while a save is under way."""
    for path in self.directory.glob('*'):
      if path.name.isdigit() and not (path / reading.COMMIT_FILE).exists():
        shutil.rmtree(path, ignore_errors=True)

  def _empty_trash(self) -> None:
    """Deletes what retention renamed away, beside the training."""
    if jax.process_index() == 0 and not (self._sweeper and self._sweeper.is_alive()):
      self._sweeper = threading.Thread(target=_empty, args=(self.directory / _TRASH,), name='checkpoint-trash')
      self._sweeper.start()


def _empty(folder: Path) -> None:
  # The folder itself stays: a save may be about to rename a step into it.
  for path in folder.iterdir() if folder.is_dir() else ():
    shutil.rmtree(path, ignore_errors=True)


def _versions() -> dict[str, str]:
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'  # llamax run from its sources
  return versions
