"""Writes the checkpoints of one run: the only owner of the folder of steps."""

import contextlib
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.options import AsyncOptions, AtomicityMode, AtomicityOptions

from llamax.checkpoint import chunks, digests, leaves, quiet, reading, retention
from llamax.checkpoint import steps as folder_of_steps
from llamax.checkpoint.steps import META_ITEM, PROTECTED, STATE_ITEM, TRASH, WRITER
from llamax.checkpoint.stored import stored_meta
from llamax.core import storage
from llamax.core.config import CheckpointConfig
from llamax.core.exits import Stop
from llamax.core.types import PyTree
from llamax.parallel.decide import by_first


class SaveError(RuntimeError):
  """A checkpoint could not be written; the older ones are as they were. The caller may train on, or stop."""


class Checkpoints:
  """The steps under `directory` (layout: `<directory>/<step>/{state,meta,digests.json}`).

  A step is written in `writer-<token>/`, gets the digests of its files there, is synced, then renamed to its
  number, which makes it count. Retention renames a step away before it deletes a file of it, and only after a
  newer one is in place. One writer at a time: opening removes what a killed writer left unfinished; whoever
  takes the workdir over renames the writer's folder away, so that its last rename fails.

  In a run of several processes all of them call every method, in the same order.
  """

  def __init__(
    self,
    directory: str | Path,
    cfg: CheckpointConfig,
    *,
    token: int = 0,
    fence: Callable[[], None] = lambda: None,
    timeout_seconds: float = 1800.0,
    warn: Callable[[str], None] = lambda text: print(f'WARNING: {text}', file=sys.stderr, flush=True),
  ):
    """token, fence: of the lease on the run directory; `fence` raises Stop when it is ours no more.

    timeout_seconds: how long the processes wait for each other in a save.
    """
    self.directory = Path(directory).resolve()
    self.last_seconds: float | None = None  # from the call of the newest good save until it was in place
    self._cfg = cfg
    self._writer = self.directory / f'{WRITER}{token}'
    self._fence = fence
    self._warn = warn
    self._timeout = timeout_seconds
    self._pending: int | None = None  # the step that is being written
    self._saves = 0
    self._debris = False  # a save failed, none succeeded since
    self._finisher = threading.Thread()
    self._failure: BaseException | None = None
    self._last_save: float | None = None
    self._sweeper = threading.Thread()
    self._losses: dict[int, float] = {}
    quiet.silence_leftovers()
    by_first(self._open)
    self._saver = self._make_saver()

  def _open(self) -> None:
    with storage.needed(self.directory):
      self._tidy()
    for step in self._on_disk():
      self._note_loss(step)

  def _tidy(self) -> None:
    self.directory.mkdir(parents=True, exist_ok=True)
    # What older holders left, the lease has moved into the trash. A newer one's is not ours to remove: this
    # process may have slept since it got the lease.
    storage.remove_tree(self._writer)
    self._writer.mkdir()
    (self.directory / TRASH).mkdir(exist_ok=True)
    _empty(self.directory / TRASH)

  def _make_saver(self) -> ocp.AsyncCheckpointer:
    return ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(),
      async_options=AsyncOptions(timeout_secs=math.ceil(self._timeout)),
      # Orbax's own rename is not synced; ours, of the whole step, is.
      atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
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
      meta: anything JSON; `step`, `leaves` (name -> dtype[shape]), `versions` are added. A number
        `validation_loss` makes the step one of those that `keep_best` chooses from.

    Raises:
      SaveError: this save failed, or the one before it did (then this one was not begun).
      Stop: another process has taken the run directory over.
    """
    self.wait()
    if step in self.steps():
      return False
    named = leaves.named_leaves(state)
    items = {
      STATE_ITEM: ocp.args.PyTreeSave(
        leaves.nest(named), leaves.nest({name: _chunking(name, leaf) for name, leaf in named.items()})
      ),
      META_ITEM: ocp.args.JsonSave(stored_meta(step, named, meta)),  # What JSON cannot hold fails here.
    }
    if self._debris:
      by_first(lambda: _empty(self._writer))  # What orbax was still writing when it told of the failure.
    started = time.monotonic()
    self._pending = step
    # A name of its own: what is left of a failed save may still write under that one's.
    self._saves += 1
    folder = self._writer / f'{step}-{self._saves}'
    try:
      self._saver.save(folder, args=ocp.args.Composite(**items), force=True)
    except Exception as error:
      self._failure = error
      self.wait()
    self._finisher = threading.Thread(
      target=self._finish, args=(step, folder, started), name='checkpoint', daemon=True
    )
    self._finisher.start()
    if not self._cfg.asynchronous:
      self.wait()
    return True

  def _finish(self, step: int, folder: Path, started: float) -> None:
    """In the background: waits for orbax, adds the digests, puts the step in its place, lets old ones go."""
    try:
      self._saver.wait_until_finished()
      if jax.process_index() == 0:
        self._commit(step, folder)
        self.last_seconds = time.monotonic() - started
        self._let_go()
    except BaseException as error:  # Raised by `wait`, on the caller's thread.
      self._failure = error

  def _commit(self, step: int, folder: Path) -> None:
    digests.write(folder, self._cfg.digests, step)
    self._fence()
    storage.move(folder, self.directory / str(step))

  def _let_go(self) -> None:
    """Removes what no rule keeps. The newest step is in place already: what fails here costs nothing."""
    present = self._on_disk()
    self._note_loss(present[-1])
    protected = folder_of_steps.protected(self.directory)
    for old in retention.to_remove(present, self._losses, protected, self._cfg):
      self._discard(old)

  def check(self) -> None:
    """To be called each step: raises as `wait` as soon as a save in the background has ended.

    Only with one process: others would learn of it at different steps. There `finished` is to be agreed on.
    """
    if self._pending is not None and self.finished():
      self.wait()

  def finished(self) -> bool:
    """Whether no save is under way on this process any more."""
    return not self._finisher.is_alive()

  def wait(self) -> None:
    """Blocks until nothing is being written.

    Raises:
      SaveError: that save failed. Stop: another process has taken the run directory over.
    """
    if self._pending is None:
      return
    if self._finisher.is_alive():
      self._finisher.join()
    step, failure = self._pending, self._failure
    self._pending = self._failure = None
    verdict = by_first(lambda: self._verdict(step, failure))
    self._debris = verdict is not None
    if isinstance(failure, Stop):
      raise failure
    if verdict is None and failure is not None:
      # The step is whole (its rename was the last act); what this process could not do came after that.
      self._warn(f'after the checkpoint of step {step}: {reading.one_line(failure)}')
    elif verdict is not None:
      self._saver = self._make_saver()
      raise SaveError(verdict)
    if jax.process_index() == 0 and not self._sweeper.is_alive():
      self._sweeper = threading.Thread(target=_empty, args=(self.directory / TRASH,), name='checkpoint-trash')
      self._sweeper.start()

  def _verdict(self, step: int, failure: BaseException | None) -> str | None:
    """Process 0 on a save that has ended: None, or why it failed. What counts is what the disk has."""
    if isinstance(failure, Stop):
      raise failure
    if step in self._on_disk():
      return None
    _empty(self._writer)  # A full disk needs the room.
    newest = folder_of_steps.latest(self.directory)
    stands = 'there is no older one' if newest is None else f'the newest one is of step {newest}'
    why = 'it was never committed' if failure is None else reading.one_line(failure)
    return (
      f'the checkpoint of step {step} in {self.directory} was not written ({why}); {stands}. '
      'Is the disk full, or the folder gone?'
    )

  def close(self) -> None:
    """Finishes the save under way. Raises as `wait` does, with everything closed."""
    try:
      self.wait()
    finally:
      try:
        self._saver.close()
      finally:
        if self._sweeper.is_alive():
          self._sweeper.join()
        if jax.process_index() == 0:
          storage.remove_tree(self._writer)

  def steps(self) -> list[int]:
    return by_first(self._on_disk)

  def latest(self) -> int | None:
    return max(self.steps(), default=None)

  def _on_disk(self) -> list[int]:
    return folder_of_steps.steps(self.directory)

  def read_meta(self, step: int | None = None) -> dict[str, Any]:
    return reading.read_meta(self.directory, step)

  def restore(self, target: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
    """The state of `step` (None: of the newest one that verifies), with its meta data.

    Every file is compared with its digest first. Damaged steps newer than the one restored are named, then put
    aside as `damaged-<step>`.

    Args:
      target: pytree of jax.ShapeDtypeStruct with shardings, as for `reading.restore`.

    Raises:
      UserError: no such step, or another model's. DamagedCheckpoint: it (or each one) is damaged.
    """
    if step is not None:
      by_first(lambda: reading.require_whole(self.directory, step))
      return reading.read_step(self.directory, target, step)
    while True:
      whole = by_first(self._newest_whole)
      try:
        return reading.read_step(self.directory, target, whole)
      except reading.DamagedCheckpoint as error:
        if jax.process_count() > 1:
          raise  # The others may have read it.
        self._put_aside(whole, str(error))

  def _newest_whole(self) -> int:
    """The newest step whose digests fit; the damaged ones newer than it are put aside."""
    failures: dict[int, str] = {}
    for step in self._on_disk()[::-1]:
      try:
        reading.require_whole(self.directory, step)
      except reading.DamagedCheckpoint as error:
        failures[step] = str(error)
        continue
      for damaged, why in failures.items():
        self._put_aside(damaged, why)
      if failures:
        self._warn(f'going back to the checkpoint of step {step}')
      return step
    if failures:
      # Left where they are: nothing can be gone back to, so whoever comes must decide.
      raise reading.DamagedCheckpoint('\n'.join(failures.values()))
    reading.read_meta(self.directory)  # UserError: there is none
    raise AssertionError('a step appeared')

  def _put_aside(self, step: int, why: str) -> None:
    """Renames a step, so that the run can write it again, but nothing of it is lost."""
    aside = self.directory / f'damaged-{step}'
    while aside.exists():
      aside = aside.with_name(f'{aside.name}-again')
    self._fence()
    storage.move(self.directory / str(step), aside)
    self._losses.pop(step, None)
    self._warn(f'{why}; kept as {aside.name}')

  def protect(self, step: int, why: str) -> None:
    """Keeps a step from retention (checkpoint.keep_before_trouble of them): trouble came after it."""
    by_first(lambda: self._protect(step, why))

  def _protect(self, step: int, why: str) -> None:
    present = self._on_disk()
    noted = {old: text for old, text in folder_of_steps.protected(self.directory).items() if old in present}
    if step in present and step not in noted:
      try:
        storage.write_json(self.directory / PROTECTED, {**noted, step: why})
      except OSError as error:  # A full disk costs the mark, not the run.
        self._warn(f'step {step} cannot be marked as kept ({reading.one_line(error)})')

  def drop(self, steps: Collection[int]) -> list[int]:
    """Removes these steps, for a roll-back; returns those that were there."""
    self.wait()
    return by_first(lambda: [self._discard(step) for step in self._on_disk() if step in steps])

  def _discard(self, step: int) -> int:
    self._fence()
    (self.directory / TRASH).mkdir(exist_ok=True)  # Somebody may have tidied up.
    # Under another name at once: a step that is half deleted is never listed.
    storage.move(self.directory / str(step), self.directory / TRASH / f'{step}-{uuid.uuid4().hex[:8]}')
    self._losses.pop(step, None)
    return step

  def _note_loss(self, step: int) -> None:
    try:
      loss = folder_of_steps.meta(self.directory / str(step)).get('validation_loss')
    except (OSError, ValueError):
      return  # Damaged: named when it is to be restored.
    if isinstance(loss, float) and math.isfinite(loss):
      self._losses[step] = loss


def _empty(folder: Path) -> None:
  # The folder itself stays: a step may be about to be renamed into it.
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # It was removed meanwhile.
    for path in folder.iterdir():
      storage.remove_tree(path)


def _chunking(name: str, leaf: Any) -> ocp.SaveArgs:
  """Large arrays layer by layer: whoever wants one layer, or a small part, need not decode all of them."""
  shape = leaf.sharding.shard_shape(leaf.shape)
  if math.prod(shape) * leaf.dtype.itemsize <= chunks.MOST:
    return ocp.SaveArgs()
  return ocp.SaveArgs(chunk_byte_size=chunks.MOST, shard_axes=(0,) if 'layers/' in name else ())
