"""Where a run begins after a roll-back that was cut short at any point."""

import json

import jax
import jax.numpy as jnp
import pytest

from llamax.checkpoint import digests
from llamax.checkpoint import steps as folder_of_steps
from llamax.core.config import GuardConfig
from llamax.core.errors import UserError
from llamax.core.exits import NUMBERS, STORAGE, Stop
from llamax.observe.ledger import Ledger
from llamax.train import resume
from llamax.train.guard import Guard, Rollback, Spike

CFG = GuardConfig(
  max_bad_steps=3, spike_threshold=5.0, spike_window=5, spike_rewind=10, spike_skip=30, spike_max_rollbacks=1
)


class Folder:
  """The steps of a run: {step: how many roll-backs it knew}, None: its meta data are unreadable."""

  def __init__(self, directory, known):
    self.directory = directory
    for step, rollbacks in known.items():
      (directory / str(step) / 'meta').mkdir(parents=True)
      text = '{' if rollbacks is None else json.dumps({'leaves': {}, 'guard': {'rollbacks': [{}] * rollbacks}})
      (directory / str(step) / 'meta/metadata').write_text(text)
      digests.write(directory / str(step))

  def steps(self):
    return folder_of_steps.steps(self.directory)

  def drop(self, steps):
    dropped = [step for step in self.steps() if step in steps]
    for step in dropped:
      (self.directory / str(step)).rename(self.directory / f'dropped-{step}')
    return dropped


def test_a_roll_back_counts_once_it_is_in_the_ledger(tmp_path):
  checkpoints = Folder(tmp_path / 'checkpoints', {100: 0, 120: 0, 140: 0})
  assert resume.recorded(tmp_path) == []
  ledger = Ledger(tmp_path)
  found = resume.record_rollback(Guard(CFG, {}, ()), Spike(145, 9.5), checkpoints, ledger)
  assert found == Rollback(spike=145, loss=9.5, to=120, at=134, skip=30)
  assert [Rollback(*values) for values in resume.recorded(tmp_path)] == [found]
  with pytest.raises(Stop) as stop:
    resume.record_rollback(Guard(CFG, {}, [found]), Spike(150, 9.5), checkpoints, ledger)
  assert stop.value.code == NUMBERS
  assert len(resume.recorded(tmp_path)) == 1
  ledger.close()


def test_a_roll_back_that_cannot_be_recorded_ends_the_run(tmp_path, monkeypatch):
  checkpoints = Folder(tmp_path / 'checkpoints', {100: 0})
  monkeypatch.setattr(Ledger, 'record', lambda self, event, **facts: False)
  with pytest.raises(Stop, match=r'ledger.jsonl. Make room') as stop:
    resume.record_rollback(Guard(CFG, {}, ()), Spike(145, 9.5), checkpoints, Ledger(tmp_path))
  assert stop.value.code == STORAGE


@pytest.mark.parametrize(
  ('known', 'left'),
  [
    ({100: 0, 120: 0, 140: 0, 144: 0}, [100, 120]),  # killed before anything was dropped
    ({100: 0, 120: 0, 144: 0}, [100, 120]),  # ... in the middle
    ({100: 0, 120: 0}, [100, 120]),
    ({100: 0, 120: 0, 140: 1, 160: 1}, [100, 120, 140, 160]),  # of the new way
    ({100: 0, 120: 0, 140: None}, [100, 120, 140]),  # damaged: whoever restores puts it aside
    ({}, []),
  ],
)
def test_what_is_left_of_the_way_not_taken_goes(tmp_path, known, left):
  checkpoints = Folder(tmp_path, known)
  resume.drop_stale(checkpoints, [Rollback(spike=145, loss=9.5, to=120, at=134, skip=30)])
  assert checkpoints.steps() == left
  assert resume.drop_stale(checkpoints, []) == []


def test_meta_data_with_a_flipped_bit_drop_nothing(tmp_path):
  checkpoints = Folder(tmp_path, {120: 0, 140: 1, 160: 1})
  meta = tmp_path / '140/meta/metadata'
  meta.write_text(meta.read_text().replace('rollbacks', 'sollbacks'))  # One bit: it knew of none.
  assert resume.drop_stale(checkpoints, [Rollback(spike=145, loss=9.5, to=120, at=134, skip=30)]) == []
  assert checkpoints.steps() == [120, 140, 160]


def test_weights_that_are_not_finite_end_the_run_by_name(tmp_path):
  mesh = jax.make_mesh((8,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  arrays = {'good': jnp.ones(3), 'bad': jnp.array([1.0, jnp.inf]), 'count': jnp.ones((), jnp.int32)}
  checkpoints = Folder(tmp_path, {100: 0, 120: 0})
  with pytest.raises(Stop, match=r'step 7: NaN or Inf in 1 array\(s\): bad; .* steps 100, 120 stand') as stop:
    resume.require_finite(jax.device_put(arrays, everywhere), 'step 7', checkpoints)
  assert stop.value.code == NUMBERS
  resume.require_finite(jax.device_put({'good': arrays['good']}, everywhere), 'step 7', checkpoints)


def test_a_roll_back_in_the_ledger_without_its_fields_is_named(tmp_path):
  good = {'event': 'rollback', 'spike': 145, 'loss': 9.5, 'to': 120, 'at': 134, 'skip': 30}
  for change in ({'to': None}, {'skip': '30'}):
    lines = [json.dumps(good), json.dumps(good | change)]
    (tmp_path / 'ledger.jsonl').write_text('\n'.join(lines) + '\n')
    with pytest.raises(UserError, match=r'ledger\.jsonl, line 2: '):
      resume.recorded(tmp_path)
  (tmp_path / 'ledger.jsonl').write_text(json.dumps(good) + '\n{"event": "rollback"}\n')
  with pytest.raises(UserError, match="line 2: an event 'rollback' with no 'spike'"):
    resume.recorded(tmp_path)
