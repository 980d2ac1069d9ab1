"""A checkpoint written piece by piece is one like any other."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from llamax.checkpoint import chunks, digests, leaves, listing, reading
from llamax.checkpoint.streaming import StreamedParams
from llamax.core.errors import UserError

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {
  'params/embed/table': (48, 20),
  'params/layers/attn/wq': (3, 20, 4, 6),
  'params/layers/norm/scale': (3, 20),
  'params/final_norm/scale': (20,),
}
PARTS = {
  'params/embed/table': (2, 4),
  'params/layers/attn/wq': (1, 4, 2, 1),
  'params/layers/norm/scale': (1, 4),
}


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
  monkeypatch.setattr(chunks, 'MOST', 1024)
  monkeypatch.setattr(chunks, 'LEAST', 64)


@pytest.fixture(params=[np.dtype(np.float32), BF16], ids=str)
def arrays(request):
  """All bit patterns are as good as any other: NaN with its payload, -0.0, too."""
  rng = np.random.default_rng(0)
  word = np.dtype(f'u{request.param.itemsize}')
  return {
    name: rng.integers(0, np.iinfo(word).max, shape, dtype=word, endpoint=True).view(request.param)
    for name, shape in SHAPES.items()
  }


def opened(folder, arrays, parts=PARTS):
  return StreamedParams(folder / '0', {n: (a.shape, a.dtype) for n, a in arrays.items()}, parts)


def pieces(arrays):
  """(leaf, index, array): layers one by one, the table in columns, which follow each other in no file."""
  for name, array in arrays.items():
    if 'layers' in name:
      yield from ((name, (layer,), array[layer]) for layer in range(len(array)))
    elif array.ndim == 2:
      for first, last in ((0, 7), (7, 20)):
        yield name, (slice(None), slice(first, last)), array[:, first:last]
    else:
      yield name, (), array


def write(streamed, arrays, meta=None):
  for piece in pieces(arrays):
    streamed.write(*piece)
  streamed.finish(meta or {'config': {}})


def same(found, arrays):
  found = leaves.named_leaves(found)
  return sorted(found) == sorted(arrays) and all(
    found[name].dtype == array.dtype and np.asarray(found[name]).tobytes() == array.tobytes()
    for name, array in arrays.items()
  )


@pytest.mark.parametrize('parts', [None, PARTS], ids=['whole', 'sharded'])
def test_orbax_by_itself_reads_the_same_bits(tmp_path, arrays, parts):
  write(opened(tmp_path, arrays, parts), arrays)
  with ocp.PyTreeCheckpointer() as reader:
    assert same(reader.restore(tmp_path / '0/state'), arrays)
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
    kinds = ocp.args.Composite(state=ocp.args.PyTreeRestore(), meta=ocp.args.JsonRestore())
    found = reader.restore(tmp_path / '0', args=kinds)
  assert same(found['state'], arrays)
  assert found['meta']['leaves'] == leaves.leaf_table(arrays) and found['meta']['step'] == 0


@pytest.mark.parametrize('sizes', [(1, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_a_mesh_restores_the_same_bits(tmp_path, arrays, sizes):
  write(opened(tmp_path, arrays), arrays, {'config': {'a': 1}})
  mesh = jax.make_mesh(sizes, ('data', 'fsdp', 'tensor'), devices=jax.devices()[: int(np.prod(sizes))])
  specs = {
    'params/embed/table': ('tensor', 'fsdp'),
    'params/layers/attn/wq': (None, 'fsdp', 'tensor'),
    'params/layers/norm/scale': (None, 'fsdp'),
    'params/final_norm/scale': ('fsdp',),
  }
  target = {
    name.removeprefix('params/'): jax.ShapeDtypeStruct(
      array.shape,
      array.dtype,
      sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*specs[name])),
    )
    for name, array in arrays.items()
  }
  params, meta = reading.restore_params(tmp_path, leaves.nest(target))
  assert same({'params': params}, arrays)
  assert params['layers']['attn']['wq'].sharding == target['layers/attn/wq'].sharding
  assert meta['config'] == {'a': 1} and meta['leaves'] == leaves.leaf_table(arrays)


def test_a_device_reads_files_of_its_own(tmp_path, arrays):
  streamed = opened(tmp_path, arrays)
  assert streamed.leaves['params/layers/attn/wq'].chunk == (1, 5, 2, 6)
  write(streamed, arrays)
  path = tmp_path / '0/state/params.layers.attn.wq/2.3.1.0'
  assert path.read_bytes() == arrays['params/layers/attn/wq'][2, 15:20, 2:4].tobytes()
  array = ts.open({'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{path.parent}/'}}).result()
  assert array.read().result().tobytes() == arrays['params/layers/attn/wq'].tobytes()


def test_it_is_listed_as_whole_until_a_bit_flips(tmp_path, arrays):
  folder = tmp_path / 'checkpoints'
  write(opened(folder, arrays), arrays, {'config': {}, 'mesh': {'fsdp': 4}})
  (entry,) = listing.entries(folder)
  assert entry.state == 'whole' and entry.mesh == {'fsdp': 4}
  assert entry.files == len(digests.read(folder / '0')['files'])
  assert digests.verify(folder / '0') == []
  chunk = folder / '0/state/params.layers.attn.wq/1.0.0.0'
  content = bytearray(chunk.read_bytes())
  content[-1] ^= 1
  chunk.write_bytes(content)
  (damage,) = digests.verify(folder / '0')
  assert damage.file == 'state/params.layers.attn.wq/1.0.0.0'
  with pytest.raises(reading.DamagedCheckpoint, match=r'params\.layers\.attn\.wq/1\.0\.0\.0 has digest'):
    reading.restore_params(folder, {})


def test_the_digests_taken_on_the_way_are_those_of_the_files(tmp_path, arrays, monkeypatch):
  read = []
  whole = digests._describe
  monkeypatch.setattr(digests, '_describe', lambda path, *a: read.append(path.name) or whole(path, *a))
  write(opened(tmp_path, arrays), arrays)
  assert not {'0.0.0.0', '2.3.1.0'} & set(read)  # of wq: layers come whole
  assert {'0.1', '1.1'} <= set(read)  # of the table: columns come in no order of the file
  monkeypatch.undo()
  hashed = digests.read(tmp_path / '0')
  (tmp_path / '0/digests.json').unlink()
  assert digests.write(tmp_path / '0') == hashed


def test_a_killed_writer_is_gone_on_from(tmp_path, arrays):
  done = list(pieces(arrays))
  first = opened(tmp_path, arrays)
  for piece in done[:3]:
    first.write(*piece)
  first.sync()
  torn = tmp_path / 'writer-0/state/params.layers.attn.wq/2.0.0.0'
  torn.write_bytes(b'torn')
  second = opened(tmp_path, arrays)
  assert not (tmp_path / '0').exists()
  for piece in done[2:]:  # one of them twice
    second.write(*piece)
  second.finish({'config': {}})
  assert digests.verify(tmp_path / '0') == [] and not (tmp_path / 'writer-0').exists()
  assert sorted(path.name for path in (tmp_path / '0').iterdir() if path.is_dir()) == ['meta', 'state']
  with ocp.PyTreeCheckpointer() as reader:
    assert same(reader.restore(tmp_path / '0/state'), arrays)


def test_a_file_of_which_half_was_there_is_hashed_whole(tmp_path, arrays):
  name, half = 'params/final_norm/scale', slice(10, 20)
  opened(tmp_path, arrays).write(name, (half,), arrays[name][half])
  second = opened(tmp_path, arrays)
  for piece in list(pieces(arrays))[:-1]:
    second.write(*piece)
  second.write(name, (slice(10),), arrays[name][:10])
  second.finish({'config': {}})
  assert digests.verify(tmp_path / '0') == []


def test_killed_while_it_finishes_it_finishes_again(tmp_path, arrays, monkeypatch):
  streamed = opened(tmp_path, arrays)

  def fail(*args, **options):
    raise OSError(28, 'No space left on device')

  for last in ('llamax.checkpoint.digests.write', 'llamax.core.storage.move'):
    with monkeypatch.context() as broken:
      broken.setattr(last, fail)
      with pytest.raises(OSError, match='No space'):
        write(streamed, arrays)
    assert not (tmp_path / '0').exists()
    streamed = opened(tmp_path, arrays)
  streamed.finish({'config': {}})
  assert digests.verify(tmp_path / '0') == []


def test_what_was_not_written_is_noticed(tmp_path, arrays):
  streamed = opened(tmp_path, arrays)
  for piece in list(pieces(arrays))[:-1]:
    streamed.write(*piece)
  with pytest.raises(AssertionError, match=r'params\.final_norm\.scale/0: 0 of '):
    streamed.finish({'config': {}})


def test_pieces_of_another_model_are_refused(tmp_path, arrays):
  opened(tmp_path, arrays)
  with pytest.raises(UserError, match=r'holds the pieces of another array .* remove .*writer-0'):
    opened(tmp_path, arrays, {'params/layers/attn/wq': (1, 2, 1, 1)})


def test_threads_write_at_once(tmp_path, arrays):
  from concurrent.futures import ThreadPoolExecutor

  streamed = opened(tmp_path, arrays)
  todo = [piece for piece in pieces(arrays) for _ in range(5)]
  with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda piece: streamed.write(*piece), todo))
  streamed.finish({'config': {}})
  assert digests.verify(tmp_path / '0') == []
  with ocp.PyTreeCheckpointer() as reader:
    assert same(reader.restore(tmp_path / '0/state'), arrays)


def test_the_manager_restores_it(tmp_path, arrays, cfg):
  from llamax.checkpoint.manager import Checkpoints

  if arrays['params/final_norm/scale'].dtype == BF16:
    pytest.skip('once is enough')
  write(opened(tmp_path, arrays), arrays)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for n, a in arrays.items()}
  with Checkpoints(tmp_path, cfg()) as checkpoints:
    state, _ = checkpoints.restore(leaves.nest(target))
    assert same(state, arrays)
    # What is saved next to it is saved as ever.
    checkpoints.save(1, {'params': {'w': jnp.ones(3)}}, {'config': {}})
    checkpoints.wait()
    assert checkpoints.steps() == [0, 1]
  assert json.loads((tmp_path / '1/meta/metadata').read_text())['step'] == 1
