"""Writes the weights of a checkpoint piece by piece: no array of it is ever in memory as a whole."""

import asyncio
import math
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
import xxhash
from orbax.checkpoint.options import AsyncOptions, AtomicityMode, AtomicityOptions
from orbax.checkpoint.type_handlers import NumpyHandler, create_type_handler_registry

from llamax.checkpoint import chunks, digests, leaves, quiet
from llamax.checkpoint.steps import META_ITEM, STATE_ITEM, WRITER
from llamax.checkpoint.stored import stored_meta
from llamax.core import storage
from llamax.core.errors import UserError

_FRAME = 'frame'
_STACKED = 'params/layers/'  # leaves whose first dim is that of the layers
_LONGEST = 1 << 30  # bytes of one system call

quiet.silence_orbax()


class Leaf:
  """An array of the checkpoint. shape, dtype as numpy has them. chunk: the shape of one file of it."""

  def __init__(self, shape: tuple[int, ...], dtype: np.dtype, chunk: tuple[int, ...]):
    self.shape, self.dtype, self.chunk = shape, dtype, chunk

  @property
  def chunk_bytes(self) -> int:
    return math.prod(self.chunk) * self.dtype.itemsize


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
    self.writer = self.folder.with_name(f'{WRITER}{self.folder.name}')
    self.leaves = {}
    for name, (shape, dtype) in leaves.items():
      cut = (parts or {}).get(name, (1,) * len(shape))
      kind = np.dtype(dtype)
      chunk = chunks.chunk_shape(shape, kind.itemsize, cut, name.startswith(_STACKED))
      self.leaves[name] = Leaf(tuple(shape), kind, chunk)
      self._make(name)
    self._hashes: dict[Path, tuple[int, Any]] = {}  # file -> bytes from its first one on, their digest
    self._unsynced: set[Path] = set()
    self._lock = threading.Lock()

  def _path(self, name: str) -> Path:
    # As orbax names the folder of an array.
    return self.writer / STATE_ITEM / name.replace('/', '.')

  def _make(self, name: str) -> None:
    leaf, path = self.leaves[name], self._path(name)
    metadata = {
      'shape': leaf.shape,
      'chunks': leaf.chunk,
      'dtype': leaf.dtype.str if leaf.dtype.kind == 'f' else leaf.dtype.name,  # numpy's bfloat16 is of kind V
      'compressor': None,
      'filters': None,
      'fill_value': None,
      'order': 'C',
      'dimension_separator': '.',
    }
    spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{path}/'}, 'metadata': metadata}
    path.mkdir(parents=True, exist_ok=True)
    try:
      ts.open(spec, create=True, open=True).result()
    except ValueError as error:
      raise UserError(
        f'{path} holds the pieces of another array ({str(error)[:160]}); remove {self.writer}, then start again'
      ) from None

  def write(self, name: str, index: tuple[slice | int, ...], array: np.ndarray) -> None:
    """Puts a piece of a leaf at its place.

    Args:
      index: as of numpy, with steps of 1; dims that are not named are whole.
      array: what leaf[index] is to be, of the leaf's dtype.

    Raises:
      OSError.
    """
    leaf = self.leaves[name]
    start, stop = _region(index, leaf.shape)
    assert array.dtype == leaf.dtype, f'{name} is {leaf.dtype}, not {array.dtype}'
    block = array.reshape([b - a for a, b in zip(start, stop, strict=True)])
    for part in chunks.parts_of(start, stop, leaf.chunk):
      self._write_part(self._path(name) / part.file, leaf, block[part.block], part.inside)

  def _write_part(self, path: Path, leaf: Leaf, block: np.ndarray, inside: tuple[tuple[int, int], ...]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
      _, runs = chunks.runs(inside, leaf.chunk)
      for at, place in runs:
        content = _bytes(block[at])
        _write_at(handle, content, place * leaf.dtype.itemsize)
        self._follow(path, place * leaf.dtype.itemsize, content)
    finally:
      os.close(handle)
    with self._lock:
      self._unsynced.add(path)

  def _follow(self, path: Path, at: int, content: memoryview) -> None:
    """Hashes what is written while it is at hand, as long as it comes in the order of the file."""
    with self._lock:
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
    for name, leaf in self.leaves.items():
      for file in chunks.files(leaf.shape, leaf.chunk):
        path = self._path(name) / file
        found = path.stat().st_size if path.exists() else 0
        assert found == leaf.chunk_bytes, f'{path}: {found} of {leaf.chunk_bytes} bytes were written'

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


def _region(index: tuple[slice | int, ...], shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
  start, stop = [0] * len(shape), list(shape)
  for dim, (at, size) in enumerate(zip(index, shape, strict=False)):
    if isinstance(at, slice):
      start[dim], stop[dim], step = at.indices(size)
      assert step == 1
    else:
      start[dim], stop[dim] = at, at + 1
    assert 0 <= start[dim] < stop[dim] <= size, f'{index} of {shape}'
  return start, stop


def _bytes(array: np.ndarray) -> memoryview:
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_at(handle: int, content: memoryview, at: int) -> None:
  done = 0
  while done < len(content):
    done += os.pwrite(handle, content[done : done + _LONGEST], at + done)
