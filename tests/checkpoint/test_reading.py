"""Restoring: the same bytes on any mesh, misfits named, damage named."""

import json
import shutil

import jax
import numpy as np
import pytest

from llamax.checkpoint import digests, reading, steps
from llamax.checkpoint.manager import Checkpoints
from llamax.core.errors import UserError

MESHES = [(1, 8, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1), (1, 2, 1), (1, 1, 1)]


@pytest.fixture(scope='session')
def written(tmp_path_factory, tiny, cfg):
  folder = tmp_path_factory.mktemp('run') / 'checkpoints'
  with Checkpoints(folder, cfg()) as checkpoints:
    checkpoints.save(1, tiny(1, 8, 1).at(1), {'note': 'one'})
    checkpoints.save(2, tiny(1, 8, 1).at(2), {'note': 'two'})
  return folder


@pytest.fixture
def two_steps(written, tmp_path, tiny):
  """A folder with steps 1, 2 saved from (1, 8, 1); the state of step 2; what it restores into."""
  shutil.copytree(written, tmp_path / 'checkpoints')
  return tmp_path / 'checkpoints', tiny(1, 8, 1).at(2), tiny(1, 8, 1).abstract()


@pytest.mark.parametrize('sizes', MESHES)
def test_any_mesh_restores_the_same_bytes(two_steps, tiny, same_bytes, sizes):
  folder, state, _ = two_steps
  target = tiny(*sizes).abstract()
  restored, meta = reading.restore(folder, target)
  assert meta['step'] == 2 and meta['note'] == 'two'
  assert same_bytes(restored, state)
  # Every leaf, scalars too, sits where it was asked for: else the next jit meets two sets of devices.
  assert jax.tree.all(jax.tree.map(lambda a, t: a.sharding == t.sharding, restored, target))
  assert jax.tree.all(jax.tree.map(lambda a: a.committed, restored))


def test_the_restored_state_can_be_donated(two_steps):
  folder, state, target = two_steps
  restored, _ = reading.restore(folder, target, 2)
  double = jax.jit(lambda params: jax.tree.map(lambda x: x * 2, params), donate_argnums=0)
  table = np.asarray(double(restored.params)['embed']['table'])
  assert np.array_equal(table, 2 * np.asarray(state.params['embed']['table']))


def test_params_alone(two_steps, same_bytes):
  folder, state, target = two_steps
  params, meta = reading.restore_params(folder, target.params)
  assert same_bytes(params, state.params) and meta['step'] == 2
  # No byte of the optimizer state is asked for: it may even be gone from the table.
  file = folder / '2/meta/metadata'
  meta = json.loads(file.read_text())
  meta['leaves'] = {name: kind for name, kind in meta['leaves'].items() if name.startswith('params/')}
  file.write_text(json.dumps(meta))
  digests.write(folder / '2')
  assert same_bytes(reading.restore_params(folder, target.params, 2)[0], state.params)


def test_another_dtype_is_refused_by_name(two_steps):
  folder, _, target = two_steps
  wq = target.params['layers']['attn']['wq']
  target.params['layers']['attn']['wq'] = jax.ShapeDtypeStruct(wq.shape, np.float32, sharding=wq.sharding)
  with pytest.raises(UserError, match=r'params/layers/attn/wq: wanted float32\[3,8,4,6\], found bfloat16'):
    reading.restore(folder, target)


def test_another_shape_is_refused_by_name(two_steps):
  folder, _, target = two_steps
  table = target.params['embed']['table']
  target.params['embed']['table'] = jax.ShapeDtypeStruct((32, 320), table.dtype, sharding=table.sharding)
  with pytest.raises(UserError, match=r'params/embed/table: wanted float32\[32,320\], found float32\[16,320\]'):
    reading.restore(folder, target)


