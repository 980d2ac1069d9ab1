"""A zip directory is believed only where nothing in the file speaks against it."""

import io
import struct
import zipfile

import pytest

from llamax.convert.errors import FormatError
from llamax.convert.source import File
from llamax.convert.stored_zip import read_directory

CONTENTS = {'a/one': b'12345', 'a/two': b'', 'a/drei ü': b'x' * 300}


def plain():
  """Written by Python's zipfile, which knows nothing of ours."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as file:
    for name, content in CONTENTS.items():
      file.writestr(name, content)
  return out.getvalue()


def read(tmp_path, raw):
  path = tmp_path / 'file'
  path.write_bytes(raw)
  return read_directory(File(path))


def refused(tmp_path, raw, words):
  with pytest.raises(FormatError, match=words) as error:
    read(tmp_path, raw)
  assert error.value.file == str(tmp_path / 'file')


def changed(raw, at, *values, form='<H'):
  """`raw` with other numbers at byte `at` (counted from the end if negative)."""
  at = at % len(raw)
  new = struct.pack(form, *values)
  return raw[:at] + new + raw[at + len(new) :]


def central(raw, name=b'a/one'):
  """The byte of an entry in the directory."""
  return raw.rindex(b'PK\1\2', 0, raw.rindex(name))


def test_finds_what_zipfile_wrote(tmp_path):
  raw = plain()
  found = read(tmp_path, raw)
  assert {name: raw[record.at : record.at + record.size] for name, record in found.items()} == CONTENTS


def test_finds_what_was_streamed(tmp_path):
  """Sizes behind the content, as torch writes them."""

  class Pipe(io.BytesIO):
    def seekable(self):
      return False

    def seek(self, *args):
      raise io.UnsupportedOperation

    def tell(self):
      raise io.UnsupportedOperation

  out = Pipe()
  with zipfile.ZipFile(out, 'w') as file:
    for name, content in CONTENTS.items():
      file.writestr(name, content)
  raw = out.getvalue()
  assert [raw[at : at + size] for at, size in read(tmp_path, raw).values()] == list(CONTENTS.values())


def test_64_bit_numbers_where_none_are_needed(tmp_path):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as file, file.open('a/one', 'w', force_zip64=True) as entry:
    entry.write(b'12345')
  assert read(tmp_path, out.getvalue())['a/one'].size == 5


LIES = {
  'empty': (lambda raw: b'', 'is it whole'),
  'cut off': (lambda raw: raw[:-1], 'end mark'),
  'something behind': (lambda raw: raw + b'\0', 'end mark'),
  'begins elsewhere': (lambda raw: b'\0' * 7 + raw, 'should end'),
  'several disks': (lambda raw: changed(raw, -18, 1), 'several files'),
  'fewer entries': (lambda raw: changed(raw, -14, 2, 2, form='<2H'), 'are left'),
  'more entries': (lambda raw: changed(raw, -14, 4, 4, form='<2H'), 'cannot be|ends inside an entry'),
  'a directory larger than the file': (lambda raw: changed(raw, -10, 1 << 30, form='<L'), 'should end'),
  'a bomb': (lambda raw: changed(raw, central(raw) + 24, 1 << 30, form='<L'), 'compressed'),
  'compressed': (lambda raw: changed(raw, central(raw) + 10, 8), 'method 8'),
  'encrypted': (lambda raw: changed(raw, central(raw) + 8, 1), 'encrypted'),
  'too long': (
    lambda raw: changed(raw, central(raw) + 20, 500, 500, form='<2L'),
    'has 500 bytes for the directory',
  ),
  'beyond the directory': (
    lambda raw: changed(changed(raw, central(raw) + 20, 900, 900, form='<2L'), 18, 900, 900, form='<2L'),
    'wants 900 bytes',
  ),
  'overlapping': (
    lambda raw: changed(raw, central(raw, b'a/two') + 42, 0, form='<L'),
    'inside the entry|two names',
  ),
  'on another disk': (lambda raw: changed(raw, central(raw) + 34, 3), 'compressed, or damaged'),
  'no entry there': (lambda raw: changed(raw, central(raw) + 42, 3, form='<L'), 'no entry begins'),
  'another name there': (lambda raw: raw.replace(b'a/one', b'a/eno', 1), 'two names'),
  'twice': (lambda raw: raw.replace(b'a/two', b'a/one'), 'is there twice'),
  'no UTF-8': (lambda raw: raw.replace(b'a/one', b'a/o\xff\xff'), 'no UTF-8'),
  'a NUL in the name': (lambda raw: raw.replace(b'a/one', b'a/\0ne'), 'control characters'),
  '64-bit sizes that are not there': (
    lambda raw: changed(raw, central(raw) + 20, 0xFFFFFFFF, form='<L'),
    '64-bit sizes are missing',
  ),
}


@pytest.mark.parametrize('lie', LIES)
def test_a_lie_is_refused(tmp_path, lie):
  change, words = LIES[lie]
  refused(tmp_path, change(plain()), words)


def test_entries_that_share_bytes_are_refused(tmp_path):
  """The start of David Fifield's bomb (2019): one entry's content holds the next entry."""
  inner = plain()[: plain().index(b'PK\1\2')]
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as file:
    file.writestr('outer', inner)
  raw = out.getvalue()
  start, size = raw.index(b'PK\1\2'), len(raw) - 22 - raw.index(b'PK\1\2')
  at = raw.index(b'PK\3\4', 4)
  mark = plain()
  one = mark[mark.index(b'PK\1\2') : mark.index(b'PK\1\2', mark.index(b'PK\1\2') + 4)]
  one = one[:42] + struct.pack('<L', at) + one[46:]
  raw = (
    raw[:-22] + one + changed(changed(raw[-22:], 8, 2, 2, form='<2H'), 12, size + len(one), start, form='<2L')
  )
  refused(tmp_path, raw, 'inside the entry before')


def test_the_64_bit_end_mark_must_agree(tmp_path):
  raw = plain()
  start = raw.index(b'PK\1\2')
  size = len(raw) - 22 - start

  def marks(count, end, wide_size=size):
    wide = struct.pack('<4sQ2H2L4Q', b'PK\6\6', 44, 45, 45, 0, 0, count, count, wide_size, start)
    return raw[:-22] + wide + struct.pack('<4sLQL', b'PK\6\7', 0, end, 1) + raw[-22:]

  assert len(read(tmp_path, marks(3, len(raw) - 22))) == 3
  refused(tmp_path, marks(3, 0), 'none can be')
  refused(tmp_path, marks(3, 1 << 62), 'none can be')
  refused(tmp_path, marks(4, len(raw) - 22), 'contradict')
  refused(tmp_path, marks(3, len(raw) - 22, 1 << 40), 'contradict')


def test_a_pipe_is_no_file(tmp_path):
  import os

  os.mkfifo(tmp_path / 'file')
  with pytest.raises(FormatError, match='regular file'):
    File(tmp_path / 'file')
