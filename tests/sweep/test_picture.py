"""llamax/sweep/picture.py: where runs stand in the pictures."""

import itertools
import math

import pytest

from llamax.sweep.compare import compare
from llamax.sweep.gather import gather
from llamax.sweep.picture import curves, picture, ranks, thinned
from llamax.sweep.record import Sample
from tests.sweep.made_runs import SPLIT, base_config, make_plan, make_run


@pytest.fixture(scope='module')
def base():
  return base_config()


def compared(folder, points, base, floors, **plan):
  make_plan(folder, base, points, **plan)
  for (name, point), floor in zip(points.items(), floors, strict=True):
    if floor is not None:
      make_run(folder / 'runs' / name, base, point, floor=floor, lines=20)
  return compare(gather([str(folder)]))


def test_one_key_is_a_line_on_a_log_axis(base, tmp_path):
  points = {str(lr): {'optim.learning_rate': lr} for lr in (1e-3, 1e-2, 1e-1)}
  found = compared(tmp_path, points, base, (3.0, 2.0, 2.5))
  shown = picture(found)
  assert shown.kind == 'line'
  across, up = shown.axes
  order = [r.name for r in found.records]
  assert order == ['0.01', '0.1', '0.001']
  assert across.at == pytest.approx([0.5, 1.0, 0.0])
  assert [label for _, label in across.ticks] == ['0.001', '0.01', '0.1']
  assert up.at == pytest.approx([0.0, 0.5, 1.0])  # the losses lie 0.5 and 1 above the best
  assert shown.levels == [0.0, 0.5, 1.0]


GRID = {
  f'{lr}-{d}': {'optim.learning_rate': lr, 'model.d_model': d} for lr in (1e-3, 4e-3) for d in (32, 64, 96)
}


def test_two_keys_on_a_grid_are_a_heat_map_with_holes(base, tmp_path):
  found = compared(tmp_path, GRID, base, (3.0, 2.8, 2.9, 2.0, None, 2.6))
  shown = picture(found)
  assert shown.kind == 'heat'
  place = {r.name: (shown.axes[0].at[i], shown.axes[1].at[i]) for i, r in enumerate(found.records)}
  assert shown.axes[0].key == 'model.d_model'  # the key with the most values first
  assert place['0.001-32'] == (0, 0) and place['0.004-96'] == (1, 1) and place['0.004-64'] == (0.5, 1)
  waiting = [r.name for r in found.records].index('0.004-64')
  assert shown.levels[waiting] is None and shown.values[waiting] == ''
  assert min(level for level in shown.levels if level is not None) == 0


def test_anything_else_is_parallel_coordinates_in_which_no_run_hides_another(base, tmp_path):
  points = {name: point | {'train.seed': i} for i, (name, point) in enumerate(GRID.items())}
  found = compared(tmp_path, points, base, (3.0, 2.8, 2.9, 2.0, 2.7, 2.6))
  shown = picture(found)
  assert shown.kind == 'parallel'
  for axis in shown.axes[:-1]:
    assert len(set(axis.at)) == 6 and min(axis.at) == 0 and max(axis.at) == 1
  rate = next(axis for axis in shown.axes if axis.label == 'learning_rate')
  for value in (1e-3, 4e-3):
    here = [
      (rate.at[i], shown.levels[i])
      for i, r in enumerate(found.records)
      if r.config['optim.learning_rate'] == value
    ]
    assert [level for _, level in sorted(here)] == sorted(level for _, level in here)
    assert max(at for at, _ in here) - min(at for at, _ in here) < 0.35


def test_a_run_far_off_does_not_flatten_the_others(base, tmp_path):
  points = {str(k): {'train.seed': k} for k in range(8)}
  found = compared(tmp_path, points, base, (2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 40.0))
  shown = picture(found)
  assert shown.axes[-1].at[-1] == 1.0
  assert shown.axes[-1].at[-2] > 0.3
  assert shown.axes[-1].ticks[-1][1].startswith('≥ ')


def test_more_is_better_where_the_sweep_says_so(base, tmp_path):
  points = {str(k): {'train.seed': k} for k in range(3)}
  found = compared(tmp_path, points, base, (2.0, 2.5, 3.0), direction='maximize')
  assert [r.name for r in found.records] == ['2', '1', '0']
  assert found.best.name == '2'
  assert ranks(found) == [0.0, 0.5, 1.0]
  assert picture(found).axes[-1].at == pytest.approx([1.0, 0.5, 0.0])


