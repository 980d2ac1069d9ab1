"""Bits flipped, files truncated, zeroed, deleted: each is found, named, and the run falls back."""

import random
import shutil

import jax
import numpy as np
import pytest

from llamax.checkpoint import digests, reading
from llamax.checkpoint.manager import Checkpoints
from llamax.checkpoint.steps import steps
from llamax.observe.batchlog import read_batches
from tests.faults.disk_rounds import SHAPES, config, value
from tests.faults.forked import words


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  """Steps 1, 2 of a run; where the arrays are to go."""
  folder = tmp_path_factory.mktemp('run') / 'checkpoints'
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with Checkpoints(folder, config()) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, jax.device_put(value(step), place), {})
  return folder, {
    name: jax.ShapeDtypeStruct(shape, np.float32, sharding=place) for name, shape in SHAPES.items()
  }


def restored(folder, target):
  """(step, what was said, whether the arrays are those of that step) after a restore."""
  said = []
  with Checkpoints(folder, config(), warn=said.append) as checkpoints:
    state, meta = checkpoints.restore(target)
    same = all(np.array_equal(state[name], good) for name, good in value(meta['step']).items())
    return meta['step'], '\n'.join(said), same


def put_back(folder, good, step):
  for path in (folder / str(step), folder / f'damaged-{step}'):
    shutil.rmtree(path, ignore_errors=True)
  shutil.copytree(good / str(step), folder / str(step))


def test_flipped_bits(two_steps, tmp_path, scale):
  """Positions weighted by bytes; each is judged by the digests, each tenth by a restore that falls back."""
  good, target = two_steps
  folder = tmp_path / 'checkpoints'
  shutil.copytree(good, folder)
  files = sorted(path for path in (folder / '2').rglob('*') if path.is_file() and path.stat().st_size)
  rng = random.Random(1)
  flips = scale(quick=60, ci=1000, soak=10_000)
  harmless = 0
  for flip in range(flips):
    # The first ones go through all files, for most bytes are in one of them.
    path = files[flip] if flip < len(files) else rng.choices(files, [p.stat().st_size for p in files])[0]
    whole = path.read_bytes()
    at, bit = rng.randrange(len(whole)), rng.randrange(8)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    found = digests.verify(folder / '2')
    if not found:  # A blank of the manifest that became another blank: the restore is as good as before.
      assert path.name == digests.MANIFEST
      assert restored(folder, target) == (2, '', True)
      harmless += 1
    elif flip % 10 == 0 or flip < len(files):
      step, said, same = restored(folder, target)
      name = str(path.relative_to(folder / '2'))
      assert (step, same) == (1, True) and 'damaged-2' in said, said
      assert name in said or digests.MANIFEST in said, said
      assert (folder / 'damaged-2').is_dir() and steps(folder) == [1]
      put_back(folder, good, 2)
      continue
    path.write_bytes(whole)
  assert harmless <= flips // 20
  assert restored(folder, target) == (2, '', True)
  print(f'\n{flips} flips, {flips - harmless} found, {harmless} changed nothing that is read, 0 silent')


@pytest.mark.parametrize('how', ['truncated', 'emptied', 'zeroed', 'deleted', 'swapped'])
def test_each_file(two_steps, tmp_path, how):
  good, target = two_steps
  folder = tmp_path / 'checkpoints'
  shutil.copytree(good, folder)
  names = sorted(path.relative_to(folder / '2') for path in (folder / '2').rglob('*') if path.is_file())
  assert len(names) > 9
  for name in names:
    path = folder / '2' / name
    data = path.read_bytes()
    if how == 'deleted':
      path.unlink()
    else:
      other = folder / '1' / name  # The same file of another step: whole in itself, wrong here.
      changed = {
        'truncated': data[:-1],
        'emptied': b'',
        'zeroed': bytes(len(data)),
        'swapped': other.read_bytes() if other.exists() else b'another',
      }[how]
      if changed == data or (how, name.name) == ('truncated', digests.MANIFEST):
        continue  # only a line's end
      path.write_bytes(changed)
    step, said, same = restored(folder, target)
    assert (step, same) == (1, True) and str(name) in said, f'{name}: {said}'
    assert len(said.splitlines()) <= 3, said
    put_back(folder, good, 2)


def test_the_whole_folder_of_another_step(two_steps, tmp_path):
  """A copy under the wrong number is whole in itself."""
  good, target = two_steps
  folder = tmp_path / 'checkpoints'
  shutil.copytree(good / '1', folder / '1')
  shutil.copytree(good / '1', folder / '7')
  step, said, same = restored(folder, target)
  assert (step, same) == (1, True) and 'is that of step 1' in said


def test_copies(two_steps, tmp_path):
  """A full copy is as good as the original, whatever its times; a partial one is refused."""
  good, target = two_steps
  folder = tmp_path / 'checkpoints'
  shutil.copytree(good, folder, copy_function=shutil.copyfile)
  assert restored(folder, target) == (2, '', True)
  shutil.rmtree(folder / '2/state/d')
  assert restored(folder, target)[0] == 1


def test_a_run_goes_back_though_the_damage_looks_like_another_config(server, tiny_data, tmp_path):
  run, screen = tmp_path / 'run', tmp_path / 'screen'
  assert server.start(words(tiny_data, run, **{'train.num_steps': 4}), screen).wait(200) == 0
  meta = run / 'checkpoints/4/meta/metadata'
  meta.write_text(meta.read_text().replace('"seed": 0', '"seed": 1'))
  child = server.start(words(tiny_data, run, **{'train.num_steps': 5}), screen)
  assert child.wait(200) == 0, child.screen()
  assert 'damaged-4' in child.screen() and 'resuming after step 2 of 5' in child.screen(), child.screen()
  assert steps(run / 'checkpoints')[-1] == 5
  assert read_batches(run)[1].keys() == {1, 2, 3, 4, 5}


def test_all_damaged(two_steps, tmp_path):
  good, target = two_steps
  folder = tmp_path / 'checkpoints'
  shutil.copytree(good, folder)
  for step in (1, 2):
    (folder / f'{step}/state/manifest.ocdbt').write_bytes(b'')
  with pytest.raises(reading.DamagedCheckpoint) as caught:
    restored(folder, target)
  assert 'checkpoints/1 is damaged' in str(caught.value) and 'checkpoints/2 is damaged' in str(caught.value)
  assert steps(folder) == [1, 2], 'nothing to go back to: nothing is moved'
