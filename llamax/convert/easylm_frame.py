"""The bytes around an array in a stream of EasyLM, known before its numbers are."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from llamax.convert.easylm_stream import (
  BYTES,
  CHUNKED,
  EXTENSIONS,
  FIXED_EXTENSIONS,
  MAPS,
  NDARRAY,
  NUMBERS,
  TEXTS,
)
from llamax.core.errors import UserError

CHUNK_BYTES = 1 << 30  # of an array that flax writes in one piece
_MAX_TENSOR = (1 << 32) - (1 << 16)  # bytes: the length around its headers has four


@dataclasses.dataclass(frozen=True)
class Frame:
  """One object that is to be written. headers: (byte, content); pieces: (byte, size) of the numbers.

  Bytes count from the first one of the object.
  """

  headers: tuple[tuple[int, bytes], ...]
  pieces: tuple[tuple[int, int], ...]
  size: int


def frame(key: str, dtype: np.dtype, shape: tuple[int, ...]) -> Frame:
  """What flax with msgpack make of an array, byte for byte. Raises UserError: too large for this format."""
  total = math.prod(shape) * dtype.itemsize
  if total > _MAX_TENSOR:
    raise UserError(
      f'{key} has {total:,} bytes; a stream of EasyLM holds {_MAX_TENSOR:,}: cast it with --dtype'
    )
  parts = key.split('/')
  value: list[bytes | int] = []  # headers with the sizes of the numbers between them
  if total <= CHUNK_BYTES:
    value += _array(shape, dtype, total)
  else:
    step = CHUNK_BYTES // dtype.itemsize
    counts = [min(step, math.prod(shape) - at) for at in range(0, math.prod(shape), step)]
    value += [_small(0x80, 3), _text(CHUNKED), b'\xc3', _text('shape'), _map(len(shape))]
    for i, n in enumerate(shape):
      value += [_text(str(i)), _number(n)]
    value += [_text('chunks'), _map(len(counts))]
    for i, n in enumerate(counts):
      value += [_text(str(i)), *_array((n,), dtype, n * dtype.itemsize)]
  size = sum(part if isinstance(part, int) else len(part) for part in value)
  key_header = b''.join([_small(0x90, 2), _small(0x90, len(parts)), *map(_text, parts), _bytes(size)])
  headers, pieces, at = [], [], 0
  for part in [key_header, *value]:
    if isinstance(part, int):
      pieces.append((at, part))
      at += part
    else:
      headers.append((at, part))
      at += len(part)
  return Frame(tuple(headers), tuple(pieces), at)


def _array(shape: tuple[int, ...], dtype: np.dtype, size: int) -> list[bytes | int]:
  dims = b''.join(map(_number, shape))
  inner = b''.join([_small(0x90, 3), _small(0x90, len(shape)), dims, _text(dtype.name), _bytes(size)])
  whole = len(inner) + size
  kind = next((kind for kind, fixed in FIXED_EXTENSIONS.items() if fixed == whole), None)
  head = bytes([kind]) if kind else _sized(EXTENSIONS, whole)
  return [head + bytes([NDARRAY]) + inner, size]


def _small(first: int, count: int) -> bytes:
  assert count < 16
  return bytes([first + count])


def _map(count: int) -> bytes:
  return _small(0x80, count) if count < 16 else _sized(MAPS, count)


def _text(text: str) -> bytes:
  found = text.encode()
  return (bytes([0xA0 + len(found)]) if len(found) < 32 else _sized(TEXTS, len(found))) + found


def _bytes(size: int) -> bytes:
  return _sized({kind: width for kind, width in BYTES.items() if kind not in TEXTS}, size)


def _number(value: int) -> bytes:
  return bytes([value]) if value < 128 else _sized(NUMBERS, value)


def _sized(kinds: Mapping[int, int], value: int) -> bytes:
  """The shortest header that holds `value`."""
  for kind, width in kinds.items():
    if value < 1 << 8 * width:
      return bytes([kind]) + value.to_bytes(width, 'big')
  raise AssertionError(f'{value} does not fit a header')
