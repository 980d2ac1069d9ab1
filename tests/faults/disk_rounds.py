"""What the children of test_disk.py do: save on a disk that fails, come back, look at what is left."""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

from llamax.checkpoint import digests, lease
from llamax.checkpoint.manager import Checkpoints, SaveError
from llamax.checkpoint.steps import steps
from llamax.core.config import CheckpointConfig
from llamax.core.errors import UserError
from llamax.core.exits import Stop

# Wide enough that the table does not fit into the index, where orbax keeps what is below 1,024 bytes.
SHAPES = {'table': (24, 96), 'scale': (7,)}


def config(**changes) -> CheckpointConfig:
  plain = {
    'every': 1,
    'every_minutes': None,
    'keep_last': 2,
    'keep_every': 5,
    'keep_best': 1,
    'keep_before_trouble': 1,
    'asynchronous': True,
    'digests': True,
    'on_failed_save': 'continue',
    'grace_seconds': 25.0,
    'lease_seconds': 30.0,
  }
  return CheckpointConfig(**plain | changes)


def value(step: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(step)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def open_all(workdir: str, holder: lease.Lease) -> Checkpoints:
  folder = Path(workdir, 'checkpoints')
  return Checkpoints(folder, config(), token=holder.token, fence=holder.require, warn=lambda text: print(text))


def restore_newest(checkpoints: Checkpoints) -> int:
  """The newest step, after its arrays have been compared with what was saved; 0: there is none."""
  if checkpoints.latest() is None:
    return 0
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=place) for name, shape in SHAPES.items()}
  state, meta = checkpoints.restore(target)
  for name, expected in value(meta['step']).items():
    assert np.array_equal(state[name], expected), f'step {meta["step"]}: {name} is not what was saved'
  return meta['step']


def attempt(workdir: str, saves: str, seen: str) -> int:
  """Opens, restores, saves some steps, each noted in `seen` (elsewhere) once it is said to be there.

  A failed save is reported by SaveError, after which the run goes on. Anything but UserError, Stop is a bug.
  """
  try:
    with lease.acquire(workdir, 30.0, print) as holder, open_all(workdir, holder) as checkpoints:
      step = restore_newest(checkpoints)
      for _ in range(int(saves)):
        step += 1
        try:
          checkpoints.save(step, jax.device_put(value(step)), {'validation_loss': float(100 - step)})
          checkpoints.wait()
        except SaveError as error:
          print(f'REPORTED {error}')
          newest = max(steps(checkpoints.directory), default=None)
          assert ('no older one' in str(error)) if newest is None else (f'step {newest}' in str(error)), str(
            error
          )
          continue
        note(seen, step)
  except (UserError, Stop) as error:
    print(f'ENDED {error}')
    return 2
  except SaveError as error:
    print(f'ENDED {error}')
    return 2
  return 0


def note(seen: str, step: int) -> None:
  # Written with no help of the disk under test.
  descriptor = os.open(seen, os.O_WRONLY | os.O_CREAT, 0o600)
  os.pwrite(descriptor, b'%08d' % step, 0)
  os.close(descriptor)


def recover(workdir: str, seen: str) -> int:
  """On a sound disk again: nothing that was said to be saved is lost, what is listed is whole, saving works."""
  noted = int(Path(seen).read_text() or 0) if os.path.exists(seen) else 0
  folder = Path(workdir, 'checkpoints')
  listed = steps(folder)
  assert max(listed, default=0) >= noted, f'step {noted} is lost: {listed}'
  for step in listed:
    damages = digests.verify(folder / str(step))
    assert not damages, f'step {step} is listed with {damages}'
  with lease.acquire(workdir, 30.0, print) as holder, open_all(workdir, holder) as checkpoints:
    newest = restore_newest(checkpoints)
    assert newest == max(listed, default=0), f'restored {newest}, listed {listed}'
    checkpoints.save(newest + 1, jax.device_put(value(newest + 1)), {})
    checkpoints.wait()
    note(seen, newest + 1)
  left = sorted(str(path.relative_to(folder)) for path in folder.iterdir() if not path.name.isdigit())
  assert left in (['protected.json', 'trash'], ['trash']), f'debris: {left}'
  assert not list((folder / 'trash').iterdir()), 'debris in the trash'
  print(json.dumps({'steps': steps(folder), 'listed': listed}))
  sys.stdout.flush()
  return 0
