"""The stream of msgpack objects in which EasyLM keeps a checkpoint, as its StreamingCheckpointer writes it.

Each object is a pair: a key, which is an array of texts ('transformer', 'h', '0', ...), with what flax made of
one array: extension type 1 around [shape, name of the dtype, bytes]. An array over 1 GiB is a map instead,
of its shape, of pieces of the flattened array. https://github.com/msgpack/msgpack/blob/master/spec.md says what
the headers are.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from llamax.convert.errors import FormatError, printable
from llamax.convert.source import DTYPES, Entry, Extent, File

_MAX_ENTRIES = 1 << 17
_MAX_KEY_PARTS = 32
_MAX_TEXT = 256  # bytes of a part of a key
_MAX_DIMS = 8
NDARRAY = 1
CHUNKED = '__msgpack_chunked_array__'

# First byte -> bytes of the length that follows it.
TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, **TEXTS}  # msgpack before 1.0 wrote bytes as texts
ARRAYS = {0xDC: 2, 0xDD: 4}
MAPS = {0xDE: 2, 0xDF: 4}
NUMBERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def entries(file: File) -> Iterator[tuple[tuple[str, ...], 'Value']]:
  """(key, value) of each object of a stream; no value is looked into.

  Raises:
    FormatError: the file is no such stream, or ends within one of its objects.
  """
  cursor, count = _Cursor(file, 0, file.size, 'stream'), 0
  while cursor.at < file.size:
    cursor.field = f'object {count}'
    if count == _MAX_ENTRIES:
      raise cursor.wrong(f'comes after {count:,} others; no checkpoint has so many')
    if cursor.count(0x90, ARRAYS, 'a pair') != 2:
      raise cursor.wrong('is no pair of key and value: is this a stream of EasyLM?')
    parts = cursor.count(0x90, ARRAYS, 'a key')
    if not 1 <= parts <= _MAX_KEY_PARTS:
      raise cursor.wrong(f'has a key of {parts:,} parts; want 1 to {_MAX_KEY_PARTS}')
    key = tuple(cursor.text() for _ in range(parts))
    cursor.field = '/'.join(key)
    start, size = cursor.skip(cursor.length(None, BYTES, 'bytes'))
    yield key, Value(file, start, size, cursor.field)
    count += 1


@dataclasses.dataclass(frozen=True)
class Value:
  """The bytes of one array, as flax serialised it."""

  file: File
  at: int
  size: int
  name: str

  def tensor(self) -> Entry:
    """Raises FormatError: it is no array of floats, or not of the size that it says."""
    cursor = _Cursor(self.file, self.at, self.at + self.size, self.name)
    if cursor.peek() in (*EXTENSIONS, *FIXED_EXTENSIONS):
      found: Entry = cursor.array()
    else:
      found = self._chunked(cursor)
    cursor.finish()
    if not found.shape or len(found.shape) > _MAX_DIMS or not all(found.shape):
      raise cursor.wrong(f'has the shape {list(found.shape)}; want 1 to {_MAX_DIMS} dims of 1 or more')
    return found

  def _chunked(self, cursor: '_Cursor') -> Entry:
    told = {CHUNKED, 'shape', 'chunks'}
    if cursor.count(0x80, MAPS, 'an array') != len(told):
      raise cursor.wrong('is neither an array nor the pieces of one')
    shape: list[int] = []
    pieces: list[Extent] = []
    while told:
      name = cursor.text()
      if name not in told:
        raise cursor.wrong(f'has {printable(name)!r} among its pieces; want {", ".join(sorted(told))}')
      told.remove(name)
      if name == CHUNKED:
        if cursor.byte() != 0xC3:
          raise cursor.wrong(f'{CHUNKED} is not true')
      elif name == 'shape':
        shape = [cursor.number() for _ in cursor.numbered(_MAX_DIMS)]
      else:
        pieces = [cursor.array() for _ in cursor.numbered(_MAX_ENTRIES)]
    total = sum(math.prod(piece.shape) for piece in pieces)
    if not pieces or any(len(p.shape) != 1 or p.dtype != pieces[0].dtype for p in pieces):
      raise cursor.wrong('its pieces are no flat arrays of one dtype')
    if total != math.prod(shape):
      raise cursor.wrong(f'is {shape}; its pieces have {total:,} numbers')
    return Pieces(tuple(pieces), pieces[0].dtype, tuple(shape))


@dataclasses.dataclass(frozen=True)
class Pieces:
  """An Entry whose numbers lie in several places, one after another."""

  parts: tuple[Extent, ...]
  dtype: np.dtype
  shape: tuple[int, ...]

  def read(self, start: int, stop: int) -> np.ndarray:
    row = math.prod(self.shape[1:])
    out, first, last = np.empty((stop - start) * row, self.dtype), start * row, stop * row
    at = 0
    for part in self.parts:
      low, high = max(first, at), min(last, at + part.shape[0])
      if low < high:
        out[low - first : high - first] = part.read(low - at, high - at)
      at += part.shape[0]
    return out.reshape(stop - start, *self.shape[1:])


class _Cursor:
  """Reads headers one after another, none beyond `end`."""

  _AHEAD = 1 << 12

  def __init__(self, file: File, at: int, end: int, field: str):
    self.file, self.at, self.end, self.field = file, at, end, field
    self._window, self._window_at = b'', 0

  def wrong(self, problem: str) -> FormatError:
    return FormatError(self.file.path, self.field, f'{problem} (byte {self.at:,})')

  def _take(self, size: int) -> bytes:
    if size > self.end - self.at:
      raise self.wrong(f'wants {size:,} bytes; {self.end - self.at:,} are left: is the file whole?')
    begin = self.at - self._window_at
    if begin < 0 or begin + size > len(self._window):
      ahead = min(max(size, self._AHEAD), self.file.size - self.at)
      self._window, self._window_at, begin = self.file.read(self.at, ahead, self.field), self.at, 0
    self.at += size
    return self._window[begin : begin + size]

  def byte(self) -> int:
    return self._take(1)[0]

  def peek(self) -> int:
    found = self.byte()
    self.at -= 1
    return found

  def _big_endian(self, size: int) -> int:
    return int.from_bytes(self._take(size), 'big')

  def length(self, fixed: tuple[int, int] | None, sizes: Mapping[int, int], what: str) -> int:
    """The length in a header. fixed: (first byte, how many) of the headers that hold it themselves."""
    kind = self.byte()
    if fixed and fixed[0] <= kind < fixed[0] + fixed[1]:
      return kind - fixed[0]
    if kind not in sizes:
      self.at -= 1
      raise self.wrong(f'begins with byte 0x{kind:02x}; want {what}')
    return self._big_endian(sizes[kind])

  def count(self, fixed: int, sizes: Mapping[int, int], what: str) -> int:
    return self.length((fixed, 16), sizes, what)

  def text(self) -> str:
    """A printable text without a slash."""
    size = self.length((0xA0, 32), TEXTS, 'a text')
    if size > _MAX_TEXT:
      raise self.wrong(f'has a text of {size:,} bytes; want at most {_MAX_TEXT}')
    try:
      text = self._take(size).decode()
    except UnicodeDecodeError:
      text = ''
    if not text or not text.isprintable() or '/' in text:
      raise self.wrong('has a text that is empty, holds a slash, or cannot be printed')
    return text

  def number(self) -> int:
    return self.length((0, 128), NUMBERS, 'a whole number of 0 or more')

  def skip(self, size: int) -> tuple[int, int]:
    """(byte, size) of what is stepped over."""
    if size > self.end - self.at:
      raise self.wrong(f'says that it has {size:,} bytes; {self.end - self.at:,} are left: is the file whole?')
    self.at += size
    return self.at - size, size

  def numbered(self, most: int) -> Iterator[int]:
    """Yields at each value of a map whose keys are '0', '1', ..."""
    count = self.count(0x80, MAPS, 'a map')
    if not 1 <= count <= most:
      raise self.wrong(f'has a map of {count:,}; want 1 to {most:,}')
    for i in range(count):
      if self.text() != str(i):
        raise self.wrong(f'has a map without {str(i)!r} where that belongs')
      yield i

  def array(self) -> Extent:
    """One array of flax."""
    kind = self.byte()
    fixed = FIXED_EXTENSIONS.get(kind)
    if fixed is None and kind not in EXTENSIONS:
      raise self.wrong(f'begins with byte 0x{kind:02x}; want an array of flax')
    size = fixed or self._big_endian(EXTENSIONS[kind])
    if self.byte() != NDARRAY:
      raise self.wrong('is an extension of another type; want an array of flax')
    end = self.skip(size)[0] + size
    inner = _Cursor(self.file, end - size, end, self.field)
    if inner.count(0x90, ARRAYS, 'shape, dtype, bytes') != 3:
      raise inner.wrong('is not of three parts: shape, dtype, bytes')
    dims = inner.count(0x90, ARRAYS, 'a shape')
    if dims > _MAX_DIMS:
      raise inner.wrong(f'has {dims:,} dims; want at most {_MAX_DIMS}')
    shape = tuple(inner.number() for _ in range(dims))
    name = inner.text()
    if name not in DTYPES:
      raise inner.wrong(f'is of {printable(name)}; want {", ".join(DTYPES)}')
    start, found = inner.skip(inner.length((0xA0, 32), BYTES, 'bytes'))
    if found != math.prod(shape) * DTYPES[name].itemsize:
      raise inner.wrong(f'has {found:,} bytes; {name} {list(shape)} does not')
    inner.finish()
    return Extent(self.file, start, DTYPES[name], shape, self.field)

  def finish(self) -> None:
    if self.at != self.end:
      raise self.wrong(f'has {self.end - self.at:,} bytes too many')
