"""What counts in the folder of a run is its newest checkpoint; a refused run changes nothing there."""

import json
import os
import subprocess
import sys

import pytest

from llamax.checkpoint import claim, digests
from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop
from llamax.observe.ledger import Ledger

CONFIG = {
  'optim': {'b1': 0.9, 'b2': 0.95, 'decay': ('w', 'kernel')},
  'log': {'every': 10},
  'data': {'sources': ('a',)},
}


def config_with(**changes):
  """section__key=value"""
  sections = {name: dict(section) for name, section in CONFIG.items()}
  for key, value in changes.items():
    section, name = key.split('__')
    sections[section][name] = value
  return sections


@pytest.fixture
def run(tmp_path):
  """(step, config, **meta) -> the run's folder, with what a checkpoint of that step says of itself."""

  def add(step, config, **meta):
    folder = tmp_path / 'checkpoints' / str(step) / 'meta'
    folder.mkdir(parents=True)
    about = {'leaves': {}, 'config': config, 'tokenizer_fingerprint': 't', 'dataset_fingerprints': ['d']}
    (folder / 'metadata').write_text(json.dumps(about | meta))
    digests.write(folder.parent)
    return tmp_path

  return add


def files(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_new_folder_gets_a_config_that_reads_back(tmp_path):
  assert claim.claim_workdir(tmp_path / 'a/b', CONFIG) == []
  assert claim.read_config(tmp_path / 'a/b') == json.loads(json.dumps(CONFIG))
  assert [p.name for p in (tmp_path / 'a/b').iterdir()] == ['config.json'], 'nothing else is left there'
  assert claim.claim_workdir(tmp_path / 'a/b', CONFIG) == []


def test_before_the_first_checkpoint_another_config_may_take_over(tmp_path):
  claim.claim_workdir(tmp_path, CONFIG)
  changed = config_with(optim__b1=0.5)
  (tmp_path / 'checkpoints/writer-3/7').mkdir(parents=True)  # Being written: no step yet.
  assert claim.claim_workdir(tmp_path, changed) == []
  assert claim.read_config(tmp_path)['optim']['b1'] == 0.5


@pytest.mark.parametrize('config_json', [None, '', '{"optim": {"b1": 0.5}}', 'same'])
def test_the_checkpoint_is_the_judge_whatever_config_json_says(run, config_json):
  folder = run(3, CONFIG)
  if config_json is not None:
    text = json.dumps(config_with(optim__b1=0.5)) if config_json == 'same' else config_json
    (folder / 'config.json').write_text(text)
  before = files(folder)
  for refuse in (claim.check_workdir, claim.claim_workdir):
    with pytest.raises(UserError, match=r'optim\.b1: saved 0\.9, now 0\.5'):
      refuse(folder, config_with(optim__b1=0.5))
  assert claim.claim_workdir(folder, CONFIG) == []
  assert files(folder) == before, 'the config beside checkpoints is written once they are restored'
  claim.write_config(folder, CONFIG)
  assert claim.read_config(folder) == json.loads(json.dumps(CONFIG))


def test_the_newest_checkpoint_that_can_tell_counts(run):
  run(3, config_with(optim__b1=0.1))
  run(20, config_with(optim__b1=0.2))
  folder = run(100, {})
  for damage in ('', '{', '[]', '{"leaves": {}}', '{"leaves": {}, "config": 3}'):
    (folder / 'checkpoints/100/meta/metadata').write_text(damage)
    assert claim.check_workdir(folder, config_with(optim__b1=0.2)) == []
    with pytest.raises(UserError, match=r'saved 0\.2, now 0\.1'):
      claim.check_workdir(folder, config_with(optim__b1=0.1))
  (folder / 'checkpoints/100/meta/metadata').unlink()
  assert claim.check_workdir(folder, config_with(optim__b1=0.2)) == []


def test_a_flipped_bit_is_no_other_config(run):
  run(20, CONFIG)
  path = run(100, CONFIG) / 'checkpoints/100/meta/metadata'
  path.write_text(path.read_text().replace('0.9', '0.8'))
  assert claim.check_workdir(path.parents[3], CONFIG) == []


def test_config_json_counts_where_no_checkpoint_can_tell(run):
  folder = run(3, CONFIG)
  claim.write_config(folder, config_with(optim__b1=0.3))
  (folder / 'checkpoints/3/meta/metadata').write_text('torn')
  with pytest.raises(UserError, match=r'optim\.b1: saved 0\.3, now 0\.9'):
    claim.check_workdir(folder, CONFIG)
  (folder / 'config.json').unlink()
  assert claim.check_workdir(folder, CONFIG) == []


def test_what_may_change_is_told(run):
  changed = config_with(log__every=7, data__sources=('b',))
  assert {d.key: (d.saved, d.current) for d in claim.check_workdir(run(3, CONFIG), changed)} == {
    'log.every': (10, 7),
    'data.sources': (['a'], ['b']),
  }


def test_allowed_changes(run):
  folder, changed = run(3, CONFIG), config_with(optim__b1=0.5, optim__b2=0.6)
  with pytest.raises(UserError, match=r'optim\.b2: saved'):
    claim.check_workdir(folder, changed, ['optim.b1'])
  assert len(claim.check_workdir(folder, changed, ['optim.b1', 'optim.b2'])) == 2
  with pytest.raises(UserError, match='has not changed'):
    claim.check_workdir(folder, changed, ['optim.b1', 'optim.b2', 'optim.decay'])
  # The data is not open yet: that flag is judged later.
  assert claim.check_workdir(folder, CONFIG, ['dataset_fingerprints[4]', 'tokenizer_fingerprint']) == []
  with pytest.raises(UserError, match='no such field'):
    claim.check_workdir(folder, CONFIG, ['dataset_fingerprints'])


def test_an_allowed_change_is_remembered_by_ledger_and_checkpoints(run):
  folder, changed = run(3, CONFIG), config_with(optim__b1=0.5)
  ledger = Ledger(folder)
  ledger.record(claim.CHANGED, key='optim.b1', saved=0.9, now=0.7, step=3)
  ledger.record(claim.CHANGED, key='optim.b1', saved=0.7, now=0.5, step=3)
  ledger.record('start', step=3)
  assert claim.recorded_changes(folder) == {'optim.b1': 0.5}
  assert len(claim.check_workdir(folder, changed)) == 1
  (folder / 'ledger.jsonl').unlink()
  with pytest.raises(UserError, match=r'saved 0\.9, now 0\.5'):
    claim.check_workdir(folder, changed)
  run(6, changed, changed={'optim.b1': 0.5})
  assert claim.recorded_changes(folder) == {'optim.b1': 0.5}
  assert claim.check_workdir(folder, changed, ['optim.b1']) == [], 'the command that let it in, started again'
  with pytest.raises(UserError, match=r'saved 0\.5, now 0\.9'):
    claim.check_workdir(folder, CONFIG)


def test_nothing_is_let_in_where_there_is_no_run(tmp_path):
  with pytest.raises(UserError, match=r'--allow_change=optim\.b1: .* has no checkpoint'):
    claim.check_workdir(tmp_path, CONFIG, ['optim.b1'])


def test_unwritable_workdir(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for workdir in (tmp_path / 'file', tmp_path / 'file/below', '/proc/llamax'):
    with pytest.raises(UserError, match=r'cannot be (read|written)'):
      claim.claim_workdir(workdir, CONFIG)
  assert (tmp_path / 'file').read_text() == 'mine'


def test_a_full_disk_ends_the_run_with_a_code_to_try_again(run, monkeypatch):
  folder = run(3, CONFIG)
  claim.write_config(folder, CONFIG)

  def fail(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  claim.write_config(folder, CONFIG)  # There is nothing to write.
  with pytest.raises(Stop, match='No space left') as caught:
    claim.write_config(folder, config_with(log__every=3))
  assert caught.value.code == STORAGE


def test_an_address_is_no_workdir():
  with pytest.raises(UserError, match='mount the bucket'):
    claim.claim_workdir('gs://bucket/run', CONFIG)


@pytest.mark.parametrize(
  'text', ['', '{"a": ', '[]', '{"architectures": ["LlamaForCausalLM"], "vocab_size": 7}']
)
def test_a_config_that_is_not_ours_is_left_unharmed(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=r'config\.json'):
    claim.claim_workdir(tmp_path, CONFIG)
  assert (tmp_path / 'config.json').read_text() == text


def test_no_config_is_no_run(tmp_path):
  with pytest.raises(UserError, match='not the folder of a run'):
    claim.read_config(tmp_path)


def test_the_answer_comes_without_jax():
  code = (
    'import sys, llamax.checkpoint.claim; sys.exit(bool({"jax", "orbax", "tensorstore"} & set(sys.modules)))'
  )
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


def test_a_folder_in_the_place_of_config_json_is_a_mistake(run):
  folder = run(3, CONFIG)
  (folder / 'config.json').mkdir()
  with pytest.raises(UserError, match=r'config\.json cannot be written .*in the way'):
    claim.write_config(folder, CONFIG)


def test_a_recorded_change_without_its_fields_is_named(run):
  folder = run(3, CONFIG)
  for line in ('{"event": "changed"}', '{"event": "changed", "key": ["a"], "now": 1}'):
    (folder / 'ledger.jsonl').write_text('{"event": "start"}\n\n' + line + '\n')
    with pytest.raises(UserError, match=r'ledger\.jsonl, line 3: .*key'):
      claim.recorded_changes(folder)