def test_a_leaf_too_few_or_too_many_is_refused_by_name(two_steps):
  folder, _, target = two_steps
  target.params['lm_head'] = {'kernel': target.params['embed']['table']}
  del target.params['final_norm']
  with pytest.raises(UserError) as caught:
    reading.restore_params(folder, target.params)
  assert 'params/lm_head/kernel: wanted float32[16,320], found nothing' in str(caught.value)
  assert 'params/final_norm/scale: wanted nothing, found float32[24]' in str(caught.value)


def test_only_steps_in_their_place_count(two_steps):
  folder, _, target = two_steps
  (folder / '2').rename(folder / 'writer-1-2')
  (folder / 'damaged-7').mkdir()
  assert steps.steps(folder) == [1] and steps.latest(folder) == 1
  assert reading.read_meta(folder)['note'] == 'one'
  with pytest.raises(UserError, match='no checkpoint of step 2; it has 1'):
    reading.restore(folder, target, 2)


def test_no_checkpoint(tmp_path):
  assert steps.steps(tmp_path / 'nowhere') == [] and steps.latest(tmp_path) is None
  with pytest.raises(UserError, match='has no checkpoint'):
    reading.read_meta(tmp_path)


def test_meta_has_the_table_with_versions(two_steps):
  meta = reading.read_meta(two_steps[0], 1)
  assert meta['step'] == 1 and meta['leaves']['opt_state/1/0/count'] == 'int32[]'
  assert meta['versions']['jax'] == jax.__version__


@pytest.mark.parametrize('how', ['missing', 'empty', 'half', 'zeroed', 'flipped'])
def test_damage_to_any_file_is_named_in_a_line(two_steps, capfd, how):
  folder, _, target = two_steps
  files = [path for path in (folder / '2').rglob('*') if path.is_file()]
  assert len(files) > 9
  for file in files:
    good = file.read_bytes()
    damaged = {
      'missing': None,
      'empty': b'',
      'half': good[: len(good) // 2],
      'zeroed': bytes(len(good)),
      'flipped': good[:-2] + bytes([good[-2] ^ 8]) + good[-1:],
    }[how]
    if damaged is None:
      file.unlink()
    else:
      file.write_bytes(damaged)
    with pytest.raises(reading.DamagedCheckpoint) as caught:
      reading.restore(folder, target, 2)
    text = str(caught.value)
    assert f'{folder}/2 is damaged: {file.relative_to(folder / "2")}' in text
    assert '\n' not in text and len(text) < 700 and capfd.readouterr().err == ''
    file.write_bytes(good)
  assert reading.restore(folder, target, 2)[1]['step'] == 2


def test_newest_damaged_falls_back_loudly(two_steps, tiny, same_bytes, capfd):
  folder, _, target = two_steps
  (folder / '2/state/manifest.ocdbt').write_bytes(b'')
  restored, meta = reading.restore(folder, target)
  assert meta['step'] == 1 and same_bytes(restored, tiny(1, 8, 1).at(1))
  err = capfd.readouterr().err.splitlines()
  assert len(err) == 2 and 'state/manifest.ocdbt' in err[0]
  assert 'going back to the checkpoint of step 1' in err[1]
  assert steps.steps(folder) == [1, 2], 'reading changes nothing'


@pytest.mark.parametrize('text', ['', '[]', '{"a": 1}', '{"leaves": 3}'])
def test_meta_of_the_newest_step_that_can_tell(two_steps, text):
  folder, _, _ = two_steps
  (folder / '2/meta/metadata').write_text(text)
  assert reading.read_meta(folder)['note'] == 'one'
  with pytest.raises(reading.DamagedCheckpoint, match=r'2 is damaged: meta/metadata cannot be read'):
    reading.read_meta(folder, 2)


def test_all_damaged_names_each(two_steps):
  folder, _, target = two_steps
  for step in (1, 2):
    (folder / str(step) / 'meta/metadata').unlink()
  with pytest.raises(UserError) as caught:
    reading.restore(folder, target)
  assert f'{folder}/1 is damaged' in str(caught.value) and f'{folder}/2 is damaged' in str(caught.value)
