"""The protocol buffer that a SentencePiece model file is, as far as a conversion needs it.

Field numbers: sentencepiece_model.proto. The generated module that comes with sentencepiece is bound to one
release of protobuf.
"""

import dataclasses
import struct
from collections.abc import Iterator

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclasses.dataclass(frozen=True)
class Piece:
  text: str
  score: float
  type: int = NORMAL


@dataclasses.dataclass(frozen=True)
class ModelProto:
  """charsmap: rules that change characters before all else; empty: none."""

  pieces: tuple[Piece, ...]
  model_type: int = BPE
  add_dummy_prefix: bool = True
  remove_extra_whitespaces: bool = False
  escape_whitespaces: bool = True
  whitespace_as_suffix: bool = False
  charsmap: bytes = b''


def read_proto(content: bytes) -> ModelProto:
  """Raises ValueError: the bytes are no such message."""
  pieces: list[Piece] = []
  trainer: dict[int, int | bytes] = {}
  normalizer: dict[int, int | bytes] = {}
  for number, value in _fields(content):
    if number == 1:
      one = dict(_fields(_bytes(value)))
      pieces.append(Piece(_bytes(one.get(1, b'')).decode(), _float(one.get(2)), _int(one.get(3, NORMAL))))
    elif number in (2, 3):
      (trainer if number == 2 else normalizer).update(_fields(_bytes(value)))
  return ModelProto(
    tuple(pieces),
    _int(trainer.get(3, 1)),
    bool(normalizer.get(3, 1)),
    bool(normalizer.get(4, 1)),
    bool(normalizer.get(5, 1)),
    bool(trainer.get(24, 0)),
    _bytes(normalizer.get(2, b'')),
  )


def write_proto(model: ModelProto, *, unk_id: int, bos_id: int, eos_id: int, pad_id: int = -1) -> bytes:
  """The model file. The ids are those of the pieces of these meanings, whatever their names; -1: none."""
  out = [_message(1, _piece(piece)) for piece in model.pieces]
  names = [model.pieces[i].text if i >= 0 else '' for i in (unk_id, bos_id, eos_id, pad_id)]
  trainer = [
    _number(3, model.model_type),
    _number(4, len(model.pieces)),
    _number(24, model.whitespace_as_suffix),
    _number(35, any(piece.type == BYTE for piece in model.pieces)),
    *(_number(40 + i, value) for i, value in enumerate((unk_id, bos_id, eos_id, pad_id))),
    *(_message(45 + i, name.encode()) for i, name in enumerate(names) if name),
  ]
  normalizer = [
    _message(1, b'identity'),
    _message(2, model.charsmap),
    _number(3, model.add_dummy_prefix),
    _number(4, model.remove_extra_whitespaces),
    _number(5, model.escape_whitespaces),
  ]
  return b''.join([*out, _message(2, b''.join(trainer)), _message(3, b''.join(normalizer))])


def _piece(piece: Piece) -> bytes:
  return _message(1, piece.text.encode()) + b'\x15' + struct.pack('<f', piece.score) + _number(3, piece.type)


def _message(number: int, content: bytes) -> bytes:
  return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
  # Negative numbers take ten bytes, as if they had 64 bits.
  return _varint(number << 3) + _varint(int(value) & (1 << 64) - 1)


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  out.append(value)
  return bytes(out)


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
  """(field number, value): int of a varint, the bytes of all else."""
  at = 0
  while at < len(content):
    key, at = _read_varint(content, at)
    kind = key & 7
    if kind == _VARINT:
      value, at = _read_varint(content, at)
      yield key >> 3, value
      continue
    if kind == _BYTES:
      length, at = _read_varint(content, at)
    elif kind in (_FIXED32, _FIXED64):
      length = 4 if kind == _FIXED32 else 8
    else:
      raise ValueError(f'field {key >> 3} is of kind {kind}')
    if length > len(content) - at:
      raise ValueError(f'field {key >> 3} has {length} bytes, {len(content) - at} are left')
    yield key >> 3, content[at : at + length]
    at += length


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
  value = 0
  for shift in range(0, 70, 7):
    if at >= len(content):
      break
    byte = content[at]
    value |= (byte & 0x7F) << shift
    at += 1
    if byte < 0x80:
      return value, at
  raise ValueError('a number has no end')


def _bytes(value: int | bytes) -> bytes:
  if isinstance(value, int):
    raise ValueError('a number where bytes are wanted')
  return value


def _int(value: int | bytes) -> int:
  if not isinstance(value, int):
    raise ValueError('bytes where a number is wanted')
  return value


def _float(value: int | bytes | None) -> float:
  if value is None:
    return 0.0
  if isinstance(value, int) or len(value) != 4:
    raise ValueError('a score that is no float')
  return struct.unpack('<f', value)[0]
