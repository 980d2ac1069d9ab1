"""GGUF headers: ours by the gguf package's reader, its writer's by ours, lies by the field that tells them."""

import struct

import numpy as np
import pytest

from llamax.convert import gguf_file
from llamax.convert.errors import FormatError
from llamax.convert.gguf_file import is_gguf, open_gguf
from llamax.convert.gguf_layout import lay_out
from llamax.convert.gguf_types import BY_NAME

KEYS = {
  'general.architecture': 'llama',
  'llama.block_count': 3,
  'llama.rope.freq_base': 500.0,
  'big': 1 << 40,
  'negative': -5,
  'yes': True,
  'no': False,
  'texts': ['', 'α', '\x00', '<0x0A>'],
  'scores': [0.5, -1.0],
  'types': [1, 3, -6],
  'flags': [True, False],
  'bytes': b'\x00\xff',
  'empty': '',
}
TENSORS = (('a.weight', 'F32', (7,)), ('b.weight', 'Q8_0', (3, 64)), ('c.weight', 'BF16', (5, 2, 3)))


def written(path, keys=KEYS, tensors=TENSORS):
  header, places, size = lay_out(keys, [(name, BY_NAME[kind], shape) for name, kind, shape in tensors])
  content = bytearray(size)
  content[: len(header)] = header
  rng = np.random.default_rng(0)
  for name, kind, shape in tensors:
    count = BY_NAME[kind].num_bytes(int(np.prod(shape)))
    content[places[name] : places[name] + count] = rng.bytes(count)
  path.write_bytes(content)
  return path


def test_our_files_by_their_reader(tmp_path):
  gguf = pytest.importorskip('gguf')
  path = written(tmp_path / 'm.gguf')
  theirs, ours = gguf.GGUFReader(path), open_gguf(path)
  assert is_gguf(path)
  for key, value in KEYS.items():
    found = theirs.get_field(key).contents()
    assert (bytes(found) if isinstance(value, bytes) else found) == value, key
    assert ours.keys[key] == value and type(ours.keys[key]) is type(value), key
  assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
  for tensor in theirs.tensors:
    found = ours.tensors[tensor.name]
    assert (found.kind.code, found.at) == (tensor.tensor_type.value, tensor.data_offset)
    assert list(found.shape) == [int(n) for n in reversed(tensor.shape)]
    assert found.file.read(found.at, tensor.n_bytes, 'x') == tensor.data.tobytes()


