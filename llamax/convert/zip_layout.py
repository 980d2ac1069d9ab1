"""Lays out a zip file of uncompressed entries before their content is known, byte for byte as torch.save does.

That is: content at multiples of 64 bytes, so that it can be mapped; sizes with the CRC behind the content,
since torch does not know them before (APPNOTE 6.3, sections 4.3 and 4.5.3).
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

ALIGNMENT = 64
_MAX32 = 0xFFFFFFFF
_FLAGS = 1 << 3 | 1 << 11  # sizes behind the content; names are UTF-8


@dataclasses.dataclass(frozen=True)
class Entry:
  """header: byte of its header. at: byte of its content. content: None where it comes later."""

  name: str
  header: int
  at: int
  size: int
  content: bytes | None

  @property
  def wide(self) -> bool:
    return self.header >= _MAX32 or self.size >= _MAX32


class ZipLayout:
  """entries: name -> place. size: of the whole file."""

  def __init__(self, records: Sequence[tuple[str, int | bytes]]):
    """records: (name, content), or (name, bytes) where the content comes later; no content is empty."""
    self.entries: dict[str, Entry] = {}
    end = 0
    for name, content in records:
      if isinstance(content, int):
        entry = _placed(name, end, content, None)
      else:
        entry = _placed(name, end, len(content), content)
      self.entries[name] = entry
      end = entry.at + entry.size + (24 if entry.wide else 16)
    self._directory = end
    self.size = end + sum(len(_central(entry, 0)) for entry in self.entries.values()) + _END_BYTES

  def pieces(self) -> Iterator[tuple[int, bytes]]:
    """(byte, what is there), for all that is known before the content of the rest."""
    for entry in self.entries.values():
      yield entry.header, _local(entry)
      if entry.content is not None:
        yield entry.at, entry.content

  def closing(self, crcs: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
    """(byte, what is there), for all that needs the CRC of each entry whose content came later."""
    at = self._directory
    for entry in self.entries.values():
      crc = crcs[entry.name] if entry.content is None else zlib.crc32(entry.content)
      sizes = '<4sL2Q' if entry.wide else '<4s3L'
      yield entry.at + entry.size, struct.pack(sizes, b'PK\7\x08', crc, entry.size, entry.size)
      central = _central(entry, crc)
      yield at, central
      at += len(central)
    yield at, _end(len(self.entries), self._directory, at)


def _placed(name: str, header: int, size: int, content: bytes | None) -> Entry:
  assert size
  entry = Entry(name, header, 0, size, content)
  # Padding needs a field of its own, of four bytes at least.
  first = header + 30 + len(name.encode()) + len(_local_wide(entry)) + 4
  return dataclasses.replace(entry, at=-(-first // ALIGNMENT) * ALIGNMENT)


def _local(entry: Entry) -> bytes:
  name, extra = entry.name.encode(), _local_wide(entry)
  padding = entry.at - entry.header - 30 - len(name) - len(extra) - 4
  extra += b'FB' + struct.pack('<H', padding) + b'Z' * padding
  head = struct.pack('<4s5H3L2H', b'PK\3\4', 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(name), len(extra))
  return head + name + extra


def _wide(numbers: Sequence[int]) -> bytes:
  """The zip64 extra field; nothing where it has no numbers."""
  return struct.pack(f'<2H{len(numbers)}Q', 1, 8 * len(numbers), *numbers) if numbers else b''


def _local_wide(entry: Entry) -> bytes:
  # The size in the file, which comes behind the content, is 0 here.
  sizes = [entry.size, 0] if entry.size >= _MAX32 else []
  return _wide(sizes + [entry.header] * (entry.header >= _MAX32))


def _central(entry: Entry, crc: int) -> bytes:
  name = entry.name.encode()
  extra = _wide([number for number in (entry.size, entry.size, entry.header) if number >= _MAX32])
  size, header = min(entry.size, _MAX32), min(entry.header, _MAX32)
  head = struct.pack(
    '<4s6H3L5H2L', b'PK\1\2', 0, 0, _FLAGS, 0, 0, 0, crc, size, size, len(name), len(extra), 0, 0, 0, 0, header
  )
  return head + name + extra


_END_BYTES = 56 + 20 + 22


def _end(count: int, directory: int, end: int) -> bytes:
  """The end marks, with the 64-bit ones that torch always writes."""
  size, narrow = end - directory, min(count, 0xFFFF)
  wide = struct.pack('<4sQ2H2L4Q', b'PK\6\6', 44, 0x031E, 45, 0, 0, count, count, size, directory)
  locator = struct.pack('<4sLQL', b'PK\6\7', 0, end, 1)
  last = struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, narrow, narrow, min(size, _MAX32), min(directory, _MAX32), 0)
  return wide + locator + last
