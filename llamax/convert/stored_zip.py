"""Reads the directory of a zip file of uncompressed entries, believing no number in it.

The layout is PKWARE's APPNOTE 6.3, sections 4.3 and 4.5.3, as far as torch writes it.
"""

import struct
from typing import NamedTuple

from llamax.convert.errors import FormatError, printable
from llamax.convert.source import File

_END = struct.Struct('<4s4H2LH')  # end of central directory, APPNOTE 4.3.16
_LOCATOR = struct.Struct('<4sLQL')  # zip64 end of central directory locator, 4.3.15
_END64 = struct.Struct('<4sQ2H2L4Q')  # zip64 end of central directory, 4.3.14
_CENTRAL = struct.Struct('<4s6H3L5H2L')  # central directory header, 4.3.12
_LOCAL = struct.Struct('<4s5H3L2H')  # local file header, 4.3.7
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_EXTRA = 1
# Sizes are behind the data (bit 3), names are UTF-8 (bit 11); encryption, patches, compression are refused.
_FLAGS = 1 << 3 | 1 << 11
_DIRECTORY_BYTES = 1 << 22  # some 40,000 entries
_LOCAL_FIELDS = 1 << 11  # bytes of a local header that are read at once


class Record(NamedTuple):
  """at: byte of the file where the entry's content begins."""

  at: int
  size: int


class _Central(NamedTuple):
  name: bytes
  flags: int
  size: int
  header: int  # byte of its local header


def read_directory(file: File) -> dict[str, Record]:
  """Name -> place of each entry.

  Raises:
    FormatError: it is no such file, or two of its numbers contradict each other: entries that overlap, reach
      beyond the file, have two sizes or two names, share one name, are compressed.
  """
  count, start, end = _find_directory(file)
  raw = file.read(start, end - start, 'zip directory')
  entries, at = [], 0
  for _ in range(count):
    entry, at = _central(file, raw, at)
    entries.append(entry)
  if at != len(raw):
    raise FormatError(file.path, 'zip directory', f'{len(raw) - at} bytes are left behind its {count} entries')
  records: dict[str, Record] = {}
  free = 0
  for entry in sorted(entries, key=lambda entry: entry.header):
    name = _text(file, entry.name)
    if name in records:
      raise FormatError(file.path, name, 'is there twice')
    if entry.header < free:
      raise FormatError(file.path, name, f'begins at byte {entry.header}, inside the entry before it')
    records[name] = record = _local(file, entry, name, start)
    free = record.at + record.size
  return records


def _find_directory(file: File) -> tuple[int, int, int]:
  """(entries, first byte of the directory, the byte behind it)."""
  field = 'zip directory'
  if file.size < _END.size:
    raise FormatError(file.path, field, f'the file has {file.size} bytes: is it whole?')
  end = file.size - _END.size
  sign, disk, first_disk, here, count, size, start, comment = _END.unpack(file.read(end, _END.size, field))
  if sign != b'PK\5\6' or comment:
    raise FormatError(file.path, field, 'its end mark is not at the end of the file: is the file whole?')
  if (disk, first_disk) != (0, 0) or here != count:
    raise FormatError(file.path, field, 'the archive is split over several files')
  locator = end - _LOCATOR.size
  sign, disk, end64, disks = (
    _LOCATOR.unpack(file.read(locator, _LOCATOR.size, field)) if locator >= 0 else (b'', 0, 0, 0)
  )
  if sign == b'PK\6\7':
    if disk or disks != 1 or end64 + _END64.size != locator:
      raise FormatError(
        file.path, field, f'its 64-bit end mark is said to be at byte {end64}, where none can be'
      )
    wide = _END64.unpack(file.read(end64, _END64.size, field))
    if wide[:2] != (b'PK\6\6', _END64.size - 12) or wide[4:6] != (0, 0) or wide[6] != wide[7]:
      raise FormatError(file.path, field, 'its 64-bit end mark is damaged')
    narrow = ((count, wide[7], _MAX16), (size, wide[8], _MAX32), (start, wide[9], _MAX32))
    if any(short not in (long, limit) for short, long, limit in narrow):
      raise FormatError(file.path, field, 'its 32-bit and 64-bit end marks contradict each other')
    count, size, start, end = wide[7], wide[8], wide[9], end64
  if start + size != end:
    raise FormatError(file.path, field, f'is said to be {size} bytes at {start}; it should end at byte {end}')
  if size > _DIRECTORY_BYTES or count * _CENTRAL.size > size:
    raise FormatError(file.path, field, f'{count} entries in {size} bytes cannot be')
  return count, start, end


