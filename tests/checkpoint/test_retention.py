"""Which checkpoints are kept."""

import pytest

from llamax.checkpoint.retention import reasons, to_remove


@pytest.mark.parametrize(
  'changes, kept',
  [
    ({'keep_last': 1}, [10]),
    ({'keep_last': 3}, [8, 9, 10]),
    ({'keep_last': 1, 'keep_every': 4}, [4, 8, 10]),
    ({'keep_last': 1, 'keep_best': 1}, [7, 10]),  # of equals the newer one
    ({'keep_last': 1, 'keep_best': 3}, [3, 7, 9, 10]),
    ({'keep_last': 1, 'keep_before_trouble': 1}, [6, 10]),
    ({'keep_last': 1, 'keep_before_trouble': 5}, [2, 6, 10]),
  ],
)
def test_kept(cfg, changes, kept):
  losses = {3: 2.0, 7: 2.0, 9: 2.5, 5: 3.0, 99: 0.0}
  steps = [10, 1, 2, 3, 4, 5, 6, 7, 8, 9]
  removed = to_remove(steps, losses, [6, 2, 50], cfg(**changes))
  assert sorted(set(steps) - set(removed)) == kept and removed == sorted(removed)


def test_reasons_say_why(cfg):
  why = reasons([4, 5], {4: 1.0}, [4], cfg(keep_last=1, keep_every=4, keep_best=1, keep_before_trouble=1))
  assert why == {4: ['each 4', 'best', 'before trouble'], 5: ['latest']}
