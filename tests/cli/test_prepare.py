"""`llamax prepare`: flags to settings, mistakes to exit code 2."""

import dataclasses

import pytest

from llamax.cli.main import main
from llamax.data import prepare as room
from llamax.data.prepare import Settings


@pytest.fixture
def told(monkeypatch):
  """The settings that the verb was called with."""
  found = []
  monkeypatch.setattr(room, 'prepare', lambda settings: found.append(settings) or 'the report')
  return found


def test_defaults_are_those_of_the_room(told, capsys):
  assert main(['prepare', '--out=x']) == 0
  assert told == [Settings(out='x')] and told[0].inputs == ('stdlib',)
  assert capsys.readouterr().out == 'the report\n'


def test_every_setting_has_its_flag(told):
  wanted = Settings(
    out='x',
    inputs=('a', 'b.jsonl'),
    vocab_size=5,
    tokenizer='t.model',
    validation_fraction=0.5,
    shards=6,
    text_key='k',
    tfds_data_dir='d',
    max_documents=7,
    workers=8,
    overwrite=True,
  )
  default = Settings(out='y', inputs=('z',))
  words = [f'--{k}={v}' for k, v in vars(wanted).items() if k not in ('inputs', 'overwrite')]
  assert main(['prepare', *wanted.inputs, *words, '--overwrite']) == 0
  assert told == [wanted]
  assert all(getattr(wanted, f.name) != getattr(default, f.name) for f in dataclasses.fields(Settings))


def test_a_mistake_is_exit_code_2(tmp_path, capsys):
  assert main(['prepare', str(tmp_path / 'none'), f'--out={tmp_path}/out']) == 2
  assert 'does not exist' in capsys.readouterr().err


def test_end_to_end(tmp_path, capsys):
  (tmp_path / 'in').mkdir()
  for i in range(12):
    (tmp_path / 'in' / f'{i}.txt').write_text(f'line {i} of several\n' * (i + 3))
  words = ['prepare', str(tmp_path / 'in'), f'--out={tmp_path}/out', '--vocab_size=300', '--workers=1']
  assert main(words) == 0
  first = capsys.readouterr().out
  assert 'bytes/token' in first and 'is ready' in first
  assert main(words) == 0
  assert 'is complete: nothing to do' in capsys.readouterr().out