def their_file(path, **more):
  gguf = pytest.importorskip('gguf')
  writer = gguf.GGUFWriter(path, 'llama', **more)
  writer.add_uint8('u8', 200)
  writer.add_int8('i8', -100)
  writer.add_uint16('u16', 60_000)
  writer.add_int16('i16', -30_000)
  writer.add_int32('i32', -(1 << 31))
  writer.add_uint64('u64', (1 << 64) - 1)
  writer.add_int64('i64', -(1 << 63))
  writer.add_float32('f32', 1e-5)
  writer.add_float64('f64', 1e-300)
  writer.add_bool('bool', True)
  writer.add_string('string', 'naïve')
  writer.add_array('strings', ['a', 'b', ''])
  writer.add_array('floats', [1.5, -2.5])
  writer.add_array('ints', [7, -7])
  arrays = {}
  rng = np.random.default_rng(0)
  for name, shape in (('x', (4, 32)), ('y', (3,)), ('z', (2, 5, 7))):
    arrays[name] = rng.standard_normal(shape).astype(np.float16 if name == 'z' else np.float32)
    writer.add_tensor(name, arrays[name])
  packed = gguf.quants.quantize(arrays['x'], gguf.GGMLQuantizationType.Q4_0)
  writer.add_tensor('q', packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return arrays, packed


def test_their_files_by_our_reader(tmp_path):
  arrays, packed = their_file(tmp_path / 'm.gguf')
  found = open_gguf(tmp_path / 'm.gguf')
  assert found.keys | {'f32': 0} == {
    'general.architecture': 'llama',
    'u8': 200,
    'i8': -100,
    'u16': 60_000,
    'i16': -30_000,
    'i32': -(1 << 31),
    'u64': (1 << 64) - 1,
    'i64': -(1 << 63),
    'f32': 0,
    'f64': 1e-300,
    'bool': True,
    'string': 'naïve',
    'strings': ['a', 'b', ''],
    'floats': [1.5, -2.5],
    'ints': [7, -7],
  }
  assert found.keys['f32'] == np.float32(1e-5)
  for name, array in arrays.items():
    tensor = found.tensors[name]
    assert tensor.shape == array.shape
    assert tensor.file.read(tensor.at, array.nbytes, name) == array.tobytes()
  assert (found.tensors['q'].kind.name, found.tensors['q'].shape) == ('Q4_0', (4, 32))
  assert found.tensors['q'].file.read(found.tensors['q'].at, packed.nbytes, 'q') == packed.tobytes()


def test_their_shards_are_one_file(tmp_path):
  arrays, _ = their_file(tmp_path / 'm.gguf', split_max_tensors=2)
  shards = sorted(tmp_path.iterdir())
  assert [shard.name for shard in shards] == ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
  for shard in shards:
    found = open_gguf(shard)
    assert set(found.tensors) == {*arrays, 'q'}
    assert found.files == shards
    assert found.keys['string'] == 'naïve'
  shards[1].rename(tmp_path / 'away.gguf')
  with pytest.raises(FormatError, match=r'm-00002-of-00002.*missing'):
    open_gguf(shards[0])
  with pytest.raises(FormatError, match=r'split\.count'):
    open_gguf(tmp_path / 'away.gguf')
  (tmp_path / 'm-00002-of-00002.gguf').write_bytes(shards[0].read_bytes())
  with pytest.raises(FormatError, match=r'split\.no'):
    open_gguf(shards[0])


def test_version_2_is_read_alike(tmp_path):
  path = written(tmp_path / 'm.gguf')
  content = bytearray(path.read_bytes())
  content[4] = 2
  path.write_bytes(content)
  assert open_gguf(path).keys == KEYS


HEAD = struct.pack('<4sI', b'GGUF', 3)


def text(value):
  return struct.pack('<Q', len(value)) + value


def counts(tensors, keys):
  return HEAD + struct.pack('<QQ', tensors, keys)


ALIGNED = counts(0, 1) + text(b'general.alignment')


def tensor(name=b't', dims=(2,), kind=0, offset=0):
  return text(name) + struct.pack(f'<I{len(dims)}QIQ', len(dims), *dims, kind, offset)


def padded(header, data):
  return header + bytes(-len(header) % 32) + bytes(data)


@pytest.mark.parametrize(
  ('content', 'field', 'problem'),
  [
    (b'', 'magic', 'whole'),
    (b'GGML' + bytes(20), 'magic', 'not GGUF'),
    (b'GGUF\x00\x00\x00\x03' + bytes(20), 'version', 'big-endian'),
    (b'GGUF\x01\x00\x00\x00' + bytes(20), 'version', '2 and 3'),
    (counts(1 << 60, 0), 'tensor count', 'more than fits'),
    (counts(0, (1 << 64) - 1), 'key count', 'more than fits'),
    (counts(0, 1 << 17) + bytes(1 << 21), 'key count', 'at most'),
    (counts(0, 1) + text(b'a\0b') + bytes(20), 'key', 'no name'),
    (counts(0, 1) + text(b'') + bytes(20), 'key', 'no name'),
    (counts(0, 1) + text(b'\xff') + bytes(20), 'key', 'UTF-8'),
    (counts(0, 1) + struct.pack('<Q', 1 << 50) + bytes(20), 'key', 'whole'),
    (counts(0, 1) + text(b'k') + struct.pack('<I', 13) + bytes(20), 'k', 'type 13'),
    (counts(0, 1) + text(b'k') + struct.pack('<IB', 7, 2) + bytes(20), 'k', 'true nor false'),
    (counts(0, 1) + text(b'k') + struct.pack('<IIQ', 9, 9, 1) + bytes(20), 'k', 'list of the type 9'),
    (counts(0, 1) + text(b'k') + struct.pack('<IIQ', 9, 4, 1 << 61) + bytes(20), 'k', 'more than fits'),
    (counts(0, 1) + text(b'k') + struct.pack('<IIQ', 9, 8, 1 << 61) + bytes(20), 'k', 'more than fits'),
    (counts(0, 2) + 2 * (text(b'k') + struct.pack('<IB', 7, 1)) + bytes(20), 'k', 'twice'),
    (padded(counts(2, 0) + tensor() + tensor(offset=32), 64), 't', 'twice'),
    (padded(counts(1, 0) + tensor(b't\0'), 64), 'tensor name', 'no name'),
    (padded(counts(1, 0) + tensor(dims=()), 64), 't', '0 dims'),
    (padded(counts(1, 0) + tensor(dims=(1,) * 5), 64), 't', '5 dims'),
    (padded(counts(1, 0) + tensor(dims=(0,)), 64), 't', 'shape'),
    (padded(counts(1, 0) + tensor(dims=(1 << 63, 1 << 63)), 64), 't', 'whole'),
    (padded(counts(1, 0) + tensor(dims=(1 << 32, 1 << 32)), 64), 't', 'whole'),
    (padded(counts(1, 0) + tensor(kind=4), 64), 't', 'type 4'),
    (padded(counts(1, 0) + tensor(kind=8, dims=(33, 2)), 99), 't', 'by 32'),
    (padded(counts(1, 0) + tensor(kind=8, dims=(32,)), 99), 't', 'by 32'),
    (padded(counts(1, 0) + tensor(offset=4), 64), 't', 'multiple of 32'),
    (padded(counts(1, 0) + tensor(offset=1 << 63), 64), 't', 'whole'),
    (padded(counts(1, 0) + tensor(), 7), 't', 'whole'),
    (padded(counts(2, 0) + tensor(dims=(9,)) + tensor(b'u', offset=32), 99), 'u', 'lies over t'),
    (ALIGNED + struct.pack('<II', 4, 24), 'general.alignment', 'power of two'),
    (ALIGNED + struct.pack('<II', 4, 0), 'general.alignment', 'power of two'),
    (ALIGNED + struct.pack('<IB', 7, 1), 'general.alignment', 'power of two'),
  ],
)  # fmt: skip
def test_lies_name_file_and_field(tmp_path, content, field, problem):
  path = tmp_path / 'm.gguf'
  path.write_bytes(content)
  with pytest.raises(FormatError, match=problem) as error:
    open_gguf(path)
  assert error.value.field == field
  assert str(path) in str(error.value)


def test_another_alignment(tmp_path):
  head = counts(1, 1) + text(b'general.alignment') + struct.pack('<II', 4, 128) + tensor()
  path = tmp_path / 'm.gguf'
  path.write_bytes(head + bytes(-len(head) % 128) + bytes(8))
  assert open_gguf(path).tensors['t'].at == 128


@pytest.mark.parametrize('kind', [4, 8])
def test_lists_are_bounded_together(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(gguf_file, '_VALUES', 200)
  path = tmp_path / 'm.gguf'
  count = 90
  lists = [
    text(b'%d' % i) + struct.pack('<IIQ', 9, kind, count) + bytes(count * (4 if kind == 4 else 8))
    for i in range(3)
  ]
  path.write_bytes(counts(0, 3) + b''.join(lists))
  with pytest.raises(FormatError, match='lists hold more') as error:
    open_gguf(path)
  assert error.value.field == '2'


def test_a_long_header_is_refused(tmp_path):
  path = tmp_path / 'm.gguf'
  with open(path, 'wb') as file:
    file.write(counts(0, 1) + text(b'k') + struct.pack('<IQ', 8, 1 << 30))
    file.truncate(1 << 31)
  with pytest.raises(FormatError, match='64 MiB'):
    open_gguf(path)


def test_what_is_no_file_is_refused(tmp_path):
  assert not is_gguf(tmp_path)
  with pytest.raises(FormatError, match='regular'):
    open_gguf(tmp_path)
