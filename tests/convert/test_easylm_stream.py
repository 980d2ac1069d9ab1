"""Streams that EasyLM's own libraries wrote are read; damaged ones are one kind of error."""

import random
import time

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest

from llamax.convert import easylm_stream
from llamax.convert.errors import FormatError
from llamax.convert.source import File


def stream(tree):
  """Bytes as EasyLM's save_train_state_to_file writes them. tree: key tuple -> array or anything else."""
  packer = msgpack.Packer()
  return b''.join(packer.pack((key, flax.serialization.to_bytes(value))) for key, value in tree.items())


def written(tmp_path, content, name='streaming_params'):
  path = tmp_path / name
  path.write_bytes(content)
  return path


def read(path):
  """name -> array, each read whole."""
  values = {'/'.join(key): value for key, value in easylm_stream.entries(File(path))}
  tensors = {name: value.tensor() for name, value in values.items()}
  return {name: tensor.read(0, tensor.shape[0]) for name, tensor in tensors.items()}


def some_arrays():
  rng = np.random.default_rng(0)
  shapes = {('a',): (3,), ('b', 'c'): (5, 7), ('b', 'd', '0'): (2, 3, 4), ('e',): (300, 90)}
  dtypes = (np.float32, np.float16, ml_dtypes.bfloat16, np.float32)
  return {
    key: rng.standard_normal(shape).astype(dtype)
    for (key, shape), dtype in zip(shapes.items(), dtypes, strict=True)
  }


def test_what_flax_wrote_is_read_bit_for_bit(tmp_path):
  arrays = some_arrays()
  found = read(written(tmp_path, stream(arrays)))
  assert list(found) == ['a', 'b/c', 'b/d/0', 'e']
  for key, array in arrays.items():
    ours = found['/'.join(key)]
    assert ours.dtype == array.dtype and ours.shape == array.shape and ours.tobytes() == array.tobytes()


def test_pieces_are_joined(tmp_path, monkeypatch):
  monkeypatch.setattr(flax.serialization, 'MAX_CHUNK_SIZE', 64)
  arrays = some_arrays()
  path = written(tmp_path, stream(arrays))
  found = read(path)
  assert all(found['/'.join(key)].tobytes() == array.tobytes() for key, array in arrays.items())
  table = dict(easylm_stream.entries(File(path)))[('e',)].tensor()
  assert table.read(17, 18).tobytes() == arrays[('e',)][17:18].tobytes()
  assert table.read(299, 300).tobytes() == arrays[('e',)][299:].tobytes()
  assert table.read(3, 250).tobytes() == arrays[('e',)][3:250].tobytes()


def test_what_is_no_array_is_stepped_over_until_it_is_asked_for(tmp_path):
  path = written(tmp_path, stream({('step',): 7, ('opt_state', '0'): {}, ('a',): np.ones(3, np.float32)}))
  values = dict(easylm_stream.entries(File(path)))
  assert values[('a',)].tensor().shape == (3,)
  for key in (('step',), ('opt_state', '0')):
    with pytest.raises(FormatError, match='/'.join(key)):
      values[key].tensor()


def pack(value):
  return msgpack.packb(value)


def ndarray(shape, dtype='float32', content=b'\0' * 12):
  return msgpack.packb(msgpack.ExtType(1, msgpack.packb((shape, dtype, content))))


