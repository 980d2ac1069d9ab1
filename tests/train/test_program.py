"""What is built from a config with devices: the same steps for the trainer as for the planner."""

import types

import jax
import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.parallel.rows import global_batch
from llamax.train.program import make_program, platform_of
from llamax.train.state import init_state


def batch_of(cfg, program):
  shape = (cfg.batch_size, cfg.data.seq_len)
  ids = np.random.default_rng(0).integers(0, cfg.model.vocab_size, shape).astype(np.int32)
  positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  rows = {
    'tokens': ids,
    'targets': ids[:, ::-1],
    'segment_ids': np.ones(shape, np.int32),
    'positions': positions,
  }
  return global_batch(rows, program.mesh)


def test_the_step_takes_what_was_promised_and_gives_the_state_back_in_place(tiny_config):
  cfg = tiny_config(**{'mesh.data': 1, 'mesh.fsdp': 4, 'mesh.tensor': 2})
  program = make_program(cfg, jax.devices())
  state, batch = init_state(program.model, program.tx, program.mesh, 0), batch_of(cfg, program)
  described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), (program.state, program.batch))
  assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), (state, batch))
  given = jax.tree.leaves(state)
  with jax.set_mesh(program.mesh):
    state, metrics = program.step(state, batch)
  assert all(leaf.is_deleted() for leaf in given)
  for leaf, promised in zip(jax.tree.leaves(state), jax.tree.leaves(program.state), strict=True):
    assert leaf.sharding == promised.sharding
  assert int(state.step) == 1
  assert all(value.sharding.is_fully_replicated for value in metrics.values())


def test_evaluation_has_no_dropout(tiny_config):
  cfg = tiny_config(**{'model.dropout': 0.5})
  program = make_program(cfg, jax.devices()[:1])
  assert program.model.dropout_on
  plain = make_program(tiny_config(), jax.devices()[:1])
  assert not plain.model.dropout_on
  batch = batch_of(cfg, program)
  with jax.set_mesh(program.mesh):
    params = init_state(program.model, program.tx, program.mesh, 0).params
    sums = [float(p.eval_step(params, batch)['nll']) for p in (program, plain)]
  assert sums[0] == sums[1]


UNTIED = {'model.tie_embeddings': False}


def test_mup_at_its_base_width_is_the_standard_run_to_the_bit(run_steps):
  (first, _, plain), (second, _, mup) = (
    run_steps(3, **UNTIED, **{'model.mup_base_width': base}) for base in (None, 32)
  )
  assert (first == second).all()
  jax.tree.map(np.testing.assert_array_equal, plain, mup)  # The same paths, too: checkpoints are alike.


def test_mup_is_the_same_run_on_any_mesh(run_steps):
  one, eight = (
    run_steps(3, mesh, **UNTIED, **{'model.mup_base_width': 16})[0] for mesh in ((1, 1, 1), (2, 2, 2))
  )
  np.testing.assert_allclose(one, eight, rtol=1e-5)


def test_compute_is_settled_for_the_platform(tiny_config):
  program = make_program(
    tiny_config(**{'compute.attention': 'auto', 'compute.compute_dtype': 'auto'}), jax.devices()
  )
  assert (program.cfg.compute.attention, program.cfg.compute.compute_dtype) == ('xla', 'float32')
  assert program.model.compute == program.cfg.compute


@pytest.mark.parametrize(
  ('jax_says', 'name'), [('cpu', 'cpu'), ('tpu', 'tpu'), ('cuda', 'gpu'), ('rocm', 'gpu'), ('gpu', 'gpu')]
)
def test_platform_names(jax_says, name):
  assert platform_of([types.SimpleNamespace(platform=jax_says)]) == name


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'mesh.data': 3, 'mesh.fsdp': 1}, 'is for 3 devices, there are 8'),
    ({'mesh.fsdp': 8, 'train.batch_size': 12}, 'does not divide over 8 batch shards'),
    ({'mesh.fsdp': 1, 'mesh.tensor': 8}, 'mesh.tensor=8 does not divide'),
    ({'compute.attention': 'splash'}, 'it runs on TPU, this is cpu'),
  ],
)
def test_what_cannot_run_is_refused(tiny_config, changes, says):
  with pytest.raises(UserError, match=says):
    make_program(tiny_config(**changes), jax.devices())
