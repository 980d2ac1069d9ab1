"""Each config field is either free to change on the way or refused by its name."""

import copy
import json
import os
import typing

import pytest

from llamax.checkpoint import integrity
from llamax.core.config import fields_of, unflatten
from llamax.core.errors import UserError

# Written out by hand, key by key: a pattern that lets more through than it should is seen here.
_MAY_CHANGE = """
  train.num_steps train.grad_accum
  eval.every eval.splits eval.batch_size eval.num_batches
  sample.every sample.prompts sample.max_new_tokens sample.temperature sample.top_k sample.top_p
  sample.min_p sample.seed
  checkpoint.every checkpoint.every_minutes checkpoint.keep_last checkpoint.keep_every checkpoint.asynchronous
  checkpoint.keep_best checkpoint.keep_before_trouble checkpoint.digests checkpoint.on_failed_save
  checkpoint.grace_seconds checkpoint.lease_seconds
  guard.max_bad_steps guard.spike_threshold guard.spike_window guard.spike_rewind guard.spike_skip
  guard.spike_max_rollbacks
  watchdog.enabled watchdog.heartbeat_seconds watchdog.compile_seconds watchdog.first_step_seconds
  watchdog.step_seconds watchdog.step_factor watchdog.save_seconds watchdog.eval_seconds
  log.every log.tensorboard log.wandb log.wandb_project log.batches
  mesh.data mesh.fsdp mesh.tensor
  compute.attention compute.splash_block compute.remat compute.scan_layers compute.loss_chunks
  compute.compilation_cache
  data.read_threads data.prefetch_rows data.verify_digests data.cache_dir data.tfds_data_dir
"""
MAY_CHANGE = set(_MAY_CHANGE.split())
MAY_MOVE = {'data.sources', 'data.tokenizer'}  # the same data at another path


def _value(kind, turn):
  """A value of a config field's type; turn 0 and 1 differ."""
  bare = next((a for a in typing.get_args(kind) if a is not type(None)), kind)
  if typing.get_origin(kind) is tuple:
    return (_value(bare, 0),) * (turn + 1)
  return {int: turn + 2, float: turn + 0.5, bool: bool(turn), str: f'text{turn}'}[bare]


def _flat():
  return {key: _value(kind, 0) for key, kind in fields_of().items()}


def _run(**changes):
  """What a run stores beside its arrays, with dotted config keys changed."""
  flat = _flat()
  assert set(changes) <= set(flat)
  return {
    'config': unflatten(flat | changes),
    'tokenizer_fingerprint': 'tok',
    'dataset_fingerprints': [{'records': 7, 'digest': 'a'}],
  }


def _stored(run):
  return json.loads(json.dumps(run))


@pytest.mark.parametrize('key', list(fields_of()))
def test_each_field_is_allowed_or_refused_by_name(key, tmp_path):
  changed = _run(**{key: _value(fields_of()[key], 1)})
  integrity.claim_workdir(tmp_path, _run()['config'])
  before = (tmp_path / 'config.json').read_text()
  if key in MAY_CHANGE | MAY_MOVE:
    assert [d.key for d in integrity.require_same(_stored(_run()), changed, 'c')] == [key]
    assert [d.key for d in integrity.claim_workdir(tmp_path, changed['config'])] == [key]
    assert (tmp_path / 'config.json').read_text() != before, 'config.json tells how the run is now'
  else:
    shown = f'{key}: saved '
    for refuse in (
      lambda: integrity.require_same(_stored(_run()), changed, 'c'),
      lambda: integrity.claim_workdir(tmp_path, changed['config']),
    ):
      with pytest.raises(UserError) as caught:
        refuse()
      listed = [line.strip() for line in str(caught.value).splitlines() if line.startswith('  ')]
      assert len(listed) == 1 and listed[0].startswith(shown)
    assert (tmp_path / 'config.json').read_text() == before, 'a refused run changes nothing'


def test_every_pattern_is_used():
  keys = list(fields_of())
  for pattern in integrity.RESUMABLE + integrity.BY_FINGERPRINT:
    assert any(integrity.fnmatch.fnmatchcase(key, pattern) for key in keys), pattern


