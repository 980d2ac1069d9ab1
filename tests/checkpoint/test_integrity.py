"""Each config field is either free to change on the way or refused by its name."""

import copy
import json
import re
import typing

import pytest

from llamax.checkpoint import integrity
from llamax.core.config import fields_of, flatten, unflatten
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
    'compute_dtype_used': 'float32',
    'dataset_fingerprints': [{'records': 7, 'digest': 'a'}],
  }


def _stored(run):
  return json.loads(json.dumps(run))


@pytest.mark.parametrize('key', list(fields_of()))
def test_each_field_is_allowed_or_refused_by_name(key):
  changed = _run(**{key: _value(fields_of()[key], 1)})
  if key in MAY_CHANGE | MAY_MOVE:
    assert [d.key for d in integrity.require_same(_stored(_run()), changed, 'c')] == [key]
    return
  with pytest.raises(UserError) as caught:
    integrity.require_same(_stored(_run()), changed, 'c')
  listed = [line.strip() for line in str(caught.value).splitlines() if line.startswith('  ')]
  assert len(listed) == 1 and listed[0].startswith(f'{key}: saved ')
  assert f'--allow_change={key}' in str(caught.value)
  (difference,) = integrity.require_same(_stored(_run()), changed, 'c', [key])
  assert integrity.forced([difference], {}) == [
    {'key': key, 'saved': _stored(_flat())[key], 'now': _stored(flatten(changed['config']))[key]}
  ]


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


def test_a_checkpoint_from_before_a_key_was_there_goes_on_where_that_has_its_default():
  key = 'model.mup_base_width'
  saved = _stored(_run())
  del saved['config']['model']['mup_base_width']
  assert integrity.require_same(saved, _run(**{key: None}), 'c') == []
  with pytest.raises(UserError, match=f'{key}: saved null, now 64'):
    integrity.require_same(saved, _run(**{key: 64}), 'c')


def test_the_dtype_that_auto_came_to_counts():
  with pytest.raises(UserError, match='compute_dtype_used: saved "float32", now "bfloat16"'):
    integrity.require_same(_stored(_run()), _run() | {'compute_dtype_used': 'bfloat16'}, 'c')
  older = _stored(_run())
  del older['compute_dtype_used']
  assert integrity.require_same(older, _run(), 'c') == []


FACTS = {
  'tokenizer_fingerprint': 'other',
  'compute_dtype_used': 'bfloat16',
  'dataset_fingerprints[0]': [{'records': 7, 'digest': 'b'}],
}


@pytest.mark.parametrize('key', FACTS)
def test_what_is_no_config_field_can_be_let_in_too(key):
  changed = _run() | {key.removesuffix('[0]'): FACTS[key]}
  with pytest.raises(UserError, match=re.escape(f'--allow_change={key}`')):
    integrity.require_same(_stored(_run()), changed, 'c')
  (difference,) = integrity.require_same(_stored(_run()), changed, 'c', [key])
  assert difference.key == key and not difference.resumable


def test_letting_one_field_in_lets_no_other_in():
  changed = _run(**{'optim.b1': 0.1, 'optim.b2': 0.2})
  with pytest.raises(UserError) as caught:
    integrity.require_same(_stored(_run()), changed, 'c', ['optim.b1'])
  assert '  optim.b2: saved' in str(caught.value) and '  optim.b1: saved' not in str(caught.value)


@pytest.mark.parametrize(
  ('allow', 'says'),
  [
    ('optim.b3', "no such field. Did you mean 'optim.b[12]' or 'optim.b[12]'"),
    ('optim.*', 'no such field'),
    ('b1', 'no such field'),
    ('', 'no such field'),
    ('dataset_fingerprints[1]', r"no such field. Did you mean 'dataset_fingerprints\[0\]'"),
    ('optim.b2', 'that field has not changed'),
    ('tokenizer_fingerprint', 'that field has not changed'),
  ],
)
def test_a_flag_that_lets_nothing_in_is_refused(allow, says):
  with pytest.raises(UserError, match=says):
    integrity.require_same(_stored(_run()), _run(**{'optim.b1': 0.1}), 'c', ['optim.b1', allow])


def test_what_was_let_in_before_is_not_asked_again():
  changed, recorded = _run(**{'optim.b1': 0.1}), {'optim.b1': 0.1}
  for allow in ([], ['optim.b1']):
    differences = integrity.require_same(_stored(_run()), changed, 'c', allow, recorded)
    assert [d.key for d in differences] == ['optim.b1'] and integrity.forced(differences, recorded) == []
    assert integrity.require_same(_stored(changed), changed, 'c', allow, recorded) == [], (
      'the same command again'
    )
  with pytest.raises(UserError, match=r'optim\.b1: saved 0\.5, now 0\.2'):
    integrity.require_same(_stored(_run()), _run(**{'optim.b1': 0.2}), 'c', [], recorded)


def test_what_may_change_anyway_is_not_forced():
  differences = integrity.require_same(_stored(_run()), _run(**{'log.every': 77}), 'c')
  assert integrity.forced(differences, {}) == []
