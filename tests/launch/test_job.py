"""Names, variables, secrets of a job."""

import subprocess

import pytest

from llamax.core.errors import UserError
from llamax.launch.action import Run, show
from llamax.launch.execute import attempt
from llamax.launch.job import Job, name_from

VALUES = ["it's", '$(touch INTRUDER)', 'a\nb\n', '', '`x`', '"', '\\', ' ', "'\\''", '-e', 'ü']


@pytest.mark.parametrize('name', ['a', 'run-1', 'a' * 40, 'x0'])
def test_good_names(name):
  assert Job(name).name == name


@pytest.mark.parametrize(
  'name',
  [
    '',
    '1a',
    '-a',
    'a-',
    'A',
    'a_b',
    'a b',
    "a'b",
    'a$(x)',
    'a\nb',
    'a\n',
    'a;b',
    '../a',
    'a/b',
    'a' * 41,
    'ä',
    'a.b',
  ],
)
def test_a_name_that_a_shell_or_a_cloud_would_not_take_is_refused(name):
  with pytest.raises(UserError, match='cannot name a job'):
    Job(name)


@pytest.mark.parametrize(
  ('workdir', 'name'),
  [
    ('runs/My run_2', 'my-run-2'),
    ('/mnt/x/a/', 'a'),
    ('runs/1b', 'run-1b'),
    ("$(touch x)'s", 'touch-x-s'),
    ('a' * 39 + '-bc', 'a' * 39),
  ],
)
def test_a_name_is_made_of_the_workdir(workdir, name):
  assert name_from(workdir) == name


def test_a_workdir_without_a_letter_needs_a_name():
  with pytest.raises(UserError, match='--name'):
    name_from('runs/模型/')


@pytest.mark.parametrize('variable', ['', '1A', 'A B', 'A=B', 'A$(x)', 'A\n', 'Ä', 'A-B'])
def test_a_variable_is_checked(variable):
  with pytest.raises(UserError, match='no name of a variable'):
    Job('a', env={variable: 'x'})
  with pytest.raises(UserError, match='no name of a variable'):
    Job('a', secrets=(variable,))


def test_one_variable_both_ways_is_refused():
  with pytest.raises(UserError, match='--env and with --secret'):
    Job('a', env={'A': 'x'}, secrets=('A',))


@pytest.mark.parametrize('shell', ['sh', 'bash'])
def test_values_reach_a_real_shell_as_they_are(shell, tmp_path, monkeypatch):
  env = {f'V{index}': text for index, text in enumerate(VALUES)}
  secret = ''.join(VALUES).replace('\n', ' ')
  monkeypatch.setenv('TOKEN', secret)
  monkeypatch.chdir(tmp_path)
  job = Job('a', env=env, secrets=('TOKEN',))
  run = Run((shell, '-s'), 'x', stdin=(*job.exports(), 'env -0\n'))
  done = attempt((run,), show=False)[0].check()
  # What the command says of a secret is masked.
  assert all(f'{name}={text}\0' in done.out for name, text in env.items())
  assert 'TOKEN=****\0' in done.out
  pasted = subprocess.run(['bash'], input=show([run]), capture_output=True, text=True, check=True).stdout
  assert all(f'{name}={text}\0' in pasted for name, text in {**env, 'TOKEN': secret}.items())
  assert not list(tmp_path.iterdir())
