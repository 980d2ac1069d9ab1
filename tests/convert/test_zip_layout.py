"""The zip file that we lay out is the one that torch's own writer makes, byte for byte."""

import zlib

import pytest

from llamax.convert.source import File
from llamax.convert.stored_zip import read_directory
from llamax.convert.zip_layout import ZipLayout

CONTENTS = {'data.pkl': b'xx', 'data/0': b'abcdef', 'data/1': b'z' * 1000, 'data/22': b'q' * 63}
# Sizes at which numbers no longer fit 32 bits: the entry's own, its place, neither by a little.
LARGE = {'size': 2**32 + 10, 'size, barely': 2**32 - 1, 'place': 2**32 - 600, 'neither': 2**31}


def torch_file(path, records):
  """Made by torch; an integer in place of a content becomes a hole of so many bytes."""
  torch = pytest.importorskip('torch')
  writer = torch._C.PyTorchFileWriter(str(path))
  for name, content in records.items():
    if isinstance(content, int):
      writer.write_record_metadata(name, content)
    else:
      writer.write_record(name, content, len(content))
  writer.write_end_of_file()


def whole(path, records):
  """Our records of the same file: torch puts three of its own behind."""
  file = File(path)
  number = f'{path.stem}/.data/serialization_id'
  found = read_directory(file)[number]
  ours = [(f'{path.stem}/{name}', content) for name, content in records.items()]
  tail = [(f'{path.stem}/version', b'3\n'), (f'{path.stem}/byteorder', b'little')]
  return [*ours, *tail, (number, file.read(found.at, found.size, 'id'))]


def test_the_same_bytes_as_torch(tmp_path):
  path = tmp_path / 'some.pth'
  torch_file(path, CONTENTS)
  layout = ZipLayout(whole(path, CONTENTS))
  made = bytearray(layout.size)
  for at, content in [*layout.pieces(), *layout.closing({})]:
    made[at : at + len(content)] = content
  assert bytes(made) == path.read_bytes()


@pytest.mark.parametrize('size', LARGE.values(), ids=LARGE)
def test_the_same_headers_as_torch_beyond_32_bits(tmp_path, size):
  path = tmp_path / 'large.pth'
  records = {'data.pkl': b'xx', 'data/0': b'abc', 'data/1': size, 'data/2': b'abcdefg', 'data/3': b'hi'}
  torch_file(path, records)  # A hole: it takes no place on the disk.
  layout = ZipLayout(whole(path, records))
  assert layout.size == path.stat().st_size
  file = File(path)
  for at, content in [*layout.pieces(), *layout.closing({'large/data/1': 0})]:
    assert file.read(at, len(content), 'x') == content
  places = {name: (entry.at, entry.size) for name, entry in layout.entries.items()}
  assert {name: tuple(record) for name, record in read_directory(file).items()} == places


def test_content_that_comes_later():
  layout = ZipLayout([('a/first', b'one'), ('a/second', 5)])
  entry = layout.entries['a/second']
  assert entry.at % 64 == 0 and entry.size == 5
  assert all(not (at <= entry.at < at + len(content)) for at, content in layout.pieces())
  crc = zlib.crc32(b'hello')
  assert sum(crc.to_bytes(4, 'little') in content for _, content in layout.closing({'a/second': crc})) == 2
