"""What the guard makes of losses, by hand; that a resumed guard decides as one that never stopped."""

import dataclasses
import json

import numpy as np
import pytest

from llamax.core.config import GuardConfig
from llamax.core.errors import UserError
from llamax.core.exits import NUMBERS, Stop
from llamax.train.guard import Guard, Rollback, Spike, Verdict, joined, stale, too_many

CFG = GuardConfig(
  max_bad_steps=3, spike_threshold=5.0, spike_window=5, spike_rewind=10, spike_skip=30, spike_max_rollbacks=2
)
NAN = float('nan')


def make(meta=(), rollbacks=(), **changes):
  return Guard(dataclasses.replace(CFG, **changes), dict(meta), rollbacks)


def test_bad_steps_count_in_a_row_and_in_all():
  guard = make()
  seen = [guard.see(NAN, True), guard.see(2.0, False), guard.see(NAN, True), guard.see(2.0, True)]
  assert seen == [Verdict.SKIPPED, Verdict.FINE, Verdict.SKIPPED, Verdict.SKIPPED]
  assert (guard.streak, guard.skipped) == (2, 3)
  assert guard.see(NAN, True) is Verdict.TOO_MANY


def test_a_spike_is_judged_by_the_median_of_a_full_window():
  # Median 3, median deviation 1, so one robust deviation is 1.4826: the bound is 3 + 5 x 1.4826 = 10.413.
  guard = make()
  for loss in (1.0, 2.0, 3.0, 4.0):
    assert guard.see(loss, False) is Verdict.FINE
  assert guard.see(1e9, False) is Verdict.FINE  # The window is not full yet.
  guard = make({'losses': [1.0, 2.0, 3.0, 4.0, 5.0]})
  assert guard.see(10.41, False) is Verdict.FINE
  guard = make({'losses': [1.0, 2.0, 3.0, 4.0, 5.0]})
  assert guard.see(10.42, False) is Verdict.SPIKE
  assert make({'losses': [1.0, 2.0, 3.0, 4.0, 5.0]}, spike_threshold=None).see(1e9, False) is Verdict.FINE


def test_losses_that_hardly_differ_are_not_all_spikes():
  guard = make({'losses': [2.0] * 5})  # One deviation is taken to be 0.002 then.
  assert guard.see(2.009, False) is Verdict.FINE
  assert make({'losses': [2.0] * 5}).see(2.011, False) is Verdict.SPIKE


