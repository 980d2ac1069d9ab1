"""The words of get_sweep: how many points, which, what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamax.core.errors import UserError
from llamax.sweep import space as s

KEYS = ('optim.learning_rate', 'model.d_model', 'train.seed', 'optim.b2')
SAMPLED = [0.02847, 0.00103, 0.01167]


def values_of(space):
  return [dict(point.values) for point in space]


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=4, unique=True), min_size=1, max_size=4))
def test_a_product_has_each_combination_once_the_last_varying_fastest(lists):
  spaces = [s.grid(key, values) for key, values in zip(KEYS, lists, strict=False)]
  points = values_of(s.product(*spaces))
  assert len(points) == math.prod(map(len, lists))
  assert len({tuple(p.items()) for p in points}) == len(points)
  assert [p[KEYS[len(lists) - 1]] for p in points[: len(lists[-1])]] == lists[-1]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_zip_wants_equal_lengths(lengths):
  spaces = [s.grid(key, range(n)) for key, n in zip(KEYS, lengths, strict=False)]
  if len(set(lengths)) > 1:
    with pytest.raises(UserError, match=r'zip of .* want equal lengths'):
      s.zip(*spaces)
  else:
    assert values_of(s.zip(*spaces)) == [dict.fromkeys(KEYS[: len(lengths)], i) for i in range(lengths[0])]


@pytest.mark.parametrize('join', [s.product, s.zip])
@given(st.integers(0, 3), st.integers(0, 3))
def test_no_key_has_two_values(join, one, other):
  spaces = s.fixed({'train.seed': one, 'optim.b2': 1}), s.fixed({'train.seed': other})
  if one == other:
    assert values_of(join(*spaces)) == [{'train.seed': one, 'optim.b2': 1}]
  else:
    with pytest.raises(UserError, match=f'train.seed={one} and train.seed={other}'):
      join(*spaces)


@given(st.integers(1, 20), st.integers(0, 20), st.integers())
def test_more_samples_leave_the_first_ones_as_they_are(count, more, seed):
  draws = {'optim.learning_rate': s.log_uniform(1e-4, 1e-1), 'optim.b2': s.uniform(0.9, 0.999)}
  few = values_of(s.sample(count, draws, seed=seed))
  assert values_of(s.sample(count + more, draws, seed=seed))[: len(few)] == few
  alone = values_of(s.sample(count, {'optim.b2': draws['optim.b2']}, seed=seed))
  # A value that is drawn again makes a point of its own only beside another key's.
  assert list(dict.fromkeys(p['optim.b2'] for p in few)) == [p['optim.b2'] for p in alone]


def test_samples_of_another_seed_are_others():
  draws = {'optim.learning_rate': s.log_uniform(1e-4, 1e-1)}
  assert values_of(s.sample(3, draws, seed=0)) != values_of(s.sample(3, draws, seed=1))
  # Kept for good: who goes on with a sweep gets the points that it began with.
  assert [p['optim.learning_rate'] for p in values_of(s.sample(3, draws, seed=0))] == SAMPLED


def test_draws_follow_their_distribution():
  shares = np.linspace(0, 1, 10_001)[:-1]
  log = np.array([s.log_uniform(1e-4, 1e-1).at(u) for u in shares])
  assert log.min() >= 1e-4 and log.max() <= 1e-1
  np.testing.assert_allclose(np.mean(log < 1e-3), 1 / 3, atol=1e-3)
  flat = np.array([s.uniform(-1, 3).at(u) for u in shares])
  np.testing.assert_allclose(flat.mean(), 1, atol=1e-3)
  whole = [s.int_uniform(2, 5).at(u) for u in shares]
  assert [whole.count(n) for n in (2, 3, 4, 5)] == [2500] * 4
  doubling = [s.int_uniform(1, 8, log=True).at(u) for u in shares]
  assert set(doubling) == set(range(1, 9)) and doubling.count(1) > 3 * doubling.count(8)
  assert [s.choice(['a', None]).at(u) for u in (0, 0.499, 0.5, 0.999)] == ['a', 'a', None, None]


def test_chain_leaves_out_what_comes_again():
  space = s.chain(
    s.grid('train.seed', [0, 1]), s.named('first', {'train.seed': 0}), s.grid('train.seed', [1, 2])
  )
  assert values_of(space) == [{'train.seed': n} for n in (0, 1, 2)]
  assert [p.name for p in space] == ['first', None, None]
  with pytest.raises(UserError, match="'a' and 'b' set the same"):
    s.chain(s.named('a', {'train.seed': 0}), s.named('b', {'train.seed': 0}))


def test_when_adds_keys_to_the_points_that_meet_it():
  names = s.grid('optim.schedule', ['wsd', 'cosine'])
  both = [
    {'optim.schedule': 'wsd', 'optim.decay_steps': 5},
    {'optim.schedule': 'wsd', 'optim.decay_steps': 9},
    {'optim.schedule': 'cosine'},
  ]
  inner = s.grid('optim.decay_steps', [5, 9])
  assert values_of(names.when({'optim.schedule': 'wsd'}, inner)) == both
  assert values_of(names.when(lambda v: v['optim.schedule'] == 'wsd', inner)) == both
  assert len(names.when({'optim.schedule': {'wsd', 'cosine'}}, inner)) == 4
  assert values_of(names.only({'optim.schedule': 'cosine'})) == both[2:]
  with pytest.raises(UserError, match=r"no point has that key. Did you mean 'optim.schedule'"):
    names.when({'optim.schedul': 'wsd'}, inner)
  with pytest.raises(UserError, match='no point of 2 meets'):
    names.when({'optim.schedule': 'wds'}, inner)


@pytest.mark.parametrize(
  ('make', 'told'),
  [
    (lambda: s.grid('optim.b2', []), 'has no values'),
    (lambda: s.grid('optim.b2', [1, 2, 1]), 'has 1 twice'),
    (lambda: s.grid('optim.b2', 'abc'), 'want a list'),
    (lambda: s.grid('optim b2', [1]), 'no key of a config'),
    (lambda: s.grid('optim.b2', [object()]), 'is object; want'),
    (lambda: s.named('../x', {}), r"named\('../x'\)"),
    (lambda: s.named('a\n', {}), 'the name of a folder'),
    (lambda: s.sample(0, {'optim.b2': s.uniform(0, 1)}), 'at least 1'),
    (lambda: s.sample(3, {'optim.b2': 0.5}), 'no distribution'),
    (lambda: s.sample(3, {}), 'want {key: distribution}'),
    (lambda: s.log_uniform(0, 1), 'above 0'),
    (lambda: s.uniform(2, 1), 'the lower end comes first'),
    (lambda: s.uniform(0, math.inf), 'no finite number'),
    (lambda: s.int_uniform(0.5, 2), 'whole numbers'),
    (lambda: s.choice([]), 'nothing'),
    (lambda: s.study(2, {'optim.b2': s.uniform(0, 1)}, base={'optim.b2': 1}), 'both drawn and in base'),
  ],
)
def test_refused(make, told):
  with pytest.raises(UserError, match=told):
    make()


def test_numpy_values_become_pythons_own():
  (point,) = s.grid('optim.b2', np.array([0.5]))
  assert type(point.values['optim.b2']) is float
