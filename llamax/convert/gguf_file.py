"""Reads the header of GGUF files (versions 2, 3; little-endian) with every count, every offset checked.

A file is a header (keys with typed values, then a name, dims, type, offset for each tensor) that is padded to
an alignment, then the tensors. GGUF lists dims fastest first; here shapes are slowest first, as numpy has them.
"""

import dataclasses
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from llamax.convert.errors import FormatError
from llamax.convert.gguf_types import KINDS, Kind
from llamax.convert.source import File

MAGIC = b'GGUF'
ALIGNMENT = 32  # where general.alignment does not say otherwise
# GGUF's types of values.
UINT8, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64 = 0, 4, 5, 6, 7, 8, 9, 10, 11
_DTYPES = ('u1', 'i1', '<u2', '<i2', '<u4', '<i4', '<f4', 'u1', None, None, '<u8', '<i8', '<f8')
_SCALARS = {code: dtype for code, dtype in enumerate(_DTYPES) if dtype}
# Far above any real file (Llama 3: 8 MB, 410,000 strings; 405B: 1,138 tensors), so that a lie costs little.
_HEADER_BYTES = 1 << 26
_VALUES = 1 << 21
_TENSORS = 1 << 16
_KEYS = 1 << 16
_NAME_LENGTH = 1 << 10
_DIMS = 4
_CHUNK = 1 << 20

