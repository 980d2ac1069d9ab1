"""Learning rates at the steps where one knows them."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from llamax.core.config import OptimConfig
from llamax.core.errors import UserError
from llamax.optim.schedule import make_schedule

CFG = OptimConfig(
  name='adamw',
  learning_rate=8.0,
  b1=0.9,
  b2=0.95,
  eps=1e-8,
  weight_decay=0.1,
  decay=(),
  clip_norm=1.0,
  schedule='constant',
  warmup_steps=4,
  decay_steps=6,
  end_lr_fraction=0.25,
)


def rates(steps, num_steps=20, **changes):
  schedule = make_schedule(dataclasses.replace(CFG, **changes), num_steps)
  return [float(jax.jit(schedule)(np.int32(s))) for s in steps]


NAMES = ['constant', 'cosine', 'linear', 'inverse_sqrt', 'wsd']


@pytest.mark.parametrize('name', NAMES)
def test_warm_up_rises_by_equal_parts_to_the_peak(name):
  assert rates(range(5), schedule=name) == pytest.approx([2, 4, 6, 8, 8])


@pytest.mark.parametrize(
  'name, steps, expected',
  [
    ('constant', [4, 10, 19, 20, 99], [8, 8, 8, 8, 8]),
    # 16 steps of decay: a quarter, half, three quarters of the way, the end, past it.
    ('linear', [8, 12, 16, 20, 99], [6.5, 5, 3.5, 2, 2]),
    ('cosine', [12, 20, 99], [5, 2, 2]),
    ('cosine', [8], [2 + 6 * (1 + math.sqrt(0.5)) / 2]),
    ('inverse_sqrt', [4, 16, 100], [8, 4, 1.6]),
    ('wsd', [4, 13, 14, 17, 20, 99], [8, 8, 8, 5, 2, 2]),
  ],
)
def test_decay_by_hand(name, steps, expected):
  assert rates(steps, schedule=name) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_without_warm_up_the_first_step_has_the_peak(name):
  assert rates([0], schedule=name, warmup_steps=0) == pytest.approx([8])


@pytest.mark.parametrize('name', NAMES)
def test_a_warm_up_of_one_step_is_the_peak(name):
  assert rates([0, 1], schedule=name, warmup_steps=1) == pytest.approx([8, 8], rel=0.05)


@pytest.mark.parametrize('name', NAMES)
def test_no_rate_rises_after_the_warm_up(name):
  found = rates(range(4, 25), schedule=name)
  assert all(a >= b > 0 for a, b in itertools.pairwise(found))


def test_wsd_without_a_decay_is_constant():
  assert rates([4, 19, 20], schedule='wsd', decay_steps=0) == pytest.approx([8, 8, 8])


@pytest.mark.parametrize('name', NAMES)
def test_a_run_of_warm_up_alone(name):
  assert rates(range(4), num_steps=4, schedule=name, decay_steps=0) == pytest.approx([2, 4, 6, 8])


def test_an_unknown_schedule_names_the_nearest():
  with pytest.raises(UserError, match="Did you mean 'cosine'"):
    make_schedule(dataclasses.replace(CFG, schedule='cosinus'), 20)
