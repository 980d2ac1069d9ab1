"""Programs of the tiny config with batches of packed random tokens."""

import jax
import numpy as np
import pytest

from llamax.parallel.rows import global_batch
from llamax.train.program import make_program
from llamax.train.state import init_state


def packed_rows(rng: np.random.Generator, rows: int, length: int, vocab: int) -> dict[str, np.ndarray]:
  """Two documents a row, the tail padded by another amount in each: uneven masks."""
  ids = rng.integers(0, vocab, (rows, length + 1)).astype(np.int32)
  segments = np.zeros((rows, length), np.int32)
  positions = np.zeros((rows, length), np.int32)
  for row in range(rows):
    first, end = rng.integers(1, length // 2), rng.integers(length // 2 + 1, length + 1)
    segments[row, :first], segments[row, first:end] = 1, 2
    positions[row, :end] = [*range(first), *range(end - first)]
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'segment_ids': segments, 'positions': positions}


@pytest.fixture
def run_steps(tiny_config):
  """(num_steps, mesh=(1, 1, 1), **config changes) -> (losses, last metrics, final state)."""

  def steps(num_steps, mesh=(1, 1, 1), rows=16, **changes):
    sizes = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), mesh, strict=True))
    cfg = tiny_config(**{'train.batch_size': rows, **sizes, **changes})
    program = make_program(cfg, jax.devices()[: int(np.prod(mesh))])
    rng = np.random.default_rng(0)
    losses = []
    with jax.set_mesh(program.mesh):
      state = init_state(program.model, program.tx, program.mesh, cfg.train.seed)
      for _ in range(num_steps):
        rows_ = packed_rows(rng, rows, cfg.data.seq_len, 40)
        state, metrics = program.step(state, global_batch(rows_, program.mesh))
        losses.append(float(metrics['loss']))
    return np.array(losses), {k: float(v) for k, v in metrics.items()}, state

  return steps
