"""Writes what torch.load reads, without torch: a dict of tensors, each at a place that is known beforehand."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llamax.convert.crc32 import Pieces
from llamax.convert.pickled import Name
from llamax.convert.pth import ORDERED_DICT, STORAGES, TENSOR
from llamax.convert.source import File
from llamax.convert.target import PlacedFile, Wanted
from llamax.convert.zip_layout import ALIGNMENT, ZipLayout

_STORAGE_OF = {dtype: storage for storage, dtype in STORAGES.items()}
_READ_BYTES = 1 << 26  # of a tensor at a time, where its CRC has to be found again


class PthLayout:
  """A file of tensors, before any of them is there. size: of the file."""

  def __init__(self, stem: str, tensors: Sequence[Wanted], same: Mapping[str, str] | None = None):
    """No tensor is empty; dtypes are torch's.

    Args:
      stem: of the file's name, which torch repeats in each entry.
      same: further name -> the tensor whose numbers it shares.
    """
    self.tensors = {tensor.name: f'{stem}/data/{index}' for index, tensor in enumerate(tensors)}
    assert len(self.tensors) == len(tensors), 'two tensors of one name'
    self.zip = ZipLayout(
      [
        (f'{stem}/data.pkl', _pickle(tensors, same or {})),
        (f'{stem}/.format_version', b'1'),
        (f'{stem}/.storage_alignment', b'%d' % ALIGNMENT),
        (f'{stem}/byteorder', b'little'),
        *((self.tensors[tensor.name], tensor.num_bytes) for tensor in tensors),
        (f'{stem}/version', b'3\n'),
      ]
    )

  @property
  def size(self) -> int:
    return self.zip.size


class PthFile:
  """A file under way: `write` by any thread in any order, `finish` once all is there."""

  def __init__(self, path: Path, layout: PthLayout):
    """Makes the file, or takes up the one of a run that was killed. Raises OSError."""
    self._layout = layout
    self._file = PlacedFile(path, layout.size, layout.zip.pieces())
    self._crcs = Pieces()

  def write(self, name: str, at: int, block: np.ndarray) -> None:
    """`block`, C-contiguous, from byte `at` of a tensor."""
    record = self._layout.tensors[name]
    raw = block.reshape(-1).view(np.uint8).data
    self._file.write(self._layout.zip.entries[record].at + at, raw)
    # While it is in the cache: finding it again would mean reading the file.
    self._crcs.add(record, at, len(raw), zlib.crc32(raw))

  def sync(self) -> None:
    self._file.sync()

  def finish(self) -> None:
    """Writes the directory; what an earlier run wrote is read for its CRC."""
    entries = self._layout.zip.entries
    crcs = {}
    for record in self._layout.tensors.values():
      found = self._crcs.whole(record, entries[record].size)
      crcs[record] = self._read_crc(record) if found is None else found
    for at, content in self._layout.zip.closing(crcs):
      self._file.write(at, content)
    self._file.sync()
    self._file.close()

  def _read_crc(self, record: str) -> int:
    entry, file, crc = self._layout.zip.entries[record], File(self._file.path), 0
    for start in range(0, entry.size, _READ_BYTES):
      crc = zlib.crc32(file.read(entry.at + start, min(_READ_BYTES, entry.size - start), record), crc)
    return crc


def _pickle(tensors: Sequence[Wanted], same: Mapping[str, str]) -> bytes:
  """A dict of calls to `torch._utils._rebuild_tensor_v2` in protocol 2, as torch.save writes it."""
  calls = {tensor.name: _tensor(tensor, index) for index, tensor in enumerate(tensors)}
  calls |= {name: calls[other] for name, other in same.items()}
  return b'\x80\2}(' + b''.join(_text(name) + call for name, call in calls.items()) + b'u.'


def _tensor(tensor: Wanted, index: int) -> bytes:
  storage = Name('torch', _STORAGE_OF[tensor.dtype])
  count = tensor.num_bytes // tensor.dtype.itemsize
  strides = [1]
  for size in reversed(tensor.shape[1:]):
    strides.append(strides[-1] * size)
  persistent = (
    b'(' + _text('storage') + _name(storage) + _text(str(index)) + _text('cpu') + _integer(count) + b'tQ'
  )
  sizes = _integers(tensor.shape) + _integers(strides[::-1] if tensor.shape else ())
  hooks = _name(ORDERED_DICT) + b')R'
  return _name(TENSOR) + b'(' + persistent + _integer(0) + sizes + b'\x89' + hooks + b'tR'


def _name(name: Name) -> bytes:
  return f'c{name.module}\n{name.name}\n'.encode()


def _text(text: str) -> bytes:
  raw = text.encode()
  return b'X' + struct.pack('<I', len(raw)) + raw


def _integers(values: Sequence[int]) -> bytes:
  return b'(' + b''.join(map(_integer, values)) + b't'


def _integer(value: int) -> bytes:
  if value < 1 << 31:
    return b'J' + struct.pack('<i', value)
  return b'\x8a\x08' + struct.pack('<q', value)