_U32, _U64 = struct.Struct('<I'), struct.Struct('<Q')
_SHARD = re.compile(r'(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """at: the byte in `file`. shape: slowest dim first."""

  name: str
  kind: Kind
  shape: tuple[int, ...]
  file: File
  at: int


@dataclasses.dataclass(frozen=True)
class Gguf:
  """keys: int, float, bool, str, lists of these; bytes for a list of uint8. files: one, or all shards."""

  path: Path
  keys: dict[str, Any]
  tensors: dict[str, Tensor]
  files: list[Path]


def is_gguf(path: Path) -> bool:
  """Whether a file begins as GGUF does."""
  if not path.is_file():
    return False
  file = File(path)
  return file.size >= len(MAGIC) and file.read(0, len(MAGIC), 'magic') == MAGIC


def open_gguf(path: Path) -> Gguf:
  """The header of a file; of all shards, given any of them. Reads no tensor.

  Raises:
    FormatError: something in it is wrong, or there is more of it than a model can need.
  """
  shard = _SHARD.fullmatch(path.name)
  if not shard:
    found = _read(path)
    count = found.keys.get('split.count', 1)
    if count != 1:
      raise FormatError(path, 'split.count', f'is {count!r}; a shard has a name like model-00001-of-00002.gguf')
    return found
  count = int(shard['count'])
  if not 1 <= int(shard['number']) <= count:
    raise FormatError(path, 'name', f'is shard {int(shard["number"])} of {count}')
  tensors: dict[str, Tensor] = {}
  shards = []
  for number in range(1, count + 1):
    part = _read(path.with_name(f'{shard["stem"]}-{number:05d}-of-{count:05d}.gguf'))
    for key, wanted in (('split.no', number - 1), ('split.count', count)):
      if part.keys.get(key) != wanted:
        raise FormatError(part.path, key, f'is {part.keys.get(key)!r}; the name says {wanted}')
    twice = tensors.keys() & part.tensors.keys()
    if twice:
      raise FormatError(part.path, min(twice), 'is in another shard too')
    tensors |= part.tensors
    shards.append(part)
  total = shards[0].keys.get('split.tensors.count')
  if total != len(tensors):
    raise FormatError(shards[0].path, 'split.tensors.count', f'is {total!r}; the shards hold {len(tensors)}')
  return Gguf(path, shards[0].keys, tensors, [part.path for part in shards])


def _read(path: Path) -> Gguf:
  header = _Header(File(path))
  if header.bytes(len(MAGIC), 'magic') != MAGIC:
    raise FormatError(path, 'magic', 'is not GGUF')
  version = header.number(_U32, 'version')
  if version & 0xFFFF == 0:
    raise FormatError(path, 'version', 'is of a big-endian file; only little-endian ones are read')
  if version not in (2, 3):
    raise FormatError(path, 'version', f'is {version}; 2 and 3 are read')
  num_tensors = header.count('tensor count', _TENSORS, 24)
  num_keys = header.count('key count', _KEYS, 13)
  keys: dict[str, Any] = {}
  for _ in range(num_keys):
    key = header.name('key')
    if key in keys:
      raise FormatError(path, key, 'is there twice')
    keys[key] = _value(header, key)
  infos = _infos(header, num_tensors)
  alignment = keys.get('general.alignment', ALIGNMENT)
  if type(alignment) is not int or not 1 <= alignment <= _CHUNK or alignment & (alignment - 1):
    raise FormatError(path, 'general.alignment', f'is {alignment!r}; want a power of two')
  start = -(-header.at // alignment) * alignment
  return Gguf(path, keys, _placed(header.file, infos, start, alignment), [path])


class _Header:
  """The bytes before the tensors, fetched as far as they are asked for."""

  def __init__(self, file: File):
    self.file, self.at = file, 0
    self._bytes, self._values = bytearray(), 0

  def _need(self, count: int, field: str) -> int:
    """Moves on by `count` bytes; where they begin in `_bytes`."""
    at, end = self.at, self.at + count
    if end > len(self._bytes):
      self._reach(at, end, field)
    self.at = end
    return at

  def _reach(self, at: int, end: int, field: str) -> None:
    """Fetches up to byte `end`, which something at `at` asks for."""
    if end > self.file.size:
      raise FormatError(
        self.file.path, field, f'wants {end - at:,} bytes at {at:,} of {self.file.size:,}: is the file whole?'
      )
    if end > _HEADER_BYTES:
      raise FormatError(self.file.path, field, f'the header is longer than {_HEADER_BYTES >> 20} MiB')
    have = len(self._bytes)
    self._bytes += self.file.read(have, min(max(end, have + _CHUNK), self.file.size) - have, field)

  def bytes(self, count: int, field: str) -> bytes:
    at = self._need(count, field)
    return bytes(self._bytes[at : at + count])

  def number(self, form: struct.Struct, field: str) -> int:
    # The offset first: it is what brings the bytes.
    at = self._need(form.size, field)
    return form.unpack_from(self._bytes, at)[0]

  def count(self, field: str, most: int, least_bytes: int) -> int:
    """A count of things that each take at least so many bytes."""
    found = self.number(_U64, field)
    if found * least_bytes > self.file.size - self.at:
      raise FormatError(self.file.path, field, f'is {found:,}, more than fits into the rest of the file')
    if found > most:
      raise FormatError(self.file.path, field, f'is {found:,}; at most {most:,} are read')
    return found

  def listed(self, field: str, least_bytes: int) -> int:
    """The length of a list. All lists together are bounded: a byte in a file may become 60 in memory."""
    found = self.count(field, _VALUES, least_bytes)
    self._values += found
    if self._values > _VALUES:
      raise FormatError(self.file.path, field, f'the lists hold more than {_VALUES:,} values')
    return found

  def string(self, field: str) -> str:
    return self.strings(1, field)[0]

  def strings(self, count: int, field: str) -> list[str]:
    # One loop, not a call for each: a vocabulary has half a million.
    found, data, at, read = [], self._bytes, self.at, _U64.unpack_from
    try:
      for _ in range(count):
        begin = at + _U64.size
        if begin > len(data):
          self._reach(at, begin, field)
        end = begin + read(data, at)[0]
        if end > len(data):
          self._reach(begin, end, field)
        found.append(str(data[begin:end], 'utf-8'))
        at = end
    except UnicodeDecodeError:
      raise FormatError(self.file.path, field, 'holds text that is not UTF-8') from None
    self.at = at
    return found

  def name(self, field: str) -> str:
    found = self.string(field)
    if not found or '\0' in found or len(found) > _NAME_LENGTH:
      raise FormatError(self.file.path, field, f'{found[:40]!r} is no name')
    return found


def _value(header: _Header, key: str) -> Any:
  kind = header.number(_U32, key)
  if kind == STRING:
    return header.string(key)
  if kind in _SCALARS:
    return _numbers(header, key, kind, 1)[0]
  if kind != ARRAY:
    raise FormatError(header.file.path, key, f'has the type {kind}, which GGUF does not define')
  kind = header.number(_U32, key)
  if kind == STRING:
    return header.strings(header.listed(key, 8), key)
  if kind == UINT8:
    return header.bytes(header.count(key, _HEADER_BYTES, 1), key)
  if kind not in _SCALARS:
    raise FormatError(header.file.path, key, f'is a list of the type {kind}, which is not read')
  return _numbers(header, key, kind, header.listed(key, np.dtype(_SCALARS[kind]).itemsize))


def _numbers(header: _Header, key: str, kind: int, count: int) -> list[Any]:
  dtype = np.dtype(_SCALARS[kind])
  found = np.frombuffer(header.bytes(count * dtype.itemsize, key), dtype)
  if kind == BOOL:
    if found.max(initial=0) > 1:
      raise FormatError(header.file.path, key, 'is neither true nor false')
    found = found.astype(bool)
  return found.tolist()


@dataclasses.dataclass(frozen=True)
class _Info:
  """A tensor before it is known where the tensors begin."""

  name: str
  kind: Kind
  shape: tuple[int, ...]
  offset: int


def _infos(header: _Header, count: int) -> list[_Info]:
  path, found = header.file.path, {}
  for _ in range(count):
    name = header.name('tensor name')
    if name in found:
      raise FormatError(path, name, 'is there twice')
    num_dims = header.number(_U32, name)
    if not 1 <= num_dims <= _DIMS:
      raise FormatError(path, name, f'has {num_dims} dims; want 1 to {_DIMS}')
    shape = tuple(header.number(_U64, name) for _ in range(num_dims))[::-1]
    code = header.number(_U32, name)
    if code not in KINDS:
      known = ', '.join(kind.name for kind in KINDS.values())
      raise FormatError(path, name, f'has the type {code}; read are {known}')
    kind = KINDS[code]
    if min(shape) < 1:
      raise FormatError(path, name, f'has the shape {list(shape)}')
    if shape[-1] % kind.count or (kind.quantised and num_dims == 1):
      raise FormatError(
        path, name, f'has the shape {list(shape)}; {kind.name} packs rows by {kind.count} numbers'
      )
    found[name] = _Info(name, kind, shape, header.number(_U64, name))
  return list(found.values())


def _placed(file: File, infos: list[_Info], start: int, alignment: int) -> dict[str, Tensor]:
  """The tensors, each inside the file, none over another."""
  end, before = 0, ''
  for info in sorted(infos, key=lambda info: info.offset):
    if info.offset % alignment:
      raise FormatError(file.path, info.name, f'begins at {info.offset:,}, no multiple of {alignment}')
    if info.offset < end:
      raise FormatError(file.path, info.name, f'lies over {before}')
    end, before = info.offset + info.kind.num_bytes(math.prod(info.shape)), info.name
    if start + end > file.size:
      raise FormatError(
        file.path, info.name, f'ends at byte {start + end:,} of {file.size:,}: is the file whole?'
      )
  return {info.name: Tensor(info.name, info.kind, info.shape, file, start + info.offset) for info in infos}
