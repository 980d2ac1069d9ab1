"""A checkpoint of any format, being written: every number at a place that is known before the first is read."""

import abc
import dataclasses
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamax.convert.rows import Place, Row, bind
from llamax.core import storage
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError
from llamax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Model:
  """What travels beside the tensors. generation: the content of generation_config.json."""

  cfg: ModelConfig
  family: str
  tokenizer: Tokenizer | None
  generation: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Wanted:
  """A tensor that is to be written, in the format's own terms."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


class Target(abc.ABC):
  """Writes one format. A format overrides what its class body lists.

  In order: `dtype_of` for each tensor, `lay_out` once, `write` for all rows of each tensor by any thread in any
  order, also again after a restart; `finish` once. Everything goes under `folder`; the copy renames
  `folder / result` to the name that the user gave.
  """

  format: str  # its name for --to
  rows: tuple[Row, ...]
  dtypes: tuple[str, ...] = ('float32', 'bfloat16', 'float16')  # that it can hold
  result = 'model'  # the file or folder under `folder` that becomes DST

  def __init__(self, model: Model):
    """Raises UserError: the format cannot say what this model is."""
    self.model = model
    self.folder: Path | None = None
    self.notes: list[str] = []  # what the user should know before anything is written

  @property
  def places(self) -> dict[str, Place]:
    """Our path -> place. Raises UserError: the format has no place for one of them."""
    return bind(self.rows, self.model.cfg, self.format)

  def dtype_of(self, name: str, dtype: np.dtype) -> np.dtype:
    """What a tensor of `dtype` is written as; UserError when that would change its numbers."""
    if dtype.name not in self.dtypes:
      raise UserError(
        f'{name} is {dtype.name}, which the format {self.format} cannot hold; give --dtype='
        f'{" or --dtype=".join(self.dtypes)} to convert it'
      )
    return dtype

  @abc.abstractmethod
  def files(self, tensors: Sequence[Wanted]) -> dict[str, int]:
    """Name -> bytes of the files of weights that are going to be written: for the plan that is shown."""

  @abc.abstractmethod
  def lay_out(self, folder: Path, tensors: Sequence[Wanted]) -> None:
    """Makes the files, or takes up those of a run that was killed."""

  @abc.abstractmethod
  def write(self, name: str, start: int, block: np.ndarray) -> None:
    """Rows [start : start + len(block)] of a tensor, C-contiguous, of the dtype that was wanted."""

  @abc.abstractmethod
  def sync(self) -> None:
    """Asks the disk to keep what was written so far."""

  @abc.abstractmethod
  def finish(self) -> None:
    """Writes what comes beside the weights."""


class PlacedFile:
  """A file of known size, written at any place by any thread."""

  def __init__(self, path: Path, size: int, pieces: Iterable[tuple[int, bytes]] = ()):
    """pieces: (byte, content) of what is known before any tensor. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    self.path, self.size = path, size
    self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    os.ftruncate(self._handle, size)
    for at, content in pieces:
      self.write(at, content)

  def write(self, at: int, content: bytes | memoryview) -> None:
    view = memoryview(content).cast('B')
    assert at >= 0 and at + len(view) <= self.size, f'{self.path}: {len(view)} bytes at {at} of {self.size}'
    storage.write_at(self._handle, view, at)

  def write_array(self, at: int, array: np.ndarray) -> None:
    assert array.flags.c_contiguous
    self.write(at, array.reshape(-1).view(np.uint8).data)

  def sync(self) -> None:
    os.fsync(self._handle)

  def close(self) -> None:
    os.close(self._handle)


class FileTarget(Target):
  """A target whose tensors each lie whole, row after row, at a place of one file."""

  def __init__(self, model: Model):
    super().__init__(model)
    self.placed: dict[str, PlacedFile] = {}
    self.extents: dict[str, tuple[PlacedFile, int]] = {}
    self._row_bytes: dict[str, int] = {}
    self._lock = threading.Lock()

  def add_file(
    self,
    name: str,
    size: int,
    pieces: Iterable[tuple[int, bytes]],
    tensors: Iterable[tuple[Wanted, int]],
  ) -> None:
    """A file under `result`, with the byte at which each of its tensors begins."""
    assert self.folder
    file = PlacedFile(self.folder / name, size, pieces)
    self.placed[name] = file
    for tensor, at in tensors:
      self.extents[tensor.name] = (file, at)
      self._row_bytes[tensor.name] = tensor.num_bytes // tensor.shape[0]

  def write(self, name: str, start: int, block: np.ndarray) -> None:
    file, at = self.extents[name]
    file.write_array(at + start * self._row_bytes[name], block)

  def sync(self) -> None:
    for file in list(self.placed.values()):
      file.sync()
