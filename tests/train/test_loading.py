"""Parameters read from any format equal those that orbax restores, on any mesh, bit for bit."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.checkpoint import reading
from llamax.checkpoint.manager import Checkpoints
from llamax.checkpoint.pieces import Pieces
from llamax.convert import copy, formats
from llamax.convert.layout import Layout
from llamax.convert.rows import our_layouts
from llamax.convert.target import Model
from llamax.train import loading
from llamax.train.program import make_program

CHANGES = {
  'model.num_heads': 8,
  'model.num_kv_heads': 2,
  'model.head_dim': 8,
  'model.d_model': 64,
  'model.d_ff': 56,
  'model.tie_embeddings': False,
}
FORMATS = ('llamax', 'hf', 'meta', 'gguf', 'llama2c')


@pytest.fixture(scope='module')
def made():
  return {}


@pytest.fixture
def weights(made, tiny_config, tiny_data, tmp_path_factory):
  """(config, {format: path}): one set of random weights, as a run has saved it, in other formats."""
  config = tiny_config(**CHANGES)
  if not made:
    root = tmp_path_factory.mktemp('weights')
    state = make_program(config, jax.devices()).state
    rng = np.random.default_rng(0)
    filled = jax.tree.map(
      lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding), state.params
    )
    with Checkpoints(root / 'run/checkpoints', config.checkpoint) as checkpoints:
      checkpoints.save(5, {'params': filled, 'step': jnp.int32(5)}, {'config': config.to_mapping()})
    shutil.copy(Path(tiny_data) / 'tokenizer.model', root / 'run/tokenizer.model')
    made['run'] = root / 'run'
    source = formats.open_source(root / 'run')
    for name in FORMATS:
      model = Model(source.cfg, source.family, source.tokenizer, source.generation)
      target = formats.open_target(name, model, mesh='fsdp=4,tensor=2' if name == 'llamax' else None)
      steps = copy.make_plan(source, target, None)
      made[name] = root / name
      silent = {'progress': lambda count: None, 'say': lambda text: None}
      copy.copy(source, target, steps, made[name], {}, threads=2, **silent)
  return config, made


def same(first, second):
  pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
  return all(
    a.sharding == b.sharding and a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for a, b in pairs
  )


def target_on(config, sizes):
  config = dataclasses.replace(
    config, mesh=dataclasses.replace(config.mesh, data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
  )
  return make_program(config, jax.devices()[: int(np.prod(sizes))]).state.params


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2), (1, 8, 1), (1, 4, 2)])
@pytest.mark.parametrize('name', ['run', *FORMATS])
def test_every_format_gives_what_orbax_restores(weights, name, sizes):
  config, paths = weights
  target = target_on(config, sizes)
  wanted, _ = reading.restore_params(paths['run'] / 'checkpoints', target)
  found = loading.load_params(formats.open_source(paths[name]), target)
  assert same(found, wanted)


@pytest.mark.parametrize('name', ['run', 'hf'])
def test_weights_are_cast_to_the_dtype_of_the_run(weights, name):
  config, paths = weights
  exact = target_on(config, (2, 2, 2))
  target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), exact)
  source = formats.open_source(paths[name])
  wanted = jax.tree.map(lambda x: x.astype(jnp.bfloat16), loading.load_params(source, exact))
  assert same(loading.load_params(source, target), wanted)


class Watched:
  """An entry that notes the rows that are read of it."""

  dtype = np.dtype(np.float32)

  def __init__(self, array):
    self.array, self.shape, self.rows = array, array.shape, []

  def read(self, start, stop):
    self.rows.append((start, stop))
    return np.ascontiguousarray(self.array[start:stop])


@pytest.mark.parametrize('block', [1 << 26, 700])
def test_a_host_reads_the_rows_that_it_needs(tiny_config, monkeypatch, block):
  monkeypatch.setattr(loading, 'BLOCK_BYTES', block)
  config = tiny_config(**CHANGES)
  wanted = our_layouts(config.model)['layers/0/attn/wq']
  full = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)  # (N H) D, as Hugging Face has it
  ours = full.reshape(8, 8, 64).transpose(2, 0, 1)
  entry = Watched(full)
  # Heads 2, 3 on two devices that split D.
  ranges = [((0, 32), (2, 3), (0, 8)), ((32, 64), (3, 4), (0, 8))]
  shards = [loading._Shard(cut, np.empty([b - a for a, b in cut], np.float32)) for cut in ranges]
  for found in loading._blocks(entry, Layout('(N H) D', wanted.sizes), wanted, shards):
    for shard in shards:
      loading._put_block(shard, wanted, *found)
  assert min(start for start, _ in entry.rows) == 16 and max(stop for _, stop in entry.rows) == 32
  assert (len(entry.rows) > 1) == (block == 700)
  for shard in shards:
    assert (shard.out == ours[tuple(slice(*cut) for cut in shard.ranges)]).all()


def test_of_our_own_a_host_reads_its_part_alone(weights, monkeypatch):
  config, paths = weights
  source, read = formats.open_source(paths['llamax']), []
  plain = Pieces.read
  monkeypatch.setattr(Pieces, 'read', lambda self, name, index: read.append(index) or plain(self, name, index))
  cut = ((0, 32), (2, 3), (0, 8))
  shard = loading._Shard(cut, np.empty([b - a for a, b in cut], np.float32))
  loading._fill(source, 'layers/1/attn/wq', our_layouts(config.model)['layers/1/attn/wq'], [shard])
  assert read == [(1, slice(0, 32), slice(2, 3), slice(0, 8))]
  assert (shard.out == source.entry('layers/1/attn/wq').read(0, 64)[:32, 2:3]).all()
