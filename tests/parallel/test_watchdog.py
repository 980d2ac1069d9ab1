"""Who makes no progress is given up; who is slow, stopped or fast is not."""

import threading
import time
import timeit

import pytest

from llamax.core import exits
from llamax.core.config import WatchdogConfig
from llamax.parallel.peers import LOCAL, Record
from llamax.parallel.watchdog import BUDGETS, TICK, Watchdog

CFG = WatchdogConfig(
  enabled=True,
  heartbeat_seconds=10,
  compile_seconds=100.0,
  first_step_seconds=50.0,
  step_seconds=10.0,
  step_factor=5.0,
  save_seconds=30.0,
  eval_seconds=40.0,
)


class Looked:
  """A watchdog whose clock is moved by hand; `ended` holds the codes that it ended the process with."""

  def __init__(self, folder):
    self.now, self.ended = 0.0, []
    self.dog = Watchdog(CFG, folder, clock=lambda: self.now, end=self.ended.append)

  def passes(self, seconds):
    """Time, with the watchdog's thread awake."""
    end = self.now + seconds
    while self.now < end and not self.ended:
      self.now += TICK
      self.dog.look()


@pytest.fixture
def looked(tmp_path):
  return Looked(tmp_path)


@pytest.mark.parametrize('phase', BUDGETS)
def test_each_phase_has_its_budget(looked, phase, capfd):
  budget = getattr(CFG, BUDGETS[phase])
  looked.dog.enter(phase, 7)
  looked.passes(budget)
  assert not looked.ended
  looked.passes(2)
  assert looked.ended == [exits.LOST]
  told = capfd.readouterr().err
  assert f"stuck in phase '{phase}', step 7" in told
  assert 'most recent call first' in told


def test_the_stacks_go_to_the_workdir(looked, tmp_path, capfd):
  looked.dog.enter('data', 3)
  looked.passes(12)
  assert 'test_the_stacks_go_to_the_workdir' in (tmp_path / 'stacks-0.txt').read_text()
  assert "phase 'data', step 3" in (tmp_path / 'stacks-0.txt').read_text()


def test_local_phases_have_budgets():
  assert set(LOCAL) <= set(BUDGETS)


def test_entering_again_is_progress(looked):
  for step in range(50):
    looked.dog.enter('step', step // 2)
    looked.passes(6)
  assert not looked.ended


def test_a_block_gives_the_phase_back_anew(looked):
  looked.dog.enter('step', 1)
  looked.passes(8)
  with looked.dog.phase('save'):
    looked.passes(25)
  looked.passes(8)
  assert not looked.ended
  looked.passes(4)
  assert looked.ended


def test_slow_steps_widen_their_budget(looked):
  for step in range(1, 6):  # A step takes 8 s: 5 times that is the budget.
    looked.dog.enter('step', step)
    looked.passes(8)
  looked.dog.enter('step', 6)
  looked.passes(38)
  assert not looked.ended
  looked.passes(4)
  assert looked.ended


def test_a_step_that_compiled_is_no_pace(looked):
  looked.dog.enter('compile', 0)
  looked.passes(90)
  looked.dog.enter('step', 1)
  looked.passes(12)
  assert looked.ended


def test_time_in_which_nothing_ran_does_not_count(looked):
  looked.dog.enter('step', 1)
  looked.passes(5)
  looked.now += 3600  # Ctrl-Z, a closed laptop, a debugger
  looked.passes(2)
  assert not looked.ended
  looked.passes(5)
  assert looked.ended


def test_what_goes_on_beside_the_training_is_watched(looked, capfd):
  saving = None
  looked.dog.watch('write', lambda: saving)
  for step in range(20):
    saving = step // 4 if step < 12 else None  # One save after the other, each of 20 s.
    looked.dog.enter('step', step)
    looked.passes(5)
  assert not looked.ended
  saving = 20
  for step in range(20, 30):
    looked.dog.enter('step', step)
    looked.passes(5)
  assert looked.ended == [exits.LOST]
  assert "phase 'write', step 20" in capfd.readouterr().err


def test_the_record_says_what_the_training_is_at(looked):
  looked.dog.enter('save', 4)
  looked.passes(3)
  record = Record(0, 'here', 1)
  looked.dog.describe(record)
  assert (record.phase, record.step, record.stuck) == ('save', 4, False)
  assert record.seconds == pytest.approx(3, abs=2 * TICK)


def test_a_fast_run_raises_no_alarm(tmp_path):
  """10,000 steps past a real thread, with a budget that three of its looks would use up."""
  ended = []
  cfg = WatchdogConfig(**{**vars(CFG), 'step_seconds': 3 * TICK})
  with Watchdog(cfg, tmp_path, end=ended.append) as dog:
    for step in range(10_000):
      dog.enter('data', step)
      dog.enter('step', step)
      time.sleep(0.0002)
  assert not ended


def test_it_costs_next_to_nothing(looked):
  seconds = min(timeit.repeat(lambda: looked.dog.enter('step', 1), number=10_000, repeat=5)) / 10_000
  print(f'\nenter: {seconds * 1e9:.0f} ns')
  assert seconds < 2e-6


def test_disabled_it_does_nothing(tmp_path):
  before = threading.active_count()
  with Watchdog(WatchdogConfig(**{**vars(CFG), 'enabled': False}), tmp_path) as dog:
    assert threading.active_count() == before
    dog.enter('step', 1)
