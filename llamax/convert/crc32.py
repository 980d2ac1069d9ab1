"""The CRC-32 of a long content, from those of its pieces in any order."""

import threading
from collections.abc import Iterable

_POLYNOMIAL = 0xEDB88320  # that of zip files, its bits reversed: 1 << 31 stands for 1, 1 << 30 for x
_BYTE = 1 << 23  # x**8: what one byte more multiplies the CRC of all before by


class Pieces:
  """CRCs of pieces of several contents; filled by any thread."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._found: dict[str, dict[int, tuple[int, int]]] = {}

  def add(self, name: str, start: int, size: int, crc: int) -> None:
    """`crc` is that of bytes [start : start + size] of `name`; a piece that comes again replaces the first."""
    with self._lock:
      self._found.setdefault(name, {})[start] = (size, crc)

  def whole(self, name: str, size: int) -> int | None:
    """The CRC of all `size` bytes of `name`; None where the pieces leave gaps or overlap."""
    found = sorted(self._found.get(name, {}).items())
    at = 0
    for start, (count, _) in found:
      if start != at:
        return None
      at += count
    return joined((piece for _, piece in found)) if at == size else None


def joined(pieces: Iterable[tuple[int, int]]) -> int:
  """The CRC of contents one after another, from (bytes, CRC) of each."""
  total, shifts = 0, {}
  for size, crc in pieces:
    if size not in shifts:
      shifts[size] = _power(_BYTE, size)
    # A CRC is linear: that of A followed by zeros, plus that of B with zeros in front.
    total = _product(shifts[size], total) ^ crc
  return total


def _product(a: int, b: int) -> int:
  """Of two polynomials over GF(2), modulo that of the CRC."""
  result, bit = 0, 1 << 31
  while bit:
    if a & bit:
      result ^= b
    b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
    bit >>= 1
  return result


def _power(base: int, exponent: int) -> int:
  result = 1 << 31
  while exponent:
    if exponent & 1:
      result = _product(result, base)
    base = _product(base, base)
    exponent >>= 1
  return result
