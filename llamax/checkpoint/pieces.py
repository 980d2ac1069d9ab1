"""Reads any part of any array of a committed checkpoint, without the rest of it."""

import concurrent.futures
import math
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from llamax.checkpoint import digests
from llamax.checkpoint.plain import PlainArray
from llamax.checkpoint.reading import damaged
from llamax.checkpoint.steps import STATE_ITEM, meta

_CACHE = 256 << 20  # bytes of decoded chunks that are kept, for the next piece of the same chunk


class _Array(Protocol):
  """chunk: the shape of what is read at least."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  @property
  def chunk(self) -> tuple[int, ...]: ...

  def read(self, index: tuple[slice | int, ...]) -> np.ndarray: ...


class _Packed:
  """An array that orbax has written, compressed, into files with others."""

  def __init__(self, store: Any):
    self._store = store
    self.shape, self.dtype = tuple(store.shape), store.dtype.numpy_dtype
    self.chunk = tuple(store.chunk_layout.read_chunk.shape or ())  # None: of a scalar

  def read(self, index: tuple[slice | int, ...]) -> np.ndarray:
    return np.asarray(self._store[index].read().result(), order='C')


class Pieces:
  """The arrays of a step. meta: what was stored beside them."""

  def __init__(self, folder: str | Path, prefix: str = 'params/'):
    """
    Args:
      folder: of the step: `checkpoints/7000`.
      prefix: of the leaves that are opened.

    Raises:
      DamagedCheckpoint: it cannot be read.
    """
    self.folder = Path(folder).resolve()
    try:
      self.meta = meta(self.folder)
      names = [name for name in self.meta['leaves'] if name.startswith(prefix)]
      self.arrays: dict[str, _Array] = _open(self.folder / STATE_ITEM, names)
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise damaged(self.folder, error, STATE_ITEM) from None

  def read(self, name: str, index: tuple[slice | int, ...]) -> np.ndarray:
    """leaf[index], C-contiguous. Any thread may call this. Raises DamagedCheckpoint."""
    try:
      return self.arrays[name].read(index)
    except (OSError, ValueError) as error:
      raise damaged(self.folder, error, STATE_ITEM) from None

  def check_as_read(self) -> bool:
    """From here on `read` compares each file with its digest before it uses a number of it.

    False where files hold several arrays together: verify those as a whole. Raises DamagedCheckpoint.
    """
    plain = [array for array in self.arrays.values() if isinstance(array, PlainArray)]
    if len(plain) < len(self.arrays):
      return False
    try:
      check = _Check(self.folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise damaged(self.folder, error, digests.MANIFEST) from None
    for array in plain:
      array.check = check
    return True

  def chunk_bytes(self, name: str) -> int:
    """Of what is read at least."""
    return math.prod(self.arrays[name].chunk) * self.arrays[name].dtype.itemsize


class _Check:
  """Compares each file of a step with its digest, the first time that it is asked to.

  A file whose bytes are at hand is not read for that.
  """

  def __init__(self, folder: Path):
    self._folder, self._files = folder, digests.read(folder)['files']
    self._lock = threading.Lock()
    self._begun: dict[Path, concurrent.futures.Future[None]] = {}

  def __call__(self, file: Path, content: memoryview | None) -> None:
    with self._lock:
      mine = file not in self._begun
      done = self._begun.setdefault(file, concurrent.futures.Future())
    if mine:
      try:
        digests.require_file(file, self._files[str(file.relative_to(self._folder))], content)
        done.set_result(None)
      except KeyError:
        done.set_exception(ValueError(f'"{file}" is not among the files that were written'))
      except BaseException as error:
        done.set_exception(error)
    done.result()


def _open(state: Path, names: list[str]) -> dict[str, _Array]:
  # As orbax names the folder of an array.
  folders = {name: name.replace('/', '.') for name in names}
  packed = (state / 'manifest.ocdbt').exists()
  plain = {} if packed else {name: PlainArray.opened(state / folder) for name, folder in folders.items()}
  context, opening = ts.Context({'cache_pool': {'total_bytes_limit': _CACHE}}), {}
  for name, folder in folders.items():
    if plain.get(name):
      continue
    kvstore: dict[str, Any] = {'driver': 'file', 'path': f'{state}/{folder}/'}
    if packed:
      kvstore = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{state}/'}, 'path': f'{folder}/'}
    rules = {'recheck_cached_data': False, 'recheck_cached_metadata': False, 'fill_missing_data_reads': False}
    opening[name] = ts.open(
      {'driver': 'zarr', 'kvstore': kvstore, **rules}, open=True, read=True, context=context
    )
  return {name: plain.get(name) or _Packed(opening[name].result()) for name in names}
