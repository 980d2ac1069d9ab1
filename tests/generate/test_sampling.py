"""Filters against float64 with a sort, against transformers; draws against their probabilities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.generate.sampling import Filters, Sampling, draw, filter_logits

PLAIN = Sampling(max_new_tokens=4, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
CASES = [
  Filters(0.7, 0, 1.0, 0.0),
  Filters(3.0, 5, 1.0, 0.0),
  Filters(1.0, 0, 0.9, 0.0),
  Filters(1.0, 0, 0.1, 0.0),
  Filters(1.0, 0, 1.0, 0.2),
  Filters(0.7, 5, 0.9, 0.0),
  Filters(3.0, 5, 0.9, 0.2),
  Filters(3.0, 1, 0.5, 0.0),
  Filters(0.7, 400, 0.9, 0.2),
]
LOGITS_BV = np.random.default_rng(0).normal(0, 2, (3, 37)).astype(np.float32)


@functools.partial(jax.jit, static_argnames='filters')
def probabilities(logits_BV, filters):
  return jax.nn.softmax(filter_logits(logits_BV, filters))


def sorted_filter(logits, filters):
  """One row in float64, token by token from the highest: (kept ids, their probabilities)."""
  scores = logits.astype(np.float64) / filters.temperature
  order = list(np.argsort(-scores, kind='stable'))
  if filters.top_k:
    order = order[: filters.top_k]
  probs = np.exp(scores[order] - scores[order[0]])
  probs /= probs.sum()
  kept = [i for i, p_above in enumerate(np.cumsum(probs) - probs) if i == 0 or p_above < filters.top_p]
  kept = [i for i in kept if probs[i] >= filters.min_p * probs[0]]
  return {order[i]: probs[i] / probs[kept].sum() for i in kept}


@pytest.mark.parametrize('filters', CASES, ids=str)
def test_filter_equals_a_sort_in_float64(filters):
  found_BV = np.asarray(probabilities(LOGITS_BV, filters))
  for row, logits in enumerate(LOGITS_BV):
    wanted = sorted_filter(logits, filters)
    assert set(np.flatnonzero(found_BV[row])) == set(wanted)
    for token, prob in wanted.items():
      assert found_BV[row, token] == pytest.approx(prob, rel=1e-5)


@pytest.mark.parametrize('filters', CASES, ids=str)
def test_filter_equals_transformers(filters):
  torch = pytest.importorskip('torch', reason='parity with transformers')
  process = pytest.importorskip('transformers.generation.logits_process')
  steps = [process.TemperatureLogitsWarper(filters.temperature)]
  steps += [process.TopKLogitsWarper(filters.top_k)] if filters.top_k else []
  steps += [process.TopPLogitsWarper(filters.top_p)] if filters.top_p < 1 else []
  steps += [process.MinPLogitsWarper(filters.min_p)] if filters.min_p else []
  wanted_BV = torch.tensor(LOGITS_BV)
  for step in steps:
    wanted_BV = step(None, wanted_BV)
  found_BV = np.asarray(probabilities(LOGITS_BV, filters))
  np.testing.assert_allclose(found_BV, torch.softmax(wanted_BV, -1).numpy(), atol=1e-6)


def kept(logits, *filters):
  return np.flatnonzero(
    np.isfinite(np.asarray(filter_logits(jnp.asarray([logits], jnp.float32), Filters(*filters))))
  )


def test_equal_logits_stay_or_go_together():
  assert kept([1, 3, 2, 2, 2], 1.0, 2, 1.0, 0.0).tolist() == [1, 2, 3, 4]
  # e^3 of e^3 + 3 e^2 + e is 0.449: the three together reach 0.5, so all three stay.
  assert kept([1, 3, 2, 2, 2], 1.0, 0, 0.5, 0.0).tolist() == [1, 2, 3, 4]
  assert kept([1, 3, 2, 2, 2], 1.0, 0, 0.44, 0.0).tolist() == [1]


def test_the_highest_always_stays():
  assert kept([0, 5, 1], 1.0, 0, 0.0, 0.0).tolist() == [1]
  assert kept([0, 5, 1], 1.0, 0, 1.0, 1.0).tolist() == [1]


def test_no_number_overflows():
  assert kept([1e30, -1e30, 3e38], 1e-38, 2, 0.9, 0.1).tolist() == [2]
  assert kept([-np.inf, 2, -np.inf, 2], 1.0, 3, 0.99, 0.0).tolist() == [1, 3]


def test_draws_have_their_probabilities():
  # More than one block of 128 tokens, the last of them cut short.
  logits_V = np.random.default_rng(2).normal(0, 2, 300).astype(np.float32)
  filters, draws = Filters(0.8, 40, 0.95, 0.0), 8000
  keys = jax.random.split(jax.random.key(0), draws)
  tokens = draw(jnp.broadcast_to(jnp.asarray(logits_V)[None], (draws, 300)), keys, filters)
  wanted = sorted_filter(logits_V, filters)
  counts = np.bincount(np.asarray(tokens), minlength=300)
  assert set(np.flatnonzero(counts)) <= set(wanted)
  chi_squared = sum((counts[token] - draws * p) ** 2 / (draws * p) for token, p in wanted.items())
  # Mean: one less than the number of tokens; std: sqrt(2) times its root.
  freedom = len(wanted) - 1
  assert chi_squared < freedom + 4 * np.sqrt(2 * freedom)


def test_a_row_draws_by_its_own_key():
  logits_BV = jnp.zeros((6, 50))
  keys = jax.random.split(jax.random.key(1), 6)
  together = np.asarray(draw(logits_BV, keys, PLAIN.filters))
  assert len(set(together)) > 1
  assert [int(draw(logits_BV[:1], keys[row, None], PLAIN.filters)[0]) for row in range(6)] == together.tolist()


def test_greedy_takes_the_highest_whatever_else_is_set():
  greedy = dataclasses.replace(PLAIN, temperature=0, top_k=3, top_p=0.5, min_p=0.1).filters
  assert greedy == dataclasses.replace(PLAIN, temperature=0).filters
  assert draw(jnp.asarray([[1.0, 4.0, 2.0]]), jax.random.split(jax.random.key(0), 1), greedy).tolist() == [1]


@pytest.mark.parametrize(
  'name, value, wanted',
  [
    ('max_new_tokens', 0, 'an integer from 1'),
    ('max_new_tokens', 2.5, 'an integer from 1'),
    ('temperature', -0.1, 'a number from 0'),
    ('temperature', float('nan'), 'a number from 0'),
    ('top_k', -1, 'an integer from 0'),
    ('top_k', True, 'an integer from 0'),
    ('top_p', 1.5, 'a number from 0 to 1'),
    ('min_p', 'x', 'a number from 0 to 1'),
    ('seed', 2**32, 'an integer from 0 to 4294967295'),
    ('stop', 'x', 'a sequence of strings'),
    ('stop', ('a', ''), 'strings that are not empty'),
  ],
)
def test_impossible_values_are_named(name, value, wanted):
  with pytest.raises(UserError, match=rf'^{name}=.*{wanted}'):
    dataclasses.replace(PLAIN, **{name: value})


def test_config_gives_what_is_not_overridden(tiny_config):
  cfg = tiny_config(**{'sample.top_k': 7, 'sample.seed': 3}).sample
  sampling = Sampling.from_config(cfg, {'seed': 5, 'top_p': None, 'stop': ['\n']})
  assert (sampling.top_k, sampling.seed, sampling.top_p, sampling.stop) == (7, 5, cfg.top_p, ('\n',))
  with pytest.raises(UserError, match=r"'top_q' is not known. Did you mean 'top_p'"):
    Sampling.from_config(cfg, {'top_q': 0.5})
