"""Saves: bitwise, kept or removed by the rules, failing loudly, never torn by a kill."""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.checkpoint import chunks, reading, steps
from llamax.checkpoint.manager import Checkpoints, SaveError
from llamax.checkpoint.pieces import Pieces
from llamax.core.errors import UserError
from llamax.core.exits import FENCED, Stop


@pytest.fixture
def maker(tiny):
  return tiny(1, 8, 1)


def _wait_for(condition, seconds=30):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'nothing happened'
    time.sleep(0.01)


@pytest.mark.parametrize('asynchronous', [True, False])
def test_each_saved_step_restores_bitwise(tmp_path, cfg, maker, same_bytes, asynchronous):
  with Checkpoints(tmp_path / 'c', cfg(asynchronous=asynchronous)) as checkpoints:
    for step in (0, 1, 5):
      assert checkpoints.save(step, maker.at(step), {'data': {'next_step': step}})
      if not asynchronous:
        assert checkpoints.latest() == step, 'a synchronous save is there when save returns'
    checkpoints.wait()
    assert checkpoints.steps() == [0, 1, 5] and checkpoints.latest() == 5
    for step in (0, 1, 5):
      state, meta = checkpoints.restore(maker.abstract(), step)
      assert same_bytes(state, maker.at(step)) and meta['data'] == {'next_step': step}
    assert checkpoints.restore(maker.abstract())[1]['step'] == 5


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_a_large_array_is_cut_by_layers(tmp_path, cfg, maker, tiny, same_bytes, monkeypatch, sizes):
  monkeypatch.setattr(chunks, 'MOST', 128)
  with Checkpoints(tmp_path / 'c', cfg()) as checkpoints:
    checkpoints.save(1, maker.at(1), {})
    checkpoints.wait()
    state, _ = checkpoints.restore(tiny(*sizes).abstract())
  assert same_bytes(state, maker.at(1))
  pieces = Pieces(tmp_path / 'c/1', prefix='')
  for name in ('params/layers/attn/wq', 'opt_state/1/0/mu/layers/attn/wq'):
    assert pieces.arrays[name].chunk[0] == 1 and pieces.chunk_bytes(name) <= 128
  assert pieces.chunk_bytes('params/embed/table') <= 128


def test_arrays_may_be_donated_while_they_are_written(tmp_path, cfg):
  start = np.arange(2**20, dtype=np.float32)
  bump = jax.jit(lambda x: x + 1, donate_argnums=0)
  state = {'x': jnp.asarray(start)}
  with Checkpoints(tmp_path / 'c', cfg()) as checkpoints:
    for step in range(4):
      checkpoints.save(step, state, {})
      for _ in range(3):
        state = {'x': bump(state['x'])}
  target = {'x': jax.ShapeDtypeStruct(start.shape, start.dtype, sharding=state['x'].sharding)}
  for step in range(4):
    assert np.array_equal(reading.restore(tmp_path / 'c', target, step)[0]['x'], start + 3 * step)


def test_meta_is_taken_at_the_call(tmp_path, cfg, maker):
  meta = {'ledger': [1]}
  with Checkpoints(tmp_path / 'c', cfg()) as checkpoints:
    checkpoints.save(1, maker.at(1), meta)
    meta['ledger'].append(2)
    checkpoints.wait()
    assert checkpoints.read_meta()['ledger'] == [1]
    with pytest.raises(TypeError, match='JSON'):
      checkpoints.save(2, maker.at(2), {'bad': object()})


def test_a_committed_step_is_left_as_it_is(tmp_path, cfg, maker, same_bytes):
  with Checkpoints(tmp_path / 'c', cfg()) as checkpoints:
    assert checkpoints.save(3, maker.at(3), {})
    assert not checkpoints.save(3, maker.at(4), {})
    assert same_bytes(checkpoints.restore(maker.abstract())[0], maker.at(3))


