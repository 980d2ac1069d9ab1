"""Each `llamax sweep` in docs/sweep.md works as it stands there, in a dry run; each piece of a config too."""

import re
import shlex

import pytest

from llamax.cli.main import VERBS, main
from llamax.sweep import count
from llamax.sweep import space as s
from tests.launch.documents import ROOT, commands

PAGE = ROOT / 'docs/sweep.md'
FOUND = commands(PAGE)
SWEEPS = [(number, command) for number, command in FOUND if command.startswith('llamax sweep ')]


@pytest.mark.parametrize(('number', 'command'), SWEEPS)
def test_a_sweep_in_a_dry_run(number, command, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(count, 'count_parameters', lambda configs: [10**6] * len(configs))
  monkeypatch.setenv('PATH', '/nowhere')  # No tool is needed.
  monkeypatch.chdir(tmp_path)
  words = shlex.split(command)[1:]
  assert main([*words, *['--dry_run'] * ('--dry_run' not in words)]) == 0, capsys.readouterr().err
  said = capsys.readouterr().out
  assert said.count('--config.optim.learning_rate=') == 4 or '4 runs, 4 to do' in said
  assert not list(tmp_path.iterdir())
  # What a launcher would be told is what it takes.
  for line in said.splitlines():
    if line.startswith('llamax launch '):
      its = shlex.split(line)[1:]
      assert main([*its[: its.index('--')], '--dry_run', *its[its.index('--') :]]) == 0, capsys.readouterr().err


def test_other_commands_are_known():
  assert len(SWEEPS) >= 6
  for _, command in FOUND:
    word, verb, *_ = shlex.split(command)
    assert word == 'llamax' and verb in VERBS


def test_the_pieces_of_configs():
  pieces = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
  made = []
  for piece in pieces:
    scope = {}
    exec(piece, scope)
    made.append(scope['get_sweep'](s))
  one, six, study = made
  assert len(one) == 4 and len(six) == 6 and study.trials == 40
  from llamax.sweep.run_names import run_name

  assert [run_name(p) for p in six][:2] == ['small,schedule=cosine', 'small,schedule=wsd,decay_steps=100']


def test_every_word_of_get_sweep_is_in_the_page():
  own = {name: value for name, value in vars(s).items() if getattr(value, '__module__', None) == s.__name__}
  words = [name for name in own if name.islower() and name[0] != '_']
  assert 'log_uniform' in words
  page = PAGE.read_text()
  for word in words:
    assert f's.{word}(' in page, word
