"""A step with a NaN or an Inf in it, wherever it comes from, changes nothing but the position in the data."""

import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.parallel.rows import global_batch
from llamax.train.program import make_program
from llamax.train.state import init_state
from tests.faults import bad_numbers

ROWS = 16


def digest(state):
  """SHA-256 of parameters, moments, counts: the bytes of each array."""
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
    found.update(f'{path} {leaf.dtype} {leaf.shape}'.encode())
    found.update(np.asarray(leaf).tobytes())
  return found.hexdigest()


def make_batch(rng, cfg, mesh, fault):
  ids = rng.integers(0, 40, (ROWS, cfg.data.seq_len + 1)).astype(np.int32)
  batch = {
    'tokens': ids[:, :-1],
    'targets': ids[:, 1:],
    'segment_ids': np.ones((ROWS, cfg.data.seq_len), np.int32),
    'positions': np.tile(np.arange(cfg.data.seq_len, dtype=np.int32), (ROWS, 1)),
    'fault': np.zeros((ROWS, cfg.data.seq_len), np.int32),
  }
  batch['fault'][ROWS - 1] = fault  # One row: of one device, of one microbatch.
  return global_batch(batch, mesh)


@pytest.mark.parametrize(
  ('mesh', 'changes'),
  [
    ((2, 2, 2), {'train.grad_accum': 2}),
    ((1, 1, 1), {'optim.clip_norm': None, 'train.z_loss': 1e-3}),
    ((2, 2, 2), {'optim.clip_norm': None}),
    ((1, 1, 1), {'train.grad_accum': 4}),
  ],
  ids=['mesh, accumulated, clipped', 'one device', 'mesh', 'one device, accumulated, clipped'],
)
def test_a_bad_step_changes_nothing(tiny_config, monkeypatch, scale, mesh, changes, request):
  if (
    scale(quick=1, ci=0, soak=0)
    and 'mesh, acc' not in request.node.name
    and 'one device]' not in request.node.name
  ):
    pytest.skip('with --scale=ci')
  bad_numbers.faulty_step(monkeypatch.setattr)
  sizes = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), mesh, strict=True))
  cfg = tiny_config(
    **{'train.batch_size': ROWS, 'data.seq_len': 16, 'optim.warmup_steps': 10, **sizes, **changes}
  )
  program = make_program(cfg, jax.devices()[: int(np.prod(mesh))])
  rng = np.random.default_rng(0)
  wanted = scale(quick=30, ci=75, soak=250)
  # Every value at every place in turn, so that each leaf has its turn even in a short test; the first step, the
  # warm-up, runs of several, the last step are among them.
  num_leaves = len(jax.tree.leaves(program.state.params))
  codes = itertools.cycle(
    3 * p + v for p, v in itertools.product(range(1, bad_numbers.LEAF + num_leaves), range(3))
  )
  with jax.set_mesh(program.mesh):
    state = init_state(program.model, program.tx, program.mesh, 0)
    undisturbed = jax.tree.map(jnp.copy, state)
    before, steps, skipped = digest(state), 0, 0
    while skipped < wanted:
      for _ in range(rng.integers(1, 4)):
        code = next(codes)
        state, metrics = program.step(state, make_batch(rng, cfg, program.mesh, code))
        steps, skipped = steps + 1, skipped + 1
        assert metrics['skipped'] == 1, code
        assert digest(state) == before, code
        assert int(state.step) == steps
        assert np.isfinite(metrics['param_norm']) and metrics['tokens'] == ROWS * cfg.data.seq_len
      if skipped >= wanted:
        break
      for _ in range(rng.integers(1, 3)):
        batch = make_batch(rng, cfg, program.mesh, 0)
        state, metrics = program.step(state, batch)
        undisturbed, want = program.step(undisturbed, batch)
        steps += 1
        assert metrics['skipped'] == 0 and np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm'])
        assert metrics['loss'].tobytes() == want['loss'].tobytes()
        assert digest(undisturbed) != before
        before = digest(undisturbed)
        assert digest(state) == before
    assert program.step._cache_size() == 1
  assert skipped >= wanted and steps > skipped
