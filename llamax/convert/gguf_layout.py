"""The header of a GGUF file that is to be written, with the place of each tensor."""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamax.convert.gguf_file import (
  ALIGNMENT,
  ARRAY,
  BOOL,
  FLOAT32,
  INT32,
  INT64,
  MAGIC,
  STRING,
  UINT8,
  UINT32,
  UINT64,
)
from llamax.convert.gguf_types import Kind

_VERSION = 3


def lay_out(
  keys: Mapping[str, Any], tensors: Sequence[tuple[str, Kind, tuple[int, ...]]]
) -> tuple[bytes, dict[str, int], int]:
  """(the header, the byte at which each tensor begins, the size of the file) of a version 3 file.

  Args:
    keys: int -> UINT32 (or a 64-bit type where it must be), float -> FLOAT32, bool, str, bytes -> uint8 list;
      lists of int -> INT32, of float -> FLOAT32, of bool, of str.
  """
  header = bytearray(MAGIC + struct.pack('<IQQ', _VERSION, len(tensors), len(keys)))
  for key, value in keys.items():
    header += _string(key) + _written(value)
  offsets, end = {}, 0
  for name, kind, shape in tensors:
    header += _string(name) + struct.pack(f'<I{len(shape)}Q', len(shape), *reversed(shape))
    header += struct.pack('<IQ', kind.code, end)
    offsets[name] = end
    end = _padded(end + kind.num_bytes(math.prod(shape)))
  start = _padded(len(header))
  header += bytes(start - len(header))
  return bytes(header), {name: start + offset for name, offset in offsets.items()}, start + end


def _padded(size: int) -> int:
  return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
  encoded = text.encode()
  return struct.pack('<Q', len(encoded)) + encoded


def _written(value: Any) -> bytes:
  if isinstance(value, bytes):
    return struct.pack('<IIQ', ARRAY, UINT8, len(value)) + value
  if isinstance(value, list):
    kind, encode = _encoding(value[0] if value else '', in_list=True)
    return struct.pack('<IIQ', ARRAY, kind, len(value)) + b''.join(map(encode, value))
  kind, encode = _encoding(value, in_list=False)
  return struct.pack('<I', kind) + encode(value)


def _encoding(example: Any, in_list: bool) -> tuple[int, Callable[[Any], bytes]]:
  if isinstance(example, str):
    return STRING, _string
  if isinstance(example, bool):
    return BOOL, struct.Struct('<?').pack
  if isinstance(example, float):
    return FLOAT32, struct.Struct('<f').pack
  assert isinstance(example, int), f'GGUF has no type for {example!r}'
  if in_list:
    return INT32, struct.Struct('<i').pack
  if 0 <= example < 1 << 32:
    return UINT32, struct.Struct('<I').pack
  return (INT64, struct.Struct('<q').pack) if example < 0 else (UINT64, struct.Struct('<Q').pack)