def test_retention_keeps_the_last_with_each_kth(tmp_path, cfg, maker):
  with Checkpoints(tmp_path / 'c', cfg(keep_last=2, keep_every=4)) as checkpoints:
    for step in range(1, 11):
      checkpoints.save(step, maker.at(step), {})
  assert steps.steps(tmp_path / 'c') == [4, 8, 9, 10]
  assert list((tmp_path / 'c/trash').iterdir()) == []
  with Checkpoints(tmp_path / 'c', cfg(keep_last=1)) as checkpoints:
    checkpoints.save(11, maker.at(11), {})
  assert steps.steps(tmp_path / 'c') == [11]


def test_opening_removes_what_a_kill_left(tmp_path, cfg, maker):
  for torn in ('c/writer-4/7/state', 'c/trash/1/state', 'c/damaged-2/state'):
    (tmp_path / torn).mkdir(parents=True)
    (tmp_path / torn / 'part').write_text('x')
  with Checkpoints(tmp_path / 'c', cfg(), token=4) as checkpoints:
    assert checkpoints.steps() == [] and checkpoints.latest() is None
    assert {p.name for p in (tmp_path / 'c').iterdir()} == {'writer-4', 'trash', 'damaged-2'}
    assert list((tmp_path / 'c/trash').iterdir()) == []
    checkpoints.save(7, maker.at(7), {})
    checkpoints.wait()
    assert checkpoints.steps() == [7]


def test_opening_leaves_a_newer_holder_alone(tmp_path, cfg, maker):
  """This process slept between taking the lease and now."""
  (tmp_path / 'c/writer-5/7').mkdir(parents=True)
  with Checkpoints(tmp_path / 'c', cfg(), token=4):
    assert (tmp_path / 'c/writer-5/7').exists()


def test_who_was_fenced_takes_no_step_away(tmp_path, cfg, maker):
  with Checkpoints(tmp_path / 'c', cfg(keep_last=3)) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, maker.at(step), {})

  def fence():
    raise Stop(FENCED, 'taken over')

  flip = tmp_path / 'c/3/meta/metadata'
  flip.write_bytes(flip.read_bytes()[:-1])
  with Checkpoints(tmp_path / 'c', cfg(keep_last=1), fence=fence) as checkpoints:
    for act in (lambda: checkpoints.drop([2]), lambda: checkpoints.restore(maker.abstract())):
      with pytest.raises(Stop):
        act()
    assert checkpoints.steps() == [1, 2, 3]


def test_due_by_steps(tmp_path, cfg):
  with Checkpoints(tmp_path / 'c', cfg(every=3)) as checkpoints:
    assert [step for step in range(10) if checkpoints.should_save(step, now=0.0)] == [3, 6, 9]


def test_due_by_minutes(tmp_path, cfg):
  with Checkpoints(tmp_path / 'c', cfg(every=None, every_minutes=2.0)) as checkpoints:
    assert [t for t in range(1000, 1500, 50) if checkpoints.should_save(t, now=float(t))] == [1150, 1300, 1450]
  with Checkpoints(tmp_path / 'c', cfg(every=None)) as checkpoints:
    assert not any(checkpoints.should_save(step, now=1e6 * step) for step in range(100))


def test_a_save_by_steps_puts_off_the_one_by_minutes(tmp_path, cfg):
  with Checkpoints(tmp_path / 'c', cfg(every=4, every_minutes=1.0)) as checkpoints:
    assert [step for step in range(1, 10) if checkpoints.should_save(step, now=20.0 * step)] == [4, 7, 8]


