"""What part of the machine a run gets."""

import os
import sys

import pytest

from llamax.core.errors import UserError
from llamax.sweep.slots import make_slots, shares
from llamax.train.child import Child


@pytest.mark.parametrize(
  ('cores', 'number', 'want'),
  [
    (4, 2, [{0, 1}, {2, 3}]),
    (5, 2, [{0, 1}, {2, 3}]),  # as many for each: the same sums, bit for bit
    (2, 3, [{0}, {1}, {0}]),
    (1, 1, [{0}]),
  ],
)
def test_cores(cores, number, want):
  assert shares(range(cores), number) == want


def test_devices():
  one, other = make_slots(None, ['0', '1', '2', '3'], 2)
  assert one.environment['CUDA_VISIBLE_DEVICES'] == one.environment['TPU_VISIBLE_CHIPS'] == '0,1'
  assert other.environment['CUDA_VISIBLE_DEVICES'] == '2,3'
  assert other.environment['TPU_CHIPS_PER_PROCESS_BOUNDS'] == '1,2,1'
  assert len(make_slots(1, ['0', '1'], 1)) == 1
  assert make_slots(None, [' 03', 'GPU-1 '], 2)[0].environment['CUDA_VISIBLE_DEVICES'] == '3,GPU-1'
  assert make_slots(None, None, 1)[0].cpus is None and not make_slots(None, None, 1)[0].environment


@pytest.mark.parametrize(
  ('count', 'devices', 'each', 'told'),
  [
    (0, None, 1, '--slots=0'),
    (None, ['0', '0'], 1, 'each device once'),
    (None, ['0', ''], 1, 'each device once'),
    (None, ['0', ' 0'], 1, 'each device once'),
    (None, ['0', '00'], 1, 'each device once'),
    (None, ['0', '1', '2'], 2, 'do not divide'),
    (3, ['0', '1'], 1, 'enough for 2'),
    (None, None, 2, 'without --devices'),
    (None, ['0'], 0, 'at least 1'),
  ],
)
def test_refused(count, devices, each, told):
  with pytest.raises(UserError, match=told):
    make_slots(count, devices, each)


@pytest.mark.skipif(sys.platform != 'linux', reason='cores are pinned on Linux alone')
def test_a_run_stays_on_the_cores_of_its_slot(tmp_path):
  before = os.sched_getaffinity(0)
  slots = make_slots(2, None, 1)
  for slot in slots:
    with open(tmp_path / 'out', 'wb') as out, slot.here():
      child = Child(
        [sys.executable, '-S', '-c', 'import os; print(sorted(os.sched_getaffinity(0)))'], output=out.fileno()
      )
    assert child.wait() == 0
    child.close(kill_leftovers=True)
    assert (tmp_path / 'out').read_text().strip() == str(sorted(slot.cpus))
  assert os.sched_getaffinity(0) == before
