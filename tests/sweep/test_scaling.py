"""llamax/sweep/scaling.py: planted laws are found again; what data cannot tell is not told."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.sweep.scaling import Law, Point, best_by_search, far_off, fit, flops_per_token_of
from tests.conftest import ROOT
from tests.sweep.fitted import CHINCHILLA, COUNTS, PLANTED, SIZES, ladder


@pytest.fixture(scope='module')
def fitted():
  env = os.environ | {'OPENBLAS_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, '-m', 'tests.sweep.fitted'],
    env=env,
    cwd=ROOT,
    capture_output=True,
    timeout=280,
    check=False,
  )
  assert done.returncode == 0, done.stderr.decode()
  return json.loads(done.stdout)


def test_chinchillas_coefficients_come_back_from_its_own_curve(fitted):
  found = fitted['chinchilla']
  assert found['law'] == pytest.approx(vars(CHINCHILLA), rel=1e-3)
  assert found['unknown'] == []
  assert max(map(abs, found['residuals'])) < 1e-6
  # The budget of Gopher: the paper's approach 3 says 40 billion parameters (table 3, figure 4) within rounding.
  params, tokens = Law(**found['law']).optimum(5.76e23)
  assert 30e9 < params < 42e9
  assert 6 * params * tokens == pytest.approx(5.76e23)


def test_planted_laws_lie_within_the_intervals_of_noisy_data(fitted):
  inside = []
  for seed in range(5):
    found = fitted[f'noisy{seed}']
    inside += [low <= getattr(PLANTED, name) <= high for name, (low, high) in found['intervals'].items()]
    assert found['law']['alpha'] == pytest.approx(PLANTED.alpha, abs=0.06)
    assert found['law']['beta'] == pytest.approx(PLANTED.beta, abs=0.06)
    assert found['unknown'] == []
  assert sum(inside) >= 0.75 * len(inside)  # 95 % of them, by the name; five draws say no more


def test_one_run_gone_wrong_moves_nothing(fitted):
  found = fitted['outlier']
  assert found['law'] == pytest.approx(vars(PLANTED), rel=0.05)
  assert abs(found['residuals'][-1]) > 0.05
  assert max(map(abs, found['residuals'][:-1])) < 2e-3


@pytest.mark.parametrize(
  ('case', 'symbol', 'kept'), [('one_size', 'alpha', 'beta'), ('one_count', 'beta', 'alpha')]
)
def test_a_term_that_nothing_varies_is_said_to_be_unknown_the_other_one_fitted(fitted, case, symbol, kept):
  found = fitted[case]
  assert found['unknown'][0].startswith(f'{symbol} cannot be fitted: 1 different')
  assert found['law'][symbol] == 0
  assert found['law'][kept] == pytest.approx(getattr(PLANTED, kept), rel=0.01)


def test_sizes_close_together_under_noise_do_not_tell_alpha(fitted):
  assert any(line.startswith('alpha is not told') for line in fitted['near_sizes']['unknown'])


def test_exponents_in_a_wide_interval_are_said_to_be_rough(fitted):
  found = fitted['much_noise']
  assert found['unknown'] == [] and [line.partition(' ')[0] for line in found['rough']] == ['alpha']
  low, high = found['intervals']['alpha']
  assert high > 4 * low and low < PLANTED.alpha < high


def test_a_size_that_changes_nothing_has_no_exponent(fitted):
  assert any(line.startswith('alpha is not told') for line in fitted['size_without_effect']['unknown'])


def test_tokens_in_step_with_size_are_refused(fitted):
  assert 'cannot be told apart' in fitted['in_step']['error']


def test_too_few_runs_are_refused(fitted):
  assert '4 runs of 2 sizes and 2 token counts' in fitted['too_few']['error']


def test_a_loss_that_is_no_number_is_refused_by_its_run():
  points = ladder(PLANTED, SIZES, COUNTS)
  with pytest.raises(UserError, match='run bad: loss is nan'):
    fit([*points, Point('bad', 1e6, 1e6, math.nan, 6e12)])


@pytest.mark.parametrize('law', [PLANTED, CHINCHILLA])
@pytest.mark.parametrize('flops', [1e12, 1e18, 5.76e23])
def test_the_closed_form_is_the_lowest_point_of_its_budget(law, flops):
  params, tokens = law.optimum(flops)
  assert 6 * params * tokens == pytest.approx(flops)
  found = best_by_search(law, lambda n: 6 * n, flops, params / 1e3, params * 1e3)
  assert found == pytest.approx((params, tokens), rel=1e-4)
  sizes = np.geomspace(params / 100, params * 100, 401)
  assert law.loss(sizes, flops / (6 * sizes)).min() >= law.loss(params, tokens) - 1e-12


def test_dearer_small_models_move_the_optimum():
  points = [Point(str(n), n, 1e6, 3.0, 1e6 * (6 * n + 3e6)) for n in SIZES]
  cost = flops_per_token_of(points)
  for point in points:
    assert cost(point.params) == pytest.approx(point.flops / point.tokens)
  closed = PLANTED.optimum(1e13)
  counted = best_by_search(PLANTED, cost, 1e13, 1e3, 1e9)
  assert counted[0] > closed[0]  # where each token costs more of a small model, larger ones gain
  assert counted[1] * cost(counted[0]) == pytest.approx(1e13)


def test_a_prediction_far_from_all_measurements_is_named():
  points = ladder(PLANTED, SIZES, COUNTS)
  assert far_off(points, 5e7, 5e6) == []
  assert far_off(points, 2e8, 5e6) == ['N is 20 times the largest measured']
  assert far_off(points, 1e6, 5e3) == ['D is 20 times below the smallest measured']