GOOD = pack((('a',), ndarray((3,))))
DAMAGED = {
  'cut in a header': (GOOD[:3], 'left'),
  'cut in the numbers': (GOOD[:-1], 'left'),
  'no pair': (pack([1]), 'no pair'),
  'another kind of file': (b'\x80\x02}q\x00.', 'want a pair'),
  'a key that is a text': (pack(('a', b'')), 'want a key'),
  'an empty key': (pack(((), b'')), 'key of 0 parts'),
  'a long key': (pack((['a'] * 33, b'')), 'key of 33 parts'),
  'a long part': (pack((['a' * 257], b'')), '257 bytes'),
  'a NUL in a key': (pack((['a\0'], b'')), 'cannot be printed'),
  'a slash in a key': (pack((['a/b'], b'')), 'slash'),
  'a key of bad UTF-8': (b'\x92\x91\xa1\xff\xc4\x00', 'cannot be printed'),
  'a value that is a number': (pack((['a'], 5)), 'want bytes'),
  'a length beyond the file': (b'\x92\x91\xa1a\xc6\xff\xff\xff\xff', '4,294,967,295 bytes'),
  'a key of 2^32 parts': (b'\x92\xdd\xff\xff\xff\xff', 'key of 4,294,967,295 parts'),
}
LIES = {
  'a shape with more': (ndarray((4,)), 'has 12 bytes'),
  'a shape with less': (ndarray((2,)), 'has 12 bytes'),
  'a shape that overflows': (ndarray((2**62, 2**62)), 'has 12 bytes'),
  'no dim': (ndarray((), content=b'\0' * 4), 'shape'),
  'a dim of 0': (ndarray((0,), content=b''), 'shape'),
  'a dim below 0': (ndarray((-1,)), 'whole number'),
  'many dims': (ndarray((1,) * 9, content=b'\0' * 4), '9 dims'),
  'float64': (ndarray((3,), 'float64', b'\0' * 24), 'float64'),
  'objects': (ndarray((3,), 'object'), 'object'),
  'another extension': (pack(msgpack.ExtType(2, b'abc')), 'another type'),
  'two parts': (pack(msgpack.ExtType(1, pack(((3,), 'float32')))), 'three parts'),
  'bytes after it': (ndarray((3,)) + b'\0', 'too many'),
  'bytes after it inside': (
    pack(msgpack.ExtType(1, pack(((3,), 'float32', b'\0' * 12)) + b'\0')),
    'too many',
  ),
  'nothing': (b'', 'left'),
  'another map': (pack({'a': 1}), 'neither'),
  'wrong keys': (pack({'a': 1, 'shape': {}, 'chunks': {}}), 'among its pieces'),
  'a key twice': (b'\x83\xa5shape\x81\xa10\x03\xa5shape\x81\xa10\x03', 'among its pieces'),
  'false': (pack({'__msgpack_chunked_array__': False, 'shape': {}, 'chunks': {}}), 'not true'),
  'no pieces': (pack({'__msgpack_chunked_array__': True, 'shape': {'0': 3}, 'chunks': {}}), 'map of 0'),
  'pieces out of order': (
    b'\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa10\x03\xa6chunks\x81\xa11' + ndarray((3,)),
    "without '0'",
  ),
  'pieces of another size': (
    b'\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa10\x04\xa6chunks\x81\xa10' + ndarray((3,)),
    'pieces have 3',
  ),
  'pieces of two dims': (
    b'\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa10\x03\xa6chunks\x81\xa10' + ndarray((3, 1)),
    'no flat arrays',
  ),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_a_damaged_stream_is_a_format_error(tmp_path, name):
  content, message = DAMAGED[name]
  with pytest.raises(FormatError, match=message) as caught:
    list(easylm_stream.entries(File(written(tmp_path, content))))
  assert caught.value.file.endswith('streaming_params') and caught.value.field


@pytest.mark.parametrize('name', LIES)
def test_a_lying_array_is_a_format_error_that_names_it(tmp_path, name):
  content, message = LIES[name]
  (value,) = dict(easylm_stream.entries(File(written(tmp_path, pack((('b', 'a'), content)))))).values()
  with pytest.raises(FormatError, match=message) as caught:
    value.tensor()
  assert caught.value.field == 'b/a'


def test_too_many_objects_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(easylm_stream, '_MAX_ENTRIES', 3)
  with pytest.raises(FormatError, match='after 3 others'):
    list(easylm_stream.entries(File(written(tmp_path, GOOD * 4))))


def test_mutants_are_read_or_refused(tmp_path, monkeypatch):
  """2,000 files with flipped, cut, doubled bytes: nothing but FormatError, each in less than a second."""
  monkeypatch.setattr(flax.serialization, 'MAX_CHUNK_SIZE', 64)
  good = stream({key: array for key, array in some_arrays().items() if key != ('e',)})
  rng, refused = random.Random(0), 0
  for _ in range(2000):
    content = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 8))):
      at = rng.randrange(len(content))
      kind = rng.randrange(4)
      if kind == 0:
        content[at] = rng.randrange(256)
      elif kind == 1:
        content[at] ^= 1 << rng.randrange(8)
      elif kind == 2:
        del content[at : at + rng.randrange(1, 9)]
      else:
        content[at:at] = content[at : at + rng.randrange(1, 9)]
    start = time.monotonic()
    try:
      read(written(tmp_path, bytes(content)))
    except FormatError:
      refused += 1
    assert time.monotonic() - start < 1
  assert 500 < refused < 2000
