"""What each process of test_matrix.py does: save from one mesh, or restore into many."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from llamax.api import load_config
from llamax.checkpoint.manager import Checkpoints
from llamax.core.config import Config
from llamax.parallel import hosts
from llamax.train.program import make_program
from llamax.train.state import TrainState, init_state
from tests.faults.disk_rounds import config

# The first four split each array in all the ways that there are: not at all, by one axis, by two.
MESHES = (
  (8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 4, 2), (2, 2, 2), (4, 2, 1), (2, 4, 1), (1, 2, 4), (4, 1, 2), (2, 1, 4),
)  # fmt: skip


def make(sizes: tuple[int, ...]) -> Config:
  changes = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), sizes, strict=True))
  return load_config('configs/debug.py', changes | {'model.num_heads': 8, 'model.num_kv_heads': 8})


def join(address: str, count: str, index: str) -> None:
  if int(count) > 1:
    hosts.start(address, int(count), int(index), heartbeat_seconds=10)


def save(address: str, count: str, index: str, folder: str, sizes: str) -> int:
  """Step 1 of a fresh state, its optimizer's zeros replaced by numbers that all differ."""
  join(address, count, index)
  program = make_program(make(tuple(json.loads(sizes))), jax.devices())
  state = init_state(program.model, program.tx, program.mesh, 0)
  leaves, structure = jax.tree.flatten(state)
  filled = [
    jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda at, i=i, leaf=leaf: numbers(i, leaf)[at])
    for i, leaf in enumerate(leaves)
  ]
  with Checkpoints(folder, config()) as checkpoints:
    checkpoints.save(1, jax.tree.unflatten(structure, filled), {})
  tell(digest(jax.tree.unflatten(structure, filled)))
  return 0


def restore(address: str, count: str, index: str, meshes: str, *folders: str) -> int:
  """Prints, for each folder and each of the first `meshes`, the digest of all that was restored."""
  join(address, count, index)
  for folder in folders:
    for sizes in MESHES[: int(meshes)]:
      program = make_program(make(sizes), jax.devices())
      with Checkpoints(Path(folder), config()) as checkpoints:
        state, _ = checkpoints.restore(program.state)
      wanted = [leaf.sharding for leaf in jax.tree.leaves(program.state)]
      assert [leaf.sharding for leaf in jax.tree.leaves(state)] == wanted, 'another layout than asked for'
      tell(digest(state))
  return 0


def numbers(i: int, leaf: jax.Array) -> np.ndarray:
  return np.random.default_rng(i).normal(size=leaf.shape, scale=100).astype(leaf.dtype)


def digest(state: TrainState) -> str:
  sha = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    sha.update(np.asarray(multihost_utils.process_allgather(leaf, tiled=True)).tobytes())
  return sha.hexdigest()


def tell(text: str) -> None:
  if jax.process_index() == 0:
    print(f'DIGEST {text}', flush=True)
