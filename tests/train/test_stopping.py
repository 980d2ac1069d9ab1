"""When a run stops, whether it still saves."""

import os
import signal
from types import SimpleNamespace

import jax
import pytest

from llamax.core.config import MeshConfig
from llamax.parallel.mesh import make_mesh
from llamax.train.stopping import Stopping, signals


@pytest.fixture
def stopping():
  """A Stopping with its `clock` (list of one), `saves` (what it knows of the checkpoints)."""
  clock, saves = [100.0], SimpleNamespace(last_seconds=None, finished=lambda: True)
  made = Stopping(make_mesh(MeshConfig(2, 2, 2), jax.devices()), saves, 25.0, lambda: clock[0])
  return SimpleNamespace(wishes=made.wishes, asked=made.asked, note=made.note, clock=clock, saves=saves)


def test_nothing_is_wished_for_at_first(stopping):
  stopping.clock[0] += 7.25
  wishes = stopping.wishes()
  assert (wishes.signal, wishes.saving, wishes.time_to_save) == (0, False, True)
  assert wishes.now == pytest.approx(7.25, abs=0.1)


def test_a_save_under_way_is_seen(stopping):
  stopping.saves.finished = lambda: False
  assert stopping.wishes().saving


@pytest.mark.parametrize(
  ('number', 'last_save', 'waited', 'time_to_save'),
  [
    (signal.SIGTERM, None, 20, True),  # the first save is tried
    (signal.SIGTERM, 10, 5, True),
    (signal.SIGTERM, 10, 12, False),
    (signal.SIGTERM, 30, 0, False),
    (signal.SIGINT, 30, 100, True),
  ],
)
def test_a_save_has_to_fit_into_what_is_left_of_the_grace(stopping, number, last_save, waited, time_to_save):
  stopping.saves.last_seconds = last_save
  stopping.note(number)
  stopping.clock[0] += waited
  wishes = stopping.wishes()
  assert (wishes.signal, wishes.time_to_save) == (number, time_to_save)


def test_the_grace_counts_from_the_first_signal(stopping):
  stopping.saves.last_seconds = 10
  stopping.note(signal.SIGTERM)
  stopping.clock[0] += 12
  stopping.note(signal.SIGTERM)
  assert not stopping.wishes().time_to_save


def test_signals_are_noted_the_second_ctrl_c_ends():
  noted, said = [], []
  with signals(noted.append, said.append):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert noted == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_work_between_two_steps_hears_of_a_signal_at_once(stopping):
  assert not stopping.asked(None)
  stopping.note(signal.SIGTERM)
  assert stopping.asked(None) and stopping.wishes().signal == signal.SIGTERM