def test_nothing_that_differs_no_picture(base, tmp_path):
  make_run(tmp_path / 'a', base)
  assert picture(compare(gather([str(tmp_path)]))) is None


def test_curves_of_both_losses_cut_above_the_steep_start(base, tmp_path):
  points = {str(k): {'train.seed': k} for k in range(3)}
  found = curves(compared(tmp_path, points, base, (2.0, 2.5, 3.0)))
  assert [c.metric for c in found] == [SPLIT, 'loss']
  low, high = found[1].limits
  assert low < 2.5 and 4 < high < 6.6  # the first losses come from 6.6 and more


def test_thinning_keeps_both_ends_and_the_steep_start():
  samples = [Sample(step, step, step, math.exp(-step)) for step in range(1, 5001)]
  kept = thinned(samples, 100)
  assert 60 <= len(kept) <= 100
  assert kept[:5] == samples[:5] and kept[-1] == samples[-1]
  assert max(b.step - a.step for a, b in itertools.pairwise(kept)) < 250
  assert thinned(samples[:100], 100) == samples[:100]


@pytest.mark.parametrize(
  ('values', 'places', 'ticks'),
  [
    ((None, 0.5, 1.0), (1.0, 0.0, 0.85), ['0.5', '1', 'none']),
    ((0.5, None, None), (0.0, 1.0, 1.0), ['0.5', 'none']),
    ((None, 0.01, 1.0, 0.1), (1.0, 0.0, 0.85, 0.425), ['0.01', '0.1', '1', 'none']),
  ],
)
def test_a_key_that_is_none_in_some_runs_has_a_place_for_them(values, places, ticks, base, tmp_path):
  points = {str(k): {'optim.clip_norm': value} for k, value in enumerate(values)}
  found = compared(tmp_path, points, base, [2.0 + k for k in range(len(values))])
  across = picture(found).axes[0]
  assert across.at == pytest.approx(list(places))
  assert [label for _, label in across.ticks] == ticks


def test_a_grid_with_none_is_a_heat_map_of_all_its_runs(base, tmp_path):
  points = {
    f'{clip}-{lr}': {'optim.clip_norm': clip, 'optim.learning_rate': lr}
    for clip in (None, 0.5, 1.0)
    for lr in (1e-3, 4e-3, 16e-3)
  }
  found = compared(tmp_path, points, base, [2 + 0.1 * k for k in range(9)])
  shown = picture(found)
  assert shown.kind == 'heat'
  axes = {axis.key: axis for axis in shown.axes}
  clip, rate = axes['optim.clip_norm'], axes['optim.learning_rate']
  assert set(zip(clip.at, rate.at, strict=True)) == set(itertools.product((0, 0.5, 1), (0, 0.5, 1)))
  assert clip.ticks == [(0, '0.5'), (0.5, '1'), (1, 'none')]
  assert found.best.config['optim.clip_norm'] is None


def test_a_run_whose_config_cannot_be_read_has_no_place(base, tmp_path):
  for k in range(3):
    make_run(tmp_path / str(k), base, {'optim.clip_norm': 1.0 + k}, floor=2 + k, lines=20)
  (tmp_path / '0/config.json').write_text('{"torn')
  shown = picture(compare(gather([str(tmp_path)])))
  assert shown.axes[0].at == [None, 0.0, 1.0]
  assert [label for _, label in shown.axes[0].ticks] == ['2', '3']


def test_a_heat_map_has_a_label_for_each_of_many_values(base, tmp_path):
  points = {
    f'{k}-{d}': {'optim.learning_rate': 1e-3 * 1.3**k, 'model.d_model': d} for k in range(15) for d in (32, 64)
  }
  shown = picture(compared(tmp_path, points, base, [2 + 0.01 * k for k in range(30)]))
  assert shown.kind == 'heat'
  assert [label for _, label in shown.axes[0].ticks][:3] == ['0.001', '0.0013', '0.00169']
  assert all(label for axis in shown.axes[:2] for _, label in axis.ticks)
