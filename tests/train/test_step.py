"""The train step: the same numbers on any mesh, in any pieces, with any way to compute them."""

import jax
import numpy as np
import pytest

ALL_PARTS = {
  'model.qk_norm': True,
  'model.qkv_bias': True,
  'model.out_bias': True,
  'model.mlp_bias': True,
  'train.z_loss': 1e-3,
}


@pytest.fixture(scope='module')
def alone():
  return {}


def reference(run_steps, alone):
  if not alone:
    alone['losses'], alone['metrics'], _ = run_steps(5, **ALL_PARTS)
  return alone


@pytest.mark.parametrize('mesh', [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_meshes_train_like_one_device(run_steps, alone, mesh, capfd):
  want = reference(run_steps, alone)
  capfd.readouterr()
  losses, metrics, state = run_steps(5, mesh, **ALL_PARTS, **{'compute.loss_chunks': 4})
  np.testing.assert_allclose(losses, want['losses'], rtol=1e-5)
  for name in ('grad_norm', 'param_norm', 'tokens', 'z_loss'):
    np.testing.assert_allclose(metrics[name], want['metrics'][name], rtol=1e-4)
  assert losses[-1] < losses[0]
  wq = state.params['layers']['attn']['wq']
  assert wq.addressable_shards[0].data.size * mesh[1] * mesh[2] == wq.size
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err


@pytest.mark.parametrize(
  'changes',
  [
    {'train.grad_accum': 4},
    {'train.grad_accum': 2, 'compute.remat': 'full'},
    {'compute.remat': 'qkv'},
    {'compute.remat': 'dots', 'compute.scan_layers': False},
    {'compute.scan_layers': False},
    {'compute.loss_chunks': 8},
  ],
  ids=str,
)
def test_pieces_and_recomputation_change_nothing(run_steps, alone, changes):
  want = reference(run_steps, alone)
  losses, metrics, _ = run_steps(5, **ALL_PARTS, **changes)
  np.testing.assert_allclose(losses, want['losses'], rtol=2e-6)
  np.testing.assert_allclose(metrics['grad_norm'], want['metrics']['grad_norm'], rtol=1e-5)


def test_accumulation_on_a_mesh(run_steps, alone):
  want = reference(run_steps, alone)
  losses, _, _ = run_steps(5, (2, 2, 2), **ALL_PARTS, **{'train.grad_accum': 4})
  np.testing.assert_allclose(losses, want['losses'], rtol=1e-5)


def test_a_repeat_is_bitwise_the_same(run_steps):
  first, _, a = run_steps(3, (2, 2, 2))
  second, _, b = run_steps(3, (2, 2, 2))
  assert first.tobytes() == second.tobytes()
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_dropout_depends_on_the_step_and_the_seed_only(run_steps):
  plain, _, _ = run_steps(2)
  once, _, _ = run_steps(2, **{'model.dropout': 0.2})
  again, _, _ = run_steps(2, **{'model.dropout': 0.2})
  assert once.tobytes() == again.tobytes()
  assert abs(once[0] - plain[0]) > 1e-5


def test_bfloat16_keeps_float32_masters(run_steps):
  exact, _, _ = run_steps(5)
  losses, _, state = run_steps(5, **{'compute.compute_dtype': 'bfloat16'})
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {'float32'}
  np.testing.assert_allclose(losses, exact, rtol=5e-3)
  assert (losses != exact).any()