def test_what_is_not_finite_or_a_spike_enters_no_statistics():
  guard = make({'losses': [1.0, 2.0, 3.0, 4.0, 5.0]})
  for loss, skipped in ((NAN, True), (float('inf'), True), (100.0, False)):
    guard.see(loss, skipped)
  assert guard.to_meta()['losses'] == [1.0, 2.0, 3.0, 4.0, 5.0]
  guard.see(6.0, False)
  assert guard.to_meta()['losses'] == [2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_guard_out_of_a_checkpoint_decides_like_one_that_never_stopped():
  rng = np.random.default_rng(0)
  losses = [NAN if rng.random() < 0.2 else float(np.float32(rng.lognormal(0, 1.5))) for _ in range(500)]
  whole, stopped = make(max_bad_steps=10), make(max_bad_steps=10)
  verdicts = set()
  for loss in losses:
    stopped = make(json.loads(json.dumps(stopped.to_meta())), max_bad_steps=10)
    want = whole.see(loss, bool(np.isnan(loss)))
    assert stopped.see(loss, bool(np.isnan(loss))) is want
    verdicts.add(want)
  assert verdicts == {Verdict.FINE, Verdict.SKIPPED, Verdict.SPIKE}
  assert stopped.to_meta() == whole.to_meta()


def test_a_roll_back_goes_far_enough_back_and_leaves_the_spike_out():
  found = make().roll_back(Spike(150, 9.0), [100, 120, 139, 140, 150])
  # The batch of the spike has number 149; ten steps of good batches lie between it and the first one left out.
  assert found == Rollback(spike=150, loss=9.0, to=139, at=139, skip=30)
  assert found.at <= 149 < found.at + found.skip
  found = make().roll_back(Spike(150, 9.0), [100, 140])
  assert (found.to, found.at) == (100, 139)  # Steps 101 to 139 are done again as they were.
  assert make().roll_back(Spike(150, 9.0), [145]).to == 0
  assert (make().roll_back(Spike(4, 9.0), [1, 2, 3]).to, make().roll_back(Spike(4, 9.0), []).at) == (0, 0)


def test_a_second_spike_brings_back_no_batch_that_was_left_out():
  first = Rollback(spike=150, loss=9.0, to=139, at=139, skip=30)
  found = make(rollbacks=[first]).roll_back(Spike(141, 9.0), [100, 120, 139])
  assert (found.to, found.at) == (120, 139)

  def used(rollbacks):
    skips = make(rollbacks=rollbacks).skips
    return {s + sum(n for at, n in skips if s >= at) for s in range(400)}

  assert not used([first, found]) & set(range(139, 169))
  # The spike of step 141 came from the batch after the first two that were not left out.
  assert 140 + 30 in used([first]) and 140 + 30 not in used([first, found])
  # A spike before the place of the first one, which a lower threshold may find: its batch goes as well.
  earlier = make(rollbacks=[first]).roll_back(Spike(101, 9.0), [])
  assert earlier.at == 90 and 100 not in used([first, earlier])


def test_roll_backs_are_bounded():
  rollbacks = [Rollback(150, 9.0, 100, 100, 30), Rollback(160, 9.0, 100, 100, 30)]
  with pytest.raises(Stop, match='spike_max_rollbacks=2') as stop:
    make(rollbacks=rollbacks).roll_back(Spike(170, 9.5), [100])
  assert stop.value.code == NUMBERS


def test_checkpoints_of_the_way_not_taken_are_stale():
  first, second = Rollback(150, 9.0, 100, 120, 30), Rollback(180, 9.0, 160, 165, 30)
  assert stale({80: 0, 100: 0, 120: 0, 140: 0}, [first]) == [120, 140]
  assert stale({80: 0, 100: 0, 120: 1, 140: 1}, [first]) == []
  assert stale({100: 0, 120: 1, 160: 1, 170: 1, 175: 2}, [first, second]) == [170]
  assert stale({100: 0, 120: 1}, []) == []


def test_ledger_and_checkpoint_have_to_tell_of_the_same_roll_backs():
  first, second = Rollback(150, 9.0, 100, 120, 30), Rollback(180, 9.0, 160, 165, 30)
  assert joined([first, second], [first]) == (first, second)
  assert joined([], [first]) == (first,)  # The folder was copied without its ledger.
  with pytest.raises(UserError, match=r'step 180 to 160.*step 150 to 100'):
    joined([second], [first])


def test_the_last_word_names_steps_batch_documents_and_what_to_do():
  guard = make({'streak': 3, 'skipped': 7})
  stop = too_many(guard, 42, 71, [f'folder[{i}]' for i in range(11)], 30, 1.0)
  assert stop.code == NUMBERS
  for part in (
    'steps 40 to 42',
    'number 71',
    'folder[0], folder[1]',
    'and 3 more',
    'of step 30',
    'max_bad_steps',
    'lower optim.clip_norm than 1',
  ):
    assert part in str(stop)
  assert 'Step 39' not in str(stop)  # The checkpoint is older than what came before the trouble.
  assert 'no checkpoint' in str(too_many(guard, 42, 71, [], None, 1.0))


def test_the_last_word_says_which_checkpoints_may_hold_the_cause():
  """An update that is finite may ruin the weights: then all gradients after it are NaN."""
  said = str(too_many(make({'streak': 41}), 42, 71, [], 10, None))
  assert 'Step 1 was the last one with finite gradients' in said and 'checkpoints of step 1 or later' in said
  assert 'finite weights' in said and 'sound' not in said.split('\n')[0] and 'clip_norm' not in said
