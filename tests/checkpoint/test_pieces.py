"""Any part of a checkpoint is read as it was saved, whoever wrote it."""

import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest

from llamax.checkpoint import chunks, digests, leaves
from llamax.checkpoint.manager import Checkpoints
from llamax.checkpoint.pieces import Pieces
from llamax.checkpoint.plain import PlainArray
from llamax.checkpoint.reading import DamagedCheckpoint
from llamax.checkpoint.streaming import StreamedParams

SHAPES = {'params/embed/table': (48, 20), 'params/layers/attn/wq': (3, 20, 4, 6), 'params/norm/scale': (20,)}
INDICES = [
  (),
  (slice(None),),
  (0,),
  (slice(5, 17),),
  (2, slice(1, 4)),
  (1, slice(3, 11), slice(1, 4)),
  (slice(1, 3), slice(2, 3), 1, slice(0, 5)),
  (2, 19, 3, 5),
]


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(ml_dtypes.bfloat16 if 'wq' in name else np.float32)
    for name, shape in SHAPES.items()
  }


@pytest.fixture(params=['run', 'sharded run', 'streamed', 'streamed for a mesh'])
def folder(request, arrays, tmp_path, cfg, monkeypatch):
  monkeypatch.setattr(chunks, 'MOST', 1024)
  monkeypatch.setattr(chunks, 'LEAST', 64)
  if 'run' in request.param:
    mesh = jax.make_mesh((4,), ('fsdp',), devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec('fsdp' if 'sharded' in request.param else None)
    table = jax.sharding.NamedSharding(mesh, spec)
    others = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = {n: jax.device_put(a, table if 'table' in n else others) for n, a in arrays.items()}
    with Checkpoints(tmp_path, cfg()) as checkpoints:
      checkpoints.save(0, leaves.nest(state | {'step': jax.numpy.int32(0)}), {'config': {}})
  else:
    parts = {'params/layers/attn/wq': (1, 4, 2, 1)} if 'mesh' in request.param else None
    streamed = StreamedParams(tmp_path / '0', {n: (a.shape, a.dtype) for n, a in arrays.items()}, parts)
    for name, array in arrays.items():
      streamed.write(name, (), array)
    streamed.finish({'config': {}})
  return tmp_path / '0'


def test_any_part_is_as_numpy_cuts_it(folder, arrays):
  pieces = Pieces(folder)
  assert set(pieces.arrays) == set(arrays)
  for name, array in arrays.items():
    for index in INDICES:
      dims = list(zip(index, array.shape, strict=False))
      inside = all((at.stop or 0) <= n if isinstance(at, slice) else at < n for at, n in dims)
      if len(index) > array.ndim or not inside:
        continue
      found = pieces.read(name, index)
      assert found.dtype == array.dtype and found.shape == array[index].shape and found.flags.c_contiguous
      assert found.tobytes() == array[index].tobytes(), (name, index)


def test_a_file_that_is_cut_off_or_gone_is_damage(tmp_path, arrays):
  streamed = StreamedParams(tmp_path / '0', {n: (a.shape, a.dtype) for n, a in arrays.items()})
  for name, array in arrays.items():
    streamed.write(name, (), array)
  streamed.finish({'config': {}})
  pieces = Pieces(tmp_path / '0')
  file = next((tmp_path / '0/state/params.embed.table').glob('0*'))
  os.truncate(file, 100)
  with pytest.raises(DamagedCheckpoint, match=r'0\.0 cannot be read .* ends after 100 bytes'):
    pieces.read('params/embed/table', ())
  with pytest.raises(DamagedCheckpoint, match=r'table/\.zarray cannot be read .* chunks of 3,840 bytes'):
    Pieces(tmp_path / '0')
  file.unlink()
  with pytest.raises(DamagedCheckpoint, match=r'0\.0 cannot be read'):
    pieces.read('params/embed/table', ())
  for text in ('{', '[]'):
    (tmp_path / '0/state/params.norm.scale/.zarray').write_text(text)
    with pytest.raises(DamagedCheckpoint, match='cannot be read'):
      Pieces(tmp_path / '0')


@pytest.mark.parametrize(
  'change',
  [
    {'compressor': {'id': 'zlib', 'level': 1}},
    {'order': 'F'},
    {'chunks': [7, 20]},
    {'zarr_format': 3},
    {'dtype': ','},  # numpy would call that bad syntax
    {'dtype': '<i4'},
  ],
)
def test_what_is_not_plain_is_left_to_tensorstore(tmp_path, change):
  array = PlainArray(tmp_path, (48, 20), np.dtype(np.float32), (12, 20))
  array.create()
  array.write((), np.zeros((48, 20), np.float32), lambda *seen: None)
  path = tmp_path / '.zarray'
  assert PlainArray.opened(tmp_path).chunk == (12, 20)
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  assert PlainArray.opened(tmp_path) is None


@pytest.mark.parametrize('folder', ['streamed'], indirect=True)
def test_a_flipped_bit_is_found_by_whoever_reads_of_its_file(folder, arrays, monkeypatch):
  """Read whole, a file is read once; read in part, all of it is compared before."""
  read = []
  reading = digests.require_file
  monkeypatch.setattr(
    digests, 'require_file', lambda path, *others: (read.append(others[1] is not None), reading(path, *others))
  )
  name = 'params/embed/table'
  sound = Pieces(folder)
  assert sound.check_as_read()
  rows = sound.arrays[name].chunk[0]
  assert 1 < rows < len(arrays[name])
  np.testing.assert_array_equal(sound.read(name, (slice(0, rows),)), arrays[name][:rows])
  np.testing.assert_array_equal(sound.read(name, (slice(rows, rows + 1),)), arrays[name][rows : rows + 1])
  sound.read(name, (slice(0, rows + 1),))
  assert read == [True, False]
  file = folder / 'state' / name.replace('/', '.') / '1.0'
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)
  for start, stop in ((rows, 2 * rows), (rows, rows + 1), (0, len(arrays[name]))):
    damaged = Pieces(folder)
    damaged.check_as_read()
    with pytest.raises(DamagedCheckpoint, match=r'1\.0'):
      damaged.read(name, (slice(start, stop),))
