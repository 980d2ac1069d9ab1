"""How GGUF packs numbers: one line for each type of tensor."""

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np

from llamax.convert.source import Extent, File
from llamax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Kind:
  """count numbers lie in size bytes. dtype: of the numbers as read."""

  name: str
  code: int  # ggml's
  count: int
  size: int
  dtype: np.dtype

  @property
  def quantised(self) -> bool:
    return self.count > 1

  def num_bytes(self, numbers: int) -> int:
    return numbers // self.count * self.size


_F32 = np.dtype(np.float32)
# ggml's block layouts: 16-bit scales, minima, then the bits of each number.
_TABLE = (
  Kind('F32', 0, 1, 4, _F32),
  Kind('F16', 1, 1, 2, np.dtype(np.float16)),
  Kind('BF16', 30, 1, 2, np.dtype(ml_dtypes.bfloat16)),
  Kind('Q4_0', 2, 32, 18, _F32),
  Kind('Q4_1', 3, 32, 20, _F32),
  Kind('Q5_0', 6, 32, 22, _F32),
  Kind('Q5_1', 7, 32, 24, _F32),
  Kind('Q8_0', 8, 32, 34, _F32),
  Kind('Q2_K', 10, 256, 84, _F32),
  Kind('Q3_K', 11, 256, 110, _F32),
  Kind('Q4_K', 12, 256, 144, _F32),
  Kind('Q5_K', 13, 256, 176, _F32),
  Kind('Q6_K', 14, 256, 210, _F32),
)
KINDS = {kind.code: kind for kind in _TABLE}
BY_NAME = {kind.name: kind for kind in _TABLE}
OF_DTYPE = {kind.dtype.name: kind for kind in _TABLE if not kind.quantised}
# Largest number that Q8_0 can say: its scale is a float16.
_Q8_0_MAX = 127 * 65_504.0


@dataclasses.dataclass(frozen=True)
class Packed:
  """An Entry whose rows are blocks of a quantised type: at least two dims, rows of whole blocks."""

  file: File
  at: int
  kind: Kind
  shape: tuple[int, ...]
  name: str

  @property
  def dtype(self) -> np.dtype:
    return self.kind.dtype

  def read(self, start: int, stop: int) -> np.ndarray:
    row = self.kind.num_bytes(math.prod(self.shape[1:]))
    packed = self.file.array(self.at + start * row, np.dtype(np.uint8), (stop - start, row), self.name)
    return unpack(packed, self.kind).reshape(-1, *self.shape[1:])


def entry(file: File, at: int, kind: Kind, shape: tuple[int, ...], name: str) -> Extent | Packed:
  """The tensor at byte `at` of a file."""
  if kind.quantised:
    return Packed(file, at, kind, shape, name)
  return Extent(file, at, kind.dtype, shape, name)


def unpack(packed_RB: np.ndarray, kind: Kind) -> np.ndarray:
  """uint8 [rows, bytes] -> float32 [rows, numbers], as ggml computes them."""
  quants = _library()
  # The scales of a hostile file may be infinite.
  with np.errstate(all='ignore'):
    return quants.dequantize(packed_RB, _library_kind(kind))


def pack_q8_0(numbers: np.ndarray, name: str) -> np.ndarray:
  """float32 [..., C] -> uint8 [..., C / 32 * 34], bit for bit as ggml's reference does.

  Raises:
    UserError: a number is not finite, or beyond what the type can say.
  """
  # Of the magnitudes: NaN compares as false.
  if numbers.size and not np.abs(numbers).max() <= _Q8_0_MAX:
    raise UserError(f'{name} holds numbers that Q8_0 cannot say (NaN, Inf or beyond {_Q8_0_MAX:.3g})')
  # Blocks of numbers below float16's reach have the scale 0: whatever stands beside it is 0 when read.
  with np.errstate(all='ignore'):
    return _library().quantize(numbers, _library_kind(BY_NAME['Q8_0']))


def _library() -> Any:
  """ggml's own Python arithmetic; imported late: it is needed for quantised tensors alone."""
  import gguf.quants

  return gguf.quants


def _library_kind(kind: Kind) -> Any:
  import gguf

  return gguf.GGMLQuantizationType(kind.code)
