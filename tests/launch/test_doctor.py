"""The doctor's report on this machine, what it says of several."""

import dataclasses
import json

import pytest

from llamax.cli.main import main
from llamax.core.errors import UserError
from llamax.launch import doctor
from llamax.launch.checkup import devices
from llamax.launch.checkup.finding import FAIL, OK, WARN, Finding
from llamax.launch.checkup.tree import Tree
from llamax.launch.doctor import Questions, Report, compare, summary, uneven


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  """This machine's, once."""
  return doctor.examine(Questions(workdir=str(tmp_path_factory.mktemp('run')), seconds=120))


def test_this_machine(report):
  items = [finding.item for finding in report.findings]
  for item in (
    'python',
    'llamax',
    'packages',
    'fit',
    'hardware',
    'jax',
    'environment',
    'cores',
    'memory',
    'clock',
  ):
    assert items.count(item) == 1
  assert {'workdir', 'room', 'name'} <= set(items)
  text = doctor.show(report)
  assert '8 cpu devices' in text  # those of tests/conftest.py: jax was asked for real
  assert all('to do: ' in text for f in report.findings if f.verdict != OK)


def test_a_report_survives_the_way(report):
  line = report.to_json()
  assert '\n' not in line and json.loads(line)['host'] == report.host
  assert doctor.from_json(line) == dataclasses.replace(report, findings=list(report.findings))
  noise = f'[3] warning: something\n[3] {line}\n[3] bye\n'
  assert doctor.report_in(noise) == doctor.from_json(line)
  assert doctor.report_in('nothing\n{"doctor": 1, "broken') is None


@pytest.mark.parametrize('line', ['', '{}', '[]', '{"doctor": 99}', '{"doctor": 1, "host": "a"}'])
def test_what_is_no_report(line):
  with pytest.raises(ValueError):
    doctor.from_json(line)


def test_a_held_tpu_is_not_asked(tmp_path, monkeypatch):
  for path in ('dev', 'proc/12/fd'):
    (tmp_path / path).mkdir(parents=True)
  (tmp_path / 'dev/accel0').write_text('')
  (tmp_path / 'proc/12/fd/3').symlink_to('/dev/accel0')
  monkeypatch.setattr(devices, 'ask', lambda *_: pytest.fail('it would wait for its holder'))
  found = doctor.examine(Questions(), Tree(tmp_path), {})
  assert found.code == 2
  assert any(f.verdict == FAIL and 'process 12' in f.text for f in found.findings)


def one(host='a', time=1000.0, **values):
  return Report(host, time, [Finding(item, OK, 'x', value=value) for item, value in values.items()])


def test_workers_that_are_alike():
  reports = {name: one(name, packages={'jax': '0.10.2'}, cores=8) for name in 'abc'}
  assert compare(reports) == []
  assert summary(reports) == ('3 workers, all alike; all is well', 0)


def test_a_difference_names_worker_and_item():
  reports = {
    'w-0': one(packages={'jax': '0.10.2', 'flax': '1'}, cores=8),
    'w-1': one(packages={'jax': '0.10.1', 'flax': '1'}, cores=8),
    'w-2': one(packages={'jax': '0.10.2'}, cores=8),
    'w-3': one(time=1100.0, packages={'jax': '0.10.2', 'flax': '1'}, cores=4),
    'w-4': None,
  }
  assert compare(reports) == [
    'w-4: gave no report',
    'w-1: packages jax is 0.10.1, on the others 0.10.2',
    'w-2: packages flax is none, on the others 1',
  ]
  assert uneven(reports) == ['w-3: cores is 4, on the others 8', 'w-3: its clock is 100 s ahead']
  assert summary(reports)[1] == 2


def test_of_two_the_first_is_right():
  assert compare({'a': one(jax='8'), 'b': one(jax='4')}) == ['b: jax is 4, on the others 8']


def test_what_only_slows_a_run_is_a_warning():
  text, code = summary({'a': one(cores=8), 'b': one(cores=4)})
  assert code == 0 and 'warn  b: cores is 4, on the others 8' in text and '2 workers, almost alike' in text


def test_summary_shows_what_is_not_well():
  bad = Report('a', 1.0, [Finding('jax', FAIL, 'fell', 'lift'), Finding('room', WARN, 'low', 'clean')])
  text, code = summary({'w-0': bad, 'w-1': one(time=1.0)})
  assert (
    code == 2 and 'FAIL  w-0  jax: fell' in text and 'to do: lift' in text and 'warn  w-0  room: low' in text
  )


def test_the_verb(capsys, monkeypatch):
  monkeypatch.setattr(doctor, 'examine', lambda questions: one(cores=8))
  assert main(['doctor', '--json']) == 0
  assert doctor.report_in(capsys.readouterr().out).host == 'a'
  bad = Report('a', 1.0, [Finding('jax', FAIL, 'fell', 'lift')])
  monkeypatch.setattr(doctor, 'examine', lambda questions: bad)
  assert main(['doctor']) == 2
  assert 'FAIL  jax  fell' in capsys.readouterr().out


@pytest.mark.parametrize(
  'words', [['--seconds=0'], ['--patience=-1'], ['--peers=2'], ['--listen=here'], ['--peer=x:0']]
)
def test_mistakes(words, capsys, monkeypatch):
  monkeypatch.setattr(devices, 'ask', lambda *_: devices.Answer({'import': 'x'}))
  assert main(['doctor', *words]) == 2
  assert words[0].split('=')[0] in capsys.readouterr().err


def test_an_address_that_is_none_raises():
  with pytest.raises(UserError, match='HOST:PORT'):
    doctor.examine(Questions(listen='x'))
