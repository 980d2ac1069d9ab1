"""The chunked loss equals the plain one: values, gradients, on one device, on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.core.config import MeshConfig
from llamax.kernels.loss import LossSums, cross_entropy
from llamax.parallel.mesh import make_mesh

B, T, D, V = 8, 12, 16, 36


def draw(dtype=np.float32, scale=1.0):
  rng = np.random.default_rng(0)
  hidden_BTD = (scale * rng.standard_normal((B, T, D))).astype(dtype)
  head_DV = (0.5 * rng.standard_normal((D, V))).astype(dtype)
  targets_BT = rng.integers(V, size=(B, T), dtype=np.int32)
  mask_BT = rng.random((B, T)) < np.linspace(0.1, 1, B)[:, None]
  mask_BT[2] = mask_BT[5] = False  # rows of padding alone
  mask_BT[7] = True
  return hidden_BTD, head_DV, targets_BT, mask_BT


def reference(hidden_BTD, head_DV, targets_BT, mask_BT, z_loss):
  """(sums, d total / d hidden, d total / d head) in float64, all logits at once."""
  hidden_BTD, head_DV = np.asarray(hidden_BTD, np.float64), np.asarray(head_DV, np.float64)
  logits_BTV = hidden_BTD @ head_DV
  peak_BT = logits_BTV.max(-1)
  log_z_BT = np.log(np.exp(logits_BTV - peak_BT[..., None]).sum(-1)) + peak_BT
  p_BTV = np.exp(logits_BTV - log_z_BT[..., None])
  one_hot_BTV = np.eye(V)[targets_BT]
  nll = ((log_z_BT - (logits_BTV * one_hot_BTV).sum(-1)) * mask_BT).sum()
  z = (log_z_BT**2 * mask_BT).sum()
  d_logits_BTV = (p_BTV - one_hot_BTV + 2 * z_loss * log_z_BT[..., None] * p_BTV) * mask_BT[..., None]
  d_hidden_BTD = d_logits_BTV @ head_DV.T
  d_head_DV = np.einsum('btd,btv->dv', hidden_BTD, d_logits_BTV)
  return LossSums(nll + z_loss * z, nll, z), d_hidden_BTD, d_head_DV


def run(arrays, z_loss, num_chunks, factor=1.0):
  """(sums, d hidden, d head) of `factor` times the total."""

  @jax.jit
  def both(hidden, head, targets, mask):
    def objective(hidden, head):
      sums = cross_entropy(hidden, head, targets, mask, z_loss=z_loss, num_chunks=num_chunks)
      return sums.total * factor, sums

    (_, sums), grads = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(hidden, head)
    return sums, *grads

  return both(*arrays)


def assert_equal(found, expected, rtol=2e-5):
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())


@pytest.mark.parametrize('z_loss, num_chunks', [(0.0, 1), (0.0, 4), (0.1, 1), (0.1, 3), (0.1, 12)])
def test_sums_with_gradients_equal_float64(z_loss, num_chunks):
  arrays = draw()
  expected = reference(*arrays, z_loss)
  assert_equal(run(arrays, z_loss, num_chunks), expected)
  forward = jax.jit(lambda *a: cross_entropy(*a, z_loss=z_loss, num_chunks=num_chunks))
  assert_equal(forward(*arrays), expected[0])


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_meshes_give_the_same_sums_with_gradients(shape):
  arrays = draw()
  sums, *grads = reference(*arrays, z_loss=0.1)
  with jax.set_mesh(make_mesh(MeshConfig(*shape), jax.devices())):
    found = run(arrays, z_loss=0.1, num_chunks=3, factor=0.25)
    forward = jax.jit(lambda *a: cross_entropy(*a, z_loss=0.1, num_chunks=3))(*arrays)
  assert_equal(found, (sums, *(0.25 * g for g in grads)))
  assert_equal(forward, sums)


def test_only_the_total_carries_a_gradient():
  arrays = draw()
  for name in ('nll', 'z'):
    grad = jax.grad(lambda h, name=name: getattr(cross_entropy(h, *arrays[1:], z_loss=0.1, num_chunks=2), name))
    assert not np.asarray(grad(arrays[0])).any()


def test_a_batch_of_padding_costs_nothing():
  hidden, head, targets, mask = draw()
  found = run((hidden, head, targets, np.zeros_like(mask)), z_loss=0.1, num_chunks=3)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(found))


def test_logits_in_the_thousands_stay_finite():
  arrays = draw(scale=1e3)
  assert np.abs(arrays[0] @ arrays[1]).max() > 2e3
  assert_equal(run(arrays, z_loss=0.1, num_chunks=3), reference(*arrays, 0.1), rtol=1e-4)


def test_bfloat16_is_summed_in_float32():
  arrays = draw(jnp.bfloat16)
  sums, *grads = reference(*arrays, z_loss=0.1)
  # A third is 0.2 % off in bfloat16: it must not scale the gradient.
  found_sums, *found = run(arrays, z_loss=0.1, num_chunks=3, factor=1 / 3)
  assert_equal(found_sums, sums, rtol=1e-5)
  for g, expected in zip(found, grads, strict=True):
    assert g.dtype == jnp.bfloat16
    g = np.asarray(g, np.float64)
    np.testing.assert_allclose(g, expected / 3, atol=0.01 * np.abs(expected).max())
    assert (g * expected).sum() / (expected**2).sum() == pytest.approx(1 / 3, rel=5e-4)


def largest_array(jaxpr):
  """Entries of the largest intermediate, loop bodies included."""
  sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
  for eqn in jaxpr.eqns:
    for inner in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda p: hasattr(p, 'jaxpr') or hasattr(p, 'eqns')
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        sizes.append(largest_array(inner))
  return max(sizes)


def test_the_logits_of_the_batch_never_exist_at_once():
  hidden, head, targets, mask = draw()

  def grads(hidden, head, num_chunks):
    total = lambda h, w: cross_entropy(h, w, targets, mask, z_loss=0.1, num_chunks=num_chunks).total  # noqa: E731
    return jax.value_and_grad(total, argnums=(0, 1))(hidden, head)

  whole = jax.make_jaxpr(lambda h, w: grads(h, w, 1))(hidden, head)
  pieces = jax.make_jaxpr(lambda h, w: grads(h, w, 2))(hidden, head)
  assert largest_array(whole.jaxpr) == B * T * V
  assert largest_array(pieces.jaxpr) == B * T * V / 2