def test_the_same_run_differs_in_nothing():
  assert integrity.require_same(_stored(_run()), _run(), 'c') == []


def test_message_has_both_values_with_what_to_do():
  changed = _run(**{'optim.learning_rate': 1e-3, 'data.seed': 5, 'log.every': 77})
  with pytest.raises(UserError) as caught:
    integrity.require_same(_stored(_run()), changed, '/w/checkpoints/30')
  text = str(caught.value)
  assert '/w/checkpoints/30' in text and 'another workdir' in text
  assert '  optim.learning_rate: saved 0.5, now 0.001\n' in text and '  data.seed: saved 2, now 5\n' in text
  assert 'log.every: saved' not in text, 'what is allowed is not in the way'


def test_moved_data_goes_on_changed_data_does_not():
  moved = _run(**{'data.sources': ('elsewhere',)})
  assert [d.key for d in integrity.require_same(_stored(_run()), moved, 'c')] == ['data.sources']
  moved['dataset_fingerprints'] = [{'records': 7, 'digest': 'b'}]
  with pytest.raises(UserError, match=r'dataset_fingerprints\[0\] of elsewhere: saved .*"a".* now .*"b"'):
    integrity.require_same(_stored(_run()), moved, 'c')


def test_order_and_number_of_datasets_count():
  one, two = {'digest': 'a'}, {'digest': 'b'}
  for saved, current in (([one, two], [two, one]), ([one], [one, two]), ([one, two], [one])):
    with pytest.raises(UserError, match='dataset_fingerprints'):
      integrity.require_same(
        _run() | {'dataset_fingerprints': saved}, _run() | {'dataset_fingerprints': current}, 'c'
      )


def test_another_tokenizer_is_refused():
  with pytest.raises(UserError, match='tokenizer_fingerprint: saved "tok", now "other"'):
    integrity.require_same(_stored(_run()), _run() | {'tokenizer_fingerprint': 'other'}, 'c')


def test_a_key_that_only_one_side_knows_is_a_difference():
  saved = copy.deepcopy(_run())
  del saved['config']['model']['rope_theta']
  saved['config']['model']['old_key'] = 1
  with pytest.raises(UserError) as caught:
    integrity.require_same(saved, _run(), 'c')
  assert 'model.rope_theta: saved (not recorded), now 0.5' in str(caught.value)
  assert 'model.old_key: saved 1, now (not recorded)' in str(caught.value)


def test_claim_writes_a_config_that_reads_back(tmp_path):
  config = _run()['config']
  assert integrity.claim_workdir(tmp_path / 'a/b', config) == []
  assert integrity.read_config(tmp_path / 'a/b') == _stored(config)
  assert [p.name for p in (tmp_path / 'a/b').iterdir()] == ['config.json'], 'nothing else is left there'
  assert integrity.claim_workdir(tmp_path / 'a/b', config) == []


def test_before_the_first_checkpoint_another_config_may_take_over(tmp_path):
  integrity.claim_workdir(tmp_path, {'train': {'num_steps': 1}}, started=False)
  assert integrity.claim_workdir(tmp_path, {'optim': {'b1': 2}}, started=False) == []
  assert integrity.read_config(tmp_path) == {'optim': {'b1': 2}}


def test_unwritable_workdir(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for workdir in (tmp_path / 'file', tmp_path / 'file/below', '/proc/llamax'):
    with pytest.raises(UserError, match='cannot be written'):
      integrity.claim_workdir(workdir, _run()['config'])
  assert (tmp_path / 'file').read_text() == 'mine'


def test_an_address_is_no_workdir():
  with pytest.raises(UserError, match='mount the bucket'):
    integrity.claim_workdir('gs://bucket/run', _run()['config'])


@pytest.mark.parametrize('text', ['', '{"a": ', '[]'])
def test_a_broken_config_is_refused_unharmed(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=r'config\.json'):
    integrity.claim_workdir(tmp_path, _run()['config'])
  assert (tmp_path / 'config.json').read_text() == text


def test_no_config_is_no_run(tmp_path):
  with pytest.raises(UserError, match='not the folder of a run'):
    integrity.read_config(tmp_path)
