"""Rotations against complex numbers; the frequencies of each scaling against formulas written out."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.model.rope import SCALINGS, NoPosition, Rope


@pytest.fixture
def cfg(tiny_config):
  """The values of Llama 3.1 with a wide head."""
  return tiny_config(
    **{
      'model.head_dim': 128,
      'model.rope_theta': 500_000.0,
      'model.rope_factor': 8.0,
      'model.rope_original_max_len': 8192,
      'model.rope_low_freq_factor': 1.0,
      'model.rope_high_freq_factor': 4.0,
      'model.rope_beta_fast': 32.0,
      'model.rope_beta_slow': 1.0,
    }
  ).model


def plain(cfg):
  return np.array([cfg.rope_theta ** (-2 * i / cfg.head_dim) for i in range(cfg.head_dim // 2)])


def test_plain_frequencies_by_hand(cfg):
  small = dataclasses.replace(cfg, head_dim=4, rope_theta=100.0, rope_scaling='none')
  cos, sin = Rope.tables(small, jnp.array([[0, 1, 10]]))
  assert cos.shape == (1, 3, 1, 2)
  np.testing.assert_allclose(cos[0, :, 0], np.cos([[0, 0], [1, 0.1], [10, 1]]), rtol=1e-6)
  np.testing.assert_allclose(sin[0, :, 0], np.sin([[0, 0], [1, 0.1], [10, 1]]), rtol=1e-6)


def test_apply_is_a_complex_rotation_of_the_two_halves(cfg):
  small = dataclasses.replace(cfg, head_dim=6, rope_theta=50.0, rope_scaling='none')
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 5, 3, 6)).astype(np.float32)
  positions = rng.integers(100, size=(2, 5))
  turned = Rope.apply(jnp.asarray(x), Rope.tables(small, jnp.asarray(positions)))
  angles = positions[:, :, None, None] * plain(small)
  expected = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angles)
  np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], -1), atol=2e-5)


def test_scores_depend_on_the_distance_alone(cfg):
  small = dataclasses.replace(cfg, head_dim=6, rope_theta=50.0, rope_scaling='none')
  q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 6)).astype(np.float32)

  def score(t, s):
    turned = [Rope.apply(jnp.asarray(x), Rope.tables(small, jnp.array([[p]]))) for x, p in ((q, t), (k, s))]
    return float((turned[0] * turned[1]).sum())

  np.testing.assert_allclose(score(7, 4), score(57, 54), rtol=1e-4)
  assert abs(score(7, 4) - score(7, 5)) > 1e-2


def test_linear_divides_every_frequency(cfg):
  frequencies, magnitude = SCALINGS['linear'](cfg)
  np.testing.assert_allclose(frequencies, plain(cfg) / 8)
  assert magnitude == 1


def test_llama3_keeps_fast_pairs_squeezes_slow_ones(cfg):
  frequencies, magnitude = SCALINGS['llama3'](cfg)
  expected = []
  for f in plain(cfg):
    wavelength = 2 * math.pi / f
    if wavelength < 8192 / 4:
      expected.append(f)
    elif wavelength > 8192 / 1:
      expected.append(f / 8)
    else:
      smooth = (8192 / wavelength - 1) / (4 - 1)
      expected.append((1 - smooth) * f / 8 + smooth * f)
  np.testing.assert_allclose(frequencies, expected, rtol=1e-12)
  assert magnitude == 1
  bands = np.round(plain(cfg) / frequencies, 6)
  assert bands[0] == 1 and bands[-1] == 8 and ((bands > 1) & (bands < 8)).sum() > 3


def test_yarn_is_the_ramp_of_the_paper(cfg):
  frequencies, magnitude = SCALINGS['yarn'](cfg)
  # Pairs that turn 32 times, once, over the original context: where r(d) = L theta^(-2d/H) / 2 pi.
  edge = [64 * math.log(8192 / (2 * math.pi * turns)) / math.log(500_000.0) for turns in (32, 1)]
  low, high = math.floor(edge[0]), math.ceil(edge[1])
  squeezed = np.clip((np.arange(64) - low) / (high - low), 0, 1)
  np.testing.assert_allclose(frequencies, plain(cfg) * (1 - squeezed) + plain(cfg) / 8 * squeezed, rtol=1e-12)
  assert 0 < low < high < 64
  # sqrt(1/t) = 0.1 ln(s) + 1 (equation 22) falls on q, k both.
  assert magnitude == pytest.approx(0.1 * math.log(8) + 1)
  cos, _ = Rope.tables(dataclasses.replace(cfg, rope_scaling='yarn'), jnp.array([[0]]))
  np.testing.assert_allclose(cos, magnitude, rtol=1e-6)


@pytest.mark.parametrize('scaling', ['linear', 'llama3', 'yarn'])
def test_a_factor_of_one_changes_nothing(cfg, scaling):
  frequencies, magnitude = SCALINGS[scaling](dataclasses.replace(cfg, rope_factor=1.0))
  np.testing.assert_allclose(frequencies, plain(cfg), rtol=1e-12)
  assert magnitude == 1


def test_far_positions_are_turned_in_float32(cfg):
  small = dataclasses.replace(cfg, head_dim=4, rope_theta=100.0, rope_scaling='none')
  x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
  turned = Rope.apply(x, Rope.tables(small, jnp.array([[100_003]])))
  assert turned.dtype == jnp.bfloat16
  expected = (1 + 1j) * np.exp(1j * 100_003 * np.array([1, 0.1]))
  reference = np.concatenate([expected.real, expected.imag])
  np.testing.assert_allclose(turned.astype(np.float32)[0, 0, 0], reference, atol=2e-2)


def test_no_position_leaves_heads_alone(cfg):
  x = jax.random.normal(jax.random.key(0), (1, 2, 3, 4))
  assert NoPosition.apply(x, NoPosition.tables(cfg, jnp.zeros((1, 2), jnp.int32))) is x


def test_unknown_scaling_names_the_nearest(cfg):
  with pytest.raises(UserError, match='yarn'):
    Rope.tables(dataclasses.replace(cfg, rope_scaling='yarm'), jnp.array([[0]]))
