"""When a run is given up."""

import math

import pytest

from llamax.core.errors import UserError
from llamax.sweep.prune import Diverged, read_policy, watcher
from llamax.sweep.watch import Watched


def run_of(losses, name='x'):
  run = Watched('nowhere', name, 'eval/x/loss')
  for step, loss in enumerate(losses, 1):
    run._take({'step': step, 'tokens_seen': 100 * step, 'loss': loss})
  return run


FALLING = [7.0 - 0.1 * i for i in range(40)]


@pytest.mark.parametrize(
  ('losses', 'told'),
  [
    (FALLING, None),
    ([*FALLING, math.nan, math.nan, 3.0], None),  # The trainer skips bad steps.
    (
      [*FALLING, math.nan, math.inf, math.nan],
      'three logged losses in a row are not finite, the last at step 43',
    ),
    ([*FALLING, *[9.0, 9.0]], None),  # A leap of two in five
    ([*FALLING, *[9.0] * 3], 'risen from 3.3 to 9 by step 43'),
    ([*FALLING, *[5.0] * 3], None),  # It has 3.1 + half of what it had learnt to go.
    ([7.0] * 40, None),  # learns nothing, harms nothing
    ([7.0, 6.99, *[7.4] * 8], None),  # a tenth of 100 steps only
    ([7.0, 6.99, *[7.4] * 30], None),  # at least half a nat
    ([7.0, *[6.0] * 9, *[7.4] * 5], 'risen from 6 to 7.4'),
  ],
)
def test_its_own_losses(losses, told):
  reason = Diverged().reason(run_of(losses), 100, [])
  assert reason is None if told is None else told in reason


@pytest.mark.parametrize(
  ('since', 'told'),
  [
    ([9.0] * 4, None),  # fewer than it looks at
    ([9.0] * 5, 'risen from 3.3 to 9'),
    ([3.0] * 5, None),
    ([math.nan] * 2, None),
    ([math.nan] * 3, 'not finite'),
  ],
)
def test_one_that_was_given_up_before_is_judged_by_what_came_since(since, told):
  run = run_of([*FALLING, *[9.0] * 4, math.nan, math.nan, math.nan, *since])
  run.judged_after = 47
  reason = Diverged().reason(run, 100, [])
  assert reason is None if told is None else told in reason


def test_the_trainer_may_be_quicker():
  why = watcher(Diverged(), 'nowhere', list, lambda name: 10)
  assert why(run_of([1.0]), 77) == 'the trainer gave up: the numbers went bad'
  assert why(run_of([1.0]), 1) is None
  assert watcher(None, 'nowhere', list, lambda name: 10)(run_of([]), 77) is None


def test_the_best_at_the_same_tokens():
  policy = Diverged(factor=1.5, after=0.1)
  slow = run_of([7.0] * 20)
  best = run_of([7.0] * 10 + [4.5] * 30, 'best')
  assert 'above 1.5 times the best, 4.5' in policy.reason(slow, 100, [best])
  assert policy.reason(run_of([7.0] * 10), 100, [best]) is None  # by its tokens the other was no better
  assert policy.reason(slow, 100, [run_of([1.0] * 19, 'behind')]) is None
  assert policy.reason(slow, 100, []) is None
  assert Diverged().reason(slow, 100, [best]) is None


def test_read_policy():
  assert read_policy(None) is None
  assert read_policy('diverged') == Diverged()
  assert read_policy('diverged:factor=2,window=3') == Diverged(factor=2.0, window=3)
  for text, told in (
    ('median', 'want diverged'),
    ('diverged:factr=2', "Did you mean 'factor'"),
    ('diverged:factor=x', 'is no float'),
    ('diverged:factor=0.5', 'lies from 1 to 100'),
    ('diverged:window=1.5', 'is no int'),
  ):
    with pytest.raises(UserError, match=told):
      read_policy(text)


def test_without_a_policy_nothing_is_given_up(tmp_path):
  assert watcher(None, tmp_path, list, lambda name: 10)(run_of([math.nan] * 9)) is None


def test_other_runs_are_looked_up_on_the_disk(tmp_path):
  folder = tmp_path / 'runs/best'
  folder.mkdir(parents=True)
  lines = [f'{{"step": {i}, "tokens_seen": {100 * i}, "loss": 2.0}}\n' for i in range(1, 30)]
  (folder / 'metrics.jsonl').write_text(''.join(lines))
  why = watcher(Diverged(factor=1.5), tmp_path, lambda: ['x', 'best'], lambda name: 100)
  assert 'times the best, 2' in why(run_of([7.0] * 20))
