"""A checkpoint of any format, opened for reading."""

import dataclasses
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from llamax.convert.errors import FormatError
from llamax.convert.rows import Place, Row, bind, require_fit
from llamax.core import storage
from llamax.core.config import ModelConfig
from llamax.data.tokenizer import Tokenizer

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float16': np.dtype(np.float16),
}


class Entry(Protocol):
  """One tensor of a file. dtype: of the numbers as read. shape: as the format has it."""

  @property
  def dtype(self) -> np.dtype: ...

  @property
  def shape(self) -> tuple[int, ...]: ...

  def read(self, start: int, stop: int) -> np.ndarray:
    """Rows [start:stop] of the first dim, C-contiguous. May be called by several threads."""


class File:
  """A file that is read at any place by any thread; never mapped: mapped pages would count as memory."""

  def __init__(self, path: str | os.PathLike):
    """Raises FormatError: not a regular file (a pipe would never end), or not to be read."""
    self.path = Path(path)
    try:
      if not self.path.is_file():
        raise FormatError(self.path, 'file', 'is missing, or is no regular file')
      self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
      raise FormatError(self.path, 'file', f'cannot be read ({error.strerror})') from None
    self.size = os.fstat(self._handle).st_size

  def read(self, at: int, count: int, field: str) -> bytes:
    """Exactly `count` bytes; FormatError naming `field` when the file ends before."""
    self._require(at, count, field)
    return bytes(self._into(np.empty(count, np.uint8), at, field))

  def _require(self, at: int, count: int, field: str) -> None:
    if at < 0 or count < 0 or at + count > self.size:
      raise FormatError(
        self.path, field, f'wants {count:,} bytes at {at:,}; the file has {self.size:,}: is it whole?'
      )

  def array(self, at: int, dtype: np.dtype, shape: Sequence[int], field: str) -> np.ndarray:
    """Numbers from byte `at`; FormatError naming `field` when the file ends before."""
    self._require(at, math.prod(shape) * dtype.itemsize, field)
    out = np.empty(shape, dtype)
    self._into(out.reshape(-1).view(np.uint8), at, field)
    return out

  def _into(self, flat: np.ndarray, at: int, field: str) -> np.ndarray:
    try:
      count = storage.read_at(self._handle, flat.data, at)
    except OSError as error:
      raise FormatError(self.path, field, f'cannot be read ({error.strerror})') from None
    if count < flat.size:
      raise FormatError(self.path, field, 'the file has become shorter while it was read')
    return flat

  def __del__(self, close: Callable[[int], None] = os.close) -> None:
    # At the end of the process `os` may be gone before the last file.
    handle = getattr(self, '_handle', None)
    if handle is not None:
      close(handle)


@dataclasses.dataclass(frozen=True)
class Extent:
  """An Entry whose numbers lie in a file one after another."""

  file: File
  at: int
  dtype: np.dtype
  shape: tuple[int, ...]
  name: str

  def read(self, start: int, stop: int) -> np.ndarray:
    row = self.dtype.itemsize * math.prod(self.shape[1:])
    return self.file.array(self.at + start * row, self.dtype, (stop - start, *self.shape[1:]), self.name)


@dataclasses.dataclass
class Source:
  """An opened checkpoint.

  entries: their name -> tensor; all of them are used. family: 'llama', 'mistral', 'qwen2', 'qwen3'.
  generation: what generation_config.json says, where there is one. notes: what was seen there and is not used.
  files: all that was read; the copy is redone when one of them changes.
  """

  format: str
  path: Path
  cfg: ModelConfig
  family: str
  rows: tuple[Row, ...]
  entries: Mapping[str, Entry]
  tokenizer: Tokenizer | None = None
  generation: dict[str, Any] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  files: list[Path] = dataclasses.field(default_factory=list)

  def __post_init__(self) -> None:
    self._lock = threading.Lock()
    self._places: dict[str, Place] | None = None

  @property
  def places(self) -> dict[str, Place]:
    """Our path -> place. Raises UserError: a table of tensors that are missing, too many, misshapen."""
    with self._lock:
      if self._places is None:
        if self.cfg.num_layers > len(self.entries):
          raise FormatError(
            self.path, 'layers', f'are {self.cfg.num_layers:,}, but there are {len(self.entries):,} tensors'
          )
        places = bind(self.rows, self.cfg, self.format)
        require_fit(
          {place.theirs: place.layout.shape for place in places.values()},
          {name: tuple(entry.shape) for name, entry in self.entries.items()},
          str(self.path),
          'Wanted is what its config asks for: is that the config of these weights?',
        )
        self._places = places
      return self._places

  def entry(self, ours: str) -> Entry:
    return self.entries[self.places[ours].theirs]