@pytest.mark.parametrize('asynchronous', [True, False])
def test_a_failed_save_is_reported(tmp_path, cfg, maker, same_bytes, capfd, asynchronous):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(tmp_path / 'c', cfg(keep_last=1, asynchronous=asynchronous)) as checkpoints:
    checkpoints.save(1, maker.at(1), {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # what a full disk looks like, without root
    try:
      with pytest.raises(SaveError) as caught:
        checkpoints.save(2, maker.at(2), {})
        _wait_for(lambda: checkpoints.finished())
        checkpoints.check()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    text = str(caught.value)
    assert 'the checkpoint of step 2' in text and 'File too large' in text
    assert 'the newest one is of step 1' in text
    assert '\n' not in text and len(text) < 700
    checkpoints.check()  # said once
    assert checkpoints.steps() == [1] and not (tmp_path / 'c/2').exists(), 'its debris would fill the disk'
    assert same_bytes(reading.restore(tmp_path / 'c', maker.abstract())[0], maker.at(1))
    checkpoints.save(3, maker.at(3), {})
  assert steps.steps(tmp_path / 'c') == [3]
  assert 'Traceback' not in capfd.readouterr().err


def test_each_file_of_a_save_may_be_the_one_that_does_not_fit(tmp_path, cfg, maker, same_bytes):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(tmp_path / 'c', cfg(keep_last=99)) as checkpoints:
    checkpoints.save(1, maker.at(1), {})
    checkpoints.wait()
    sizes = {path.stat().st_size for path in (tmp_path / 'c/1').rglob('*') if path.is_file()} - {0}
    assert len(sizes) > 5
    failed = set()
    for step, size in enumerate(sorted(sizes), 2):
      resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
      try:
        checkpoints.save(step, maker.at(step), {})
        checkpoints.wait()
      except SaveError as error:
        assert 'File too large' in str(error)
        failed.add(step)
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      # The longest may come out a little shorter than they did in step 1.
      assert checkpoints.steps() == [old for old in range(1, step + 1) if old not in failed]
      restored, meta = reading.restore(tmp_path / 'c', maker.abstract())
      assert same_bytes(restored, maker.at(meta['step']))
    assert len(failed) > 5
    checkpoints.save(99, maker.at(99), {})
    checkpoints.wait()
    assert not list((tmp_path / 'c').glob('writer-*/*')), 'the room of failed saves'
  assert steps.latest(tmp_path / 'c') == 99


def test_a_failed_save_shows_at_the_end_of_a_run(tmp_path, cfg, maker):
  checkpoints = Checkpoints(tmp_path / 'c', cfg())
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
  try:
    with pytest.raises(SaveError, match='no older one'):
      checkpoints.save(1, maker.at(1), {})
      checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_damaged_steps_are_put_aside_once_an_older_one_is_restored(tmp_path, cfg, maker, same_bytes, capfd):
  with Checkpoints(tmp_path / 'c', cfg(asynchronous=False)) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, maker.at(step), {})
    for step in (2, 3):
      (tmp_path / f'c/{step}/state/manifest.ocdbt').write_bytes(b'')
    with pytest.raises(reading.DamagedCheckpoint):
      checkpoints.restore(maker.abstract(), 3)
    assert checkpoints.steps() == [1, 2, 3], 'a step asked for by number is not replaced'
    state, meta = checkpoints.restore(maker.abstract())
    assert meta['step'] == 1 and same_bytes(state, maker.at(1))
    assert checkpoints.steps() == [1] and (tmp_path / 'c/damaged-3/state').is_dir()
    err = capfd.readouterr().err
    assert 'going back to the checkpoint of step 1' in err and 'state/manifest.ocdbt has 0 bytes' in err
    assert checkpoints.save(3, maker.at(3), {}), 'the run can write the step again'
    assert same_bytes(checkpoints.restore(maker.abstract())[0], maker.at(3))
    (tmp_path / 'c/3/meta/metadata').unlink()
    checkpoints.restore(maker.abstract())
    assert (tmp_path / 'c/damaged-3-again').is_dir() and (tmp_path / 'c/damaged-3/state').is_dir()


def test_a_folder_that_vanished_is_reported_or_made_again(tmp_path, cfg, maker):
  with Checkpoints(tmp_path / 'c', cfg()) as checkpoints:
    checkpoints.save(1, maker.at(1), {})
    checkpoints.wait()
    shutil.rmtree(tmp_path / 'c')
    try:
      checkpoints.save(2, maker.at(2), {})
      checkpoints.wait()
      assert checkpoints.steps() == [2]
    except SaveError as error:
      assert 'step 2' in str(error)


# Each round is a forked child: it checks every listed step, then goes on saving until a timer ends it.
_KILLED = """
import os, sys, threading, time, warnings
warnings.filterwarnings('ignore', message='os.fork|.*multi-threaded')
import jax, numpy as np
from llamax.checkpoint.manager import Checkpoints
from llamax.core.config import CheckpointConfig

folder, delays = sys.argv[1], [float(d) for d in sys.argv[2:]]
cfg = CheckpointConfig(every=1, every_minutes=None, keep_last=2, keep_every=5, keep_best=0,
  keep_before_trouble=0, asynchronous=True, digests=True, on_failed_save='continue', grace_seconds=25.0,
  lease_seconds=60.0)
shape = (64, 1024)

def value(step):
  return np.random.default_rng(step).normal(size=shape).astype(np.float32)

def child(delay):
  checkpoints = Checkpoints(folder, cfg)
  seen = int(open(folder + '.seen').read() or 0) if os.path.exists(folder + '.seen') else 0
  steps = checkpoints.steps()
  assert max(steps, default=0) >= seen, f'step {seen} is lost: {steps}'
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = {'x': jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)}
  for step in steps:
    assert np.array_equal(checkpoints.restore(target, step)[0]['x'], value(step)), f'step {step} is torn'
  print(f'{len(steps)} steps up to {max(steps, default=0)}', flush=True)
  if delay == 0:
    return checkpoints.close()
  step = max(steps, default=0)
  threading.Timer(delay, lambda: os._exit(9)).start()
  while True:
    checkpoints.check()
    if (latest := checkpoints.latest()) is not None:
      with open(folder + '.new', 'w') as file:
        file.write(str(latest))
      os.replace(folder + '.new', folder + '.seen')
    step += 1
    checkpoints.save(step, {'x': jax.device_put(value(step))}, {'step_of_run': step})

for delay in [*delays, 0.0]:
  pid = os.fork()
  if pid == 0:
    try:
      child(delay)
    except BaseException as error:
      print(f'FAILED {error!r}', flush=True)
      os._exit(3)
    os._exit(0)
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  assert code == (9 if delay else 0), code
"""


def test_killed_while_saving_lists_no_torn_step(tmp_path):
  rng = random.Random(0)
  delays = [f'{rng.uniform(0.1, 0.6):.3f}' for _ in range(6)]
  root = Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, '-c', _KILLED, str(tmp_path / 'c'), *delays],
    env={**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=280,
  )
  assert done.returncode == 0 and 'FAILED' not in done.stdout, done.stdout + done.stderr
  rounds = done.stdout.splitlines()
  assert len(rounds) == 7 and not rounds[-1].startswith('0 steps'), done.stdout


def test_retention_goes_on_after_the_folder_was_removed(tmp_path, cfg, maker):
  with Checkpoints(tmp_path / 'c', cfg(keep_last=1)) as checkpoints:
    checkpoints.save(1, maker.at(1), {})
    checkpoints.wait()
    shutil.rmtree(tmp_path / 'c')
    for step in (2, 3, 4):
      checkpoints.save(step, maker.at(step), {})
    checkpoints.wait()
    assert checkpoints.steps() == [4]


def test_a_file_in_the_place_of_a_folder_is_a_mistake(tmp_path, cfg):
  (tmp_path / 'c').mkdir()
  (tmp_path / 'c/trash').write_text('mine')
  with pytest.raises(UserError, match=r'c/trash.*in the way'):
    Checkpoints(tmp_path / 'c', cfg())
