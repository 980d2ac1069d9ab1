"""Tensors in the files that torch.save writes, read without torch, without unpickling."""

import dataclasses
import math
import os

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from llamax.convert import pickled
from llamax.convert.errors import FormatError, printable
from llamax.convert.pickled import Call, Mapping, Name, Reference
from llamax.convert.source import File
from llamax.convert.stored_zip import Record, read_directory

# torch's name of a storage -> its numbers, little endian.
STORAGES = {
  'FloatStorage': np.dtype('<f4'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'DoubleStorage': np.dtype('<f8'),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'),
  'ByteStorage': np.dtype('u1'),
  'BoolStorage': np.dtype('?'),
}
TENSOR = Name('torch._utils', '_rebuild_tensor_v2')
ORDERED_DICT = Name('collections', 'OrderedDict')
_PARAMETER = Name('torch._utils', '_rebuild_parameter')
_ALLOWED = {TENSOR, _PARAMETER, ORDERED_DICT, *(Name('torch', storage) for storage in STORAGES)}

_MAX_DEPTH = 8  # dicts in dicts
_MAX_TENSORS = 100_000
_MAX_NAME = 1024
_MAX_DIMS = 8
_MAX_SIZE = 1 << 48
# Bytes of a strided tensor's storage that are read at once: never more than the first number, nor than the
# second when most of them are not wanted.
_SPAN_BYTES = 1 << 26
_GAP_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Strided:
  """An `Entry` that is a view of a storage. at: byte of its first number. strides: in numbers, not bytes."""

  file: File
  name: str
  at: int
  dtype: np.dtype
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def read(self, start: int, stop: int) -> np.ndarray:
    """Rows [start:stop] of the first dim, C-contiguous. A tensor of no dims is its only row."""
    if not self.shape:
      return self.file.array(self.at, self.dtype, (), self.name)
    shape = (stop - start, *self.shape[1:])
    at = self.at + start * self.strides[0] * self.dtype.itemsize
    if 0 in shape:
      return np.empty(shape, self.dtype)
    if _contiguous(shape, self.strides):
      return self.file.array(at, self.dtype, shape, self.name)
    out = np.empty(shape, self.dtype)
    self._fill(out, at)
    return out

  def _fill(self, out: np.ndarray, at: int) -> None:
    """Reads the stretch from the first to the last number at once if it is dense or short, else each half."""
    item = self.dtype.itemsize
    reach = [(size - 1) * stride for size, stride in zip(out.shape, self.strides, strict=True)]
    span = 1 + sum(reach)
    if span * item <= min(max(4 * out.nbytes, _GAP_BYTES), _SPAN_BYTES):
      flat = self.file.array(at, self.dtype, (span,), self.name)
      out[...] = as_strided(flat, out.shape, [stride * item for stride in self.strides])
      return
    dim = reach.index(max(reach))
    half = out.shape[dim] // 2
    before = (slice(None),) * dim
    self._fill(out[(*before, slice(half))], at)
    self._fill(out[(*before, slice(half, None))], at + half * self.strides[dim] * item)


def open_pth(path: str | os.PathLike) -> dict[str, Strided]:
  """Name -> tensor of a file of torch.save: a dict of tensors, or dicts of such dicts (names joined by '.').

  Nothing in the file is imported, called or unpickled. Memory and time are bounded by the file's size.

  Raises:
    FormatError: not such a file; anything in it beside tensors; a tensor that reaches beyond its storage.
  """
  file = File(path)
  start = file.read(0, min(4, file.size), 'file')
  if start[:1] == b'\x80':
    raise FormatError(
      path,
      'file',
      'was saved by torch before 1.6, or with _use_new_zipfile_serialization=False. Save it again: '
      "torch.save(torch.load(OLD, map_location='cpu', weights_only=True), NEW)",
    )
  if start != b'PK\3\4':
    raise FormatError(path, 'file', f'begins with {start!r}: torch.save did not write it')
  return _Reader(file).tensors()


class _Reader:
  """One file: its records, the storages seen so far."""

  def __init__(self, file: File):
    self.file = file
    self.records = read_directory(file)
    found = [name for name in self.records if name.endswith('/data.pkl') and name.count('/') == 1]
    if len(found) != 1:
      raise FormatError(
        file.path, 'data.pkl', f'is there {len(found)} times; wanted once: torch.save did not write it'
      )
    self.prefix = found[0].removesuffix('data.pkl')
    if self.prefix + 'constants.pkl' in self.records:
      raise FormatError(
        file.path, 'constants.pkl', 'is a TorchScript program; wanted the tensors of a state dict'
      )
    order = self.records.get(self.prefix + 'byteorder')
    if order and self._content(order, 'byteorder', 16) != b'little':
      raise FormatError(file.path, 'byteorder', 'is not little: save it on a little-endian machine')
    self.storages: dict[str, tuple[str, int]] = {}
    self.found: dict[str, Strided] = {}

  def tensors(self) -> dict[str, Strided]:
    raw = self._content(self.records[self.prefix + 'data.pkl'], 'data.pkl', pickled.MAX_BYTES)
    value = pickled.load(raw, self.file.path, _ALLOWED.__contains__)
    if not isinstance(value, Mapping):
      raise FormatError(self.file.path, 'data.pkl', f'is no dict of tensors but {_kind(value)}')
    self._flatten(value, '', 0)
    if not self.found:
      raise FormatError(self.file.path, 'data.pkl', 'has no tensors')
    return self.found

  def _content(self, record: Record, field: str, limit: int) -> bytes:
    if record.size > limit:
      raise FormatError(self.file.path, field, f'has {record.size:,} bytes; at most {limit:,} are read')
    return self.file.read(record.at, record.size, field)

  def _flatten(self, values: Mapping, prefix: str, depth: int) -> None:
    if depth >= _MAX_DEPTH:
      raise FormatError(self.file.path, prefix, f'is {depth} dicts deep, or contains itself')
    for key, value in values.items():
      if not isinstance(key, str) or not key.isprintable() or len(prefix) + len(key) > _MAX_NAME:
        raise FormatError(self.file.path, f'{prefix}{printable(key)}', 'is no name of a tensor')
      name = prefix + key
      if isinstance(value, Mapping):
        self._flatten(value, f'{name}.', depth + 1)
      elif name in self.found:
        raise FormatError(self.file.path, name, 'is there twice')
      elif len(self.found) >= _MAX_TENSORS:
        raise FormatError(self.file.path, name, f'is one tensor too many; at most {_MAX_TENSORS:,} are read')
      else:
        self.found[name] = self._tensor(name, value)

  def _tensor(self, name: str, value: object) -> Strided:
    if isinstance(value, Call) and value.name == _PARAMETER and len(value.args) == 3:
      value = value.args[0]
    if not isinstance(value, Call) or value.name != TENSOR or len(value.args) not in (6, 7):
      hint = 'save the tensors alone: torch.save(model.state_dict(), NEW)'
      raise FormatError(self.file.path, name, f'is no tensor but {_kind(value)}; {hint}')
    storage, offset, shape, strides = value.args[:4]
    dtype, record, count = self._storage(name, storage)
    known = _sizes(shape) and _sizes(strides) and _sizes((offset,)) and len(shape) == len(strides) <= _MAX_DIMS
    # One without numbers, too, has a shape that numpy takes.
    if not known or math.prod(max(size, 1) for size in shape) > _MAX_SIZE:
      raise FormatError(self.file.path, name, 'its shape, strides or offset are no sizes')
    empty = 0 in shape
    last = offset if empty else offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if last > count:
      raise FormatError(
        self.file.path,
        name,
        f'shape {list(shape)}, strides {list(strides)} from {offset} reach beyond {count} numbers',
      )
    # What torch.expand makes: a few numbers said to be many could fill any memory, keep any disk busy.
    if _overlapping(shape, strides):
      raise FormatError(
        self.file.path, name, f'shape {list(shape)}, strides {list(strides)} use numbers of the storage twice'
      )
    return Strided(self.file, name, record.at + offset * dtype.itemsize, dtype, tuple(shape), tuple(strides))

  def _storage(self, name: str, storage: object) -> tuple[np.dtype, Record, int]:
    """(dtype, place, numbers) of ('storage', type, key, device, numbers)."""
    parts = storage.value if isinstance(storage, Reference) else None
    if type(parts) is not tuple or len(parts) != 5 or parts[0] != 'storage':
      raise FormatError(self.file.path, name, 'its storage is not described as torch does')
    _, kind, key, _, count = parts
    if not (isinstance(kind, Name) and kind.name in STORAGES and type(key) is str and _sizes((count,))):
      raise FormatError(self.file.path, name, 'its storage is not described as torch does')
    field = f'data/{key}'
    record = self.records.get(self.prefix + field)
    if record is None:
      raise FormatError(self.file.path, name, f'its storage {printable(field)} is missing')
    dtype = STORAGES[kind.name]
    if count * dtype.itemsize != record.size:
      raise FormatError(
        self.file.path,
        name,
        f'{printable(field)} has {record.size:,} bytes, which are not {count:,} {dtype.name}',
      )
    if self.storages.setdefault(key, (kind.name, count)) != (kind.name, count):
      raise FormatError(self.file.path, name, f'{printable(field)} is shared by tensors of several dtypes')
    return dtype, record, count


def _sizes(values: object) -> bool:
  """Whether `values` is a tuple of counts that a file can have."""
  return type(values) is tuple and all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)


def _overlapping(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
  """Whether a step in one dim may lead to what steps in others lead to."""
  reach = 0
  for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
    if stride <= reach:
      return True
    reach += stride * (size - 1)
  return False


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
  wanted = 1
  for size, stride in zip(reversed(shape), reversed(strides), strict=True):
    if size != 1 and stride != wanted:
      return False
    wanted *= size
  return True


def _kind(value: object) -> str:
  """What is there, for a message; never its content, which may be endless."""
  if isinstance(value, Call):
    return f'a call of {value.name}'
  return f'{value}' if isinstance(value, Name) else f'a {type(value).__name__.lower()}'
