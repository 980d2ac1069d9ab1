"""Writes the weights of a checkpoint piece by piece: no array of it is ever in memory as a whole."""

import asyncio
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import xxhash
from orbax.checkpoint.options import AsyncOptions, AtomicityMode, AtomicityOptions
from orbax.checkpoint.type_handlers import NumpyHandler, create_type_handler_registry

from llamax.checkpoint import chunks, digests, leaves, quiet
from llamax.checkpoint.plain import PlainArray
from llamax.checkpoint.steps import META_ITEM, STATE_ITEM, WRITER
from llamax.checkpoint.stored import stored_meta
from llamax.core import storage
from llamax.core.errors import UserError

_FRAME = 'frame'
_STACKED = 'params/layers/'  # leaves whose first dim is that of the layers

quiet.silence_orbax()


class StreamedParams:
  """A step of a folder of checkpoints whose arrays come in pieces, in any order, from any thread.

  The step is written in `writer-<step>` beside its own place, to which `finish` renames it. Of a writer that
  was killed all is kept: whoever opens it again goes on, and what is written twice is the same.
  """

  def __init__(
    self,
    folder: str | Path,
    leaves: Mapping[str, tuple[tuple[int, ...], Any]],
    parts: Mapping[str, tuple[int, ...]] | None = None,
  ):
    """
    Args:
      folder: of the step: `checkpoints/0`.
      leaves: 'params/layers/attn/wq' -> (shape, dtype); below params/layers/ the first dim is that of layers.
      parts: how often the mesh that is to read cuts each dim of a leaf, so that a device reads its files alone;
        None: not at all.

    Raises:
      UserError: the writer's folder holds the pieces of other arrays. OSError: it cannot be written.
    """
    self.folder = Path(folder).resolve()
    self.writer = self.writer_of(self.folder)
    self.leaves = {}
    for name, (shape, dtype) in leaves.items():
      cut = (parts or {}).get(name, (1,) * len(shape))
      chunk = chunks.chunk_shape(shape, np.dtype(dtype).itemsize, cut, name.startswith(_STACKED))
      self.leaves[name] = self._array(name, shape, dtype, chunk)
    self._hashes: dict[Path, tuple[int, Any]] = {}  # file -> bytes from its first one on, their digest
    self._unsynced: set[Path] = set()
    self._lock = threading.Lock()

  @staticmethod
  def writer_of(folder: Path) -> Path:
    """Where the step is until it is finished."""
    return folder.with_name(f'{WRITER}{folder.name}')

  def _array(self, name: str, shape: tuple[int, ...], dtype: Any, chunk: tuple[int, ...]) -> PlainArray:
    # As orbax names the folder of an array.
    array = PlainArray(self.writer / STATE_ITEM / name.replace('/', '.'), shape, dtype, chunk)
    try:
      array.create()
    except ValueError as error:
      raise UserError(
        f'{array.path} holds the pieces of another array ({str(error)[:160]}); remove {self.writer}, start '
        'again'
      ) from None
    return array

  def write(self, name: str, index: tuple[slice | int, ...], array: np.ndarray) -> None:
    """Puts a piece of a leaf at its place.

    Args:
      index: as of numpy, with steps of 1; dims that are not named are whole.
      array: what leaf[index] is to be, of the leaf's dtype.

    Raises:
      OSError.
    """
    self.leaves[name].write(index, array, self._follow)

  def _follow(self, path: Path, at: int, content: memoryview) -> None:
    """Hashes what is written while it is at hand, as long as it comes in the order of the file."""
    with self._lock:
      self._unsynced.add(path)
      end, state = self._hashes.pop(path, (0, None))
    if at == 0:
      end, state = 0, xxhash.xxh3_128()
    if state is None or at != end:
      return  # `finish` reads it back.
    state.update(content)
    with self._lock:
      self._hashes[path] = (end + len(content), state)

  def sync(self) -> None:
    """Asks the disk to keep what was written so far. Raises OSError."""
    with self._lock:
      paths, self._unsynced = self._unsynced, set()
    for path in paths:
      storage.sync(path)
    for folder in {path.parent for path in paths}:
      storage.sync(folder)

  def finish(self, meta: Mapping[str, Any]) -> None:
    """Makes it a checkpoint: as `Checkpoints.save` leaves one, its rename last.

    Args:
      meta: anything JSON, as for `Checkpoints.save`.

    Raises:
      OSError: then it is unfinished as before.
    """
    self._require_whole()
    self._put_frame(stored_meta(int(self.folder.name), self.leaves_as_arrays(), meta))
    known = {
      str(path.relative_to(self.writer)): [size, digests.joined([digest.digest()])]
      for path, (size, digest) in self._hashes.items()
      if size == path.stat().st_size
    }
    storage.remove_tree(self.writer / _FRAME)
    digests.write(self.writer, step=int(self.folder.name), known=known)
    storage.move(self.writer, self.folder)

  def leaves_as_arrays(self) -> dict[str, Any]:
    """Leaf name -> its shape, dtype as the table of a checkpoint reads them."""
    return {name: _Written(leaf.shape, leaf.dtype) for name, leaf in self.leaves.items()}

  def _require_whole(self) -> None:
    for leaf in self.leaves.values():
      for path in leaf.files():
        found = path.stat().st_size if path.exists() else 0
        assert found == leaf.file_bytes, f'{path}: {found} of {leaf.file_bytes} bytes were written'

  def _put_frame(self, meta: dict[str, Any]) -> None:
    """All that orbax keeps beside the numbers, written by orbax itself for arrays that are there already."""
    frame = self.writer / _FRAME
    registry = create_type_handler_registry((_Written, _WrittenHandler()))
    items = {
      STATE_ITEM: ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry),
      META_ITEM: ocp.JsonCheckpointHandler(),
    }
    arguments = ocp.args.Composite(
      **{
        STATE_ITEM: ocp.args.PyTreeSave(leaves.nest(self.leaves_as_arrays())),
        META_ITEM: ocp.args.JsonSave(meta),
      }
    )
    with ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(**items),
      async_options=AsyncOptions(),
      atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
    ) as saver:
      saver.save(frame, args=arguments, force=True)
      saver.wait_until_finished()
    shutil.copytree(frame, self.writer, dirs_exist_ok=True)


class _Written:
  """Stands for an array whose numbers are on the disk."""

  def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
    self.shape, self.dtype = shape, dtype


class _WrittenHandler(NumpyHandler):
  """Lets orbax note the array; it has nothing to write."""

  async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
    await asyncio.gather(*(info.await_path_creation() for info in infos))
    return []