def _central(file: File, raw: bytes, at: int) -> tuple[_Central, int]:
  """One entry of the directory, then the byte behind it."""
  field = 'zip directory'
  if at + _CENTRAL.size > len(raw):
    raise FormatError(file.path, field, 'ends inside an entry')
  head = _CENTRAL.unpack_from(raw, at)
  sign, flags, method = head[0], head[3], head[4]
  packed, size, name_size, extra_size, comment, disk, header = *head[8:14], head[16]
  at += _CENTRAL.size
  name, extra = raw[at : at + name_size], raw[at + name_size : at + name_size + extra_size]
  at += name_size + extra_size + comment
  if sign != b'PK\1\2' or at > len(raw):
    raise FormatError(file.path, field, 'ends inside an entry')
  shown = printable(name.decode(errors='replace'))
  if method or flags & ~_FLAGS:
    raise FormatError(file.path, shown, f'is compressed or encrypted (method {method}, flags {flags:#x})')
  # The 64-bit values of those that do not fit, in this order (APPNOTE 4.5.3).
  wide = iter(_wide(file, extra, shown))
  try:
    size, packed, header = (next(wide) if value == _MAX32 else value for value in (size, packed, header))
  except (StopIteration, RuntimeError):
    raise FormatError(file.path, shown, 'its 64-bit sizes are missing') from None
  if packed != size or disk:
    raise FormatError(
      file.path, shown, f'has {packed} bytes in the file for {size}: it is compressed, or damaged'
    )
  return _Central(name, flags, size, header), at


def _wide(file: File, extra: bytes, shown: str) -> list[int]:
  """The numbers of the zip64 extra field; none where there is no such field."""
  at = 0
  while at + 4 <= len(extra):
    kind, size = struct.unpack_from('<2H', extra, at)
    at += 4
    if at + size > len(extra):
      break
    if kind == _ZIP64_EXTRA:
      return list(struct.unpack_from(f'<{size // 8}Q', extra, at))
    at += size
  if at != len(extra):
    raise FormatError(file.path, shown, 'its extra fields are cut off')
  return []


def _local(file: File, entry: _Central, name: str, limit: int) -> Record:
  """Where the content begins, from the header in front of it, which must say what the directory says."""
  fixed = file.read(entry.header, min(_LOCAL_FIELDS, max(0, limit - entry.header)), name)
  if len(fixed) < _LOCAL.size:
    raise FormatError(file.path, name, f'is said to begin at byte {entry.header}, where no entry can begin')
  sign, _, flags, method, _, _, _, packed, size, name_size, extra_size = _LOCAL.unpack_from(fixed)
  if sign != b'PK\3\4' or flags != entry.flags or method:
    raise FormatError(file.path, name, f'no entry begins at byte {entry.header}, or another one')
  content = _LOCAL.size + name_size
  if fixed[_LOCAL.size : content] != entry.name:
    raise FormatError(file.path, name, 'the directory and the entry itself have two names for it')
  if _MAX32 in (size, packed):
    extra = fixed[content : content + extra_size]
    if len(extra) != extra_size:
      raise FormatError(file.path, name, 'its extra fields are too long')
    wide = _wide(file, extra, name)
    size, packed = (wide[0], wide[1]) if len(wide) >= 2 else (size, packed)
  # Written before its sizes were known, they are zero (bit 3).
  if (size, packed) not in ((entry.size, entry.size), (0, 0)):
    raise FormatError(file.path, name, f'has {entry.size} bytes for the directory, {size} for the entry itself')
  at = entry.header + content + extra_size
  if at + entry.size > limit:
    raise FormatError(
      file.path, name, f'wants {entry.size:,} bytes at {at:,}; the directory begins at {limit:,}'
    )
  return Record(at, entry.size)


def _text(file: File, name: bytes) -> str:
  try:
    text = name.decode()
  except UnicodeDecodeError:
    raise FormatError(file.path, printable(name.decode(errors='replace')), 'its name is no UTF-8') from None
  if not text or not text.isprintable():
    raise FormatError(file.path, text, 'its name is empty, or has control characters')
  return text
