"""What is said of a save that failed."""

import contextlib
from types import SimpleNamespace

import pytest

from llamax.checkpoint.manager import SaveError
from llamax.core.exits import STORAGE, Stop
from llamax.train.between import failed_saves


@pytest.mark.parametrize(
  ('newest', 'told'), [(None, 'starts again'), (7, 'goes on from the newest checkpoint')]
)
def test_what_the_same_command_does_after_the_save_that_counts_failed(newest, told):
  watchdog = SimpleNamespace(phase=lambda name: contextlib.nullcontext())
  run = SimpleNamespace(watchdog=watchdog, checkpoints=SimpleNamespace(latest=lambda: newest))
  with pytest.raises(Stop, match=f'no room. The same command {told}') as stop, failed_saves(run, last=True):
    raise SaveError('no room.')
  assert stop.value.code == STORAGE
