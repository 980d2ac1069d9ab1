"""What the command line makes of the ways in which a verb can end."""

import pytest

from llamax.cli import generate
from llamax.cli.main import VERBS, main
from llamax.core import exits
from llamax.core.errors import UserError


@pytest.mark.parametrize(
  ('end', 'code', 'told'),
  [
    (exits.Stop(exits.FENCED, 'another has it'), 78, 'llamax generate: another has it\n'),
    (exits.Stop(exits.NUMBERS, 'NaN'), 77, 'llamax generate: NaN\n'),
    (UserError('a typo'), 2, 'llamax generate: a typo\n'),
    (KeyboardInterrupt(), 130, 'llamax generate: interrupted\n'),
  ],
)
def test_each_end_has_its_code(monkeypatch, capsys, end, code, told):
  def stop(args):
    raise end

  monkeypatch.setattr(generate, 'main', stop)
  assert main(['generate', '--workdir=x']) == code
  assert capsys.readouterr().err == told


def test_a_bug_keeps_its_traceback(monkeypatch):
  monkeypatch.setattr(generate, 'main', lambda args: 1 // 0)
  with pytest.raises(ZeroDivisionError):
    main(['generate', '--workdir=x'])


def test_words_after_two_dashes_are_only_for_verbs_that_run_them(monkeypatch, capsys):
  assert main(['generate', '--workdir=x', '--', '--seed=1']) == 2
  assert "'--seed=1' after '--'" in capsys.readouterr().err
  from llamax.cli import supervise

  seen = []
  monkeypatch.setattr(supervise, 'main', lambda args: seen.append(args.command) or 0)
  assert main(['supervise', '--', 'a', '--max_failures=2', '--', 'b']) == 0
  assert seen == [['a', '--max_failures=2', '--', 'b']]


@pytest.mark.parametrize('verb', VERBS)
def test_each_verb_has_help(verb, capsys):
  with pytest.raises(SystemExit) as end:
    main([verb, '--help'])
  assert end.value.code == 0 and f'llamax {verb}' in capsys.readouterr().out
