"""What the command line makes of the ways in which a verb can end."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from llamax.cli import generate, supervise
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
  seen = []
  monkeypatch.setattr(supervise, 'main', lambda args: seen.append(args.command) or 0)
  assert main(['supervise', '--', 'a', '--max_failures=2', '--', 'b']) == 0
  assert seen == [['a', '--max_failures=2', '--', 'b']]


@pytest.mark.parametrize('verb', VERBS)
def test_each_verb_has_help(verb, capsys):
  with pytest.raises(SystemExit) as end:
    main([verb, '--help'])
  assert end.value.code == 0 and f'llamax {verb}' in capsys.readouterr().out


@pytest.fixture
def failing(monkeypatch):
  """(number) -> standard output that cannot be written with this errno."""

  def fail(number):
    def write(text=''):
      raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, 'stdout', SimpleNamespace(write=write, flush=write))

  return fail


@pytest.mark.parametrize(
  ('number', 'code'), [(errno.ENOSPC, exits.STORAGE), (errno.EIO, 74), (errno.EPIPE, 141)]
)
def test_an_output_that_cannot_be_written_is_the_end_of_a_verb_that_shows(
  monkeypatch, capsys, failing, number, code
):
  monkeypatch.setattr(generate, 'main', lambda args: print('x') or 0)
  failing(number)
  assert main(['generate', '--workdir=x']) == code
  err = capsys.readouterr().err
  assert ('the output cannot be written' in err) == (code == exits.STORAGE) and err.count('\n') <= 1


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO, errno.EPIPE])
def test_a_screen_is_no_reason_to_end_a_run(monkeypatch, failing, number):
  monkeypatch.setattr(supervise, 'main', lambda args: print('x', flush=True) or 75)
  failing(number)
  assert main(['supervise', '--', 'x']) == 75


def test_another_broken_pipe_is_a_bug(monkeypatch):
  def fail(args):
    raise BrokenPipeError

  monkeypatch.setattr(supervise, 'main', fail)
  with pytest.raises(BrokenPipeError):
    main(['supervise', '--', 'x'])


@pytest.mark.parametrize(
  ('verb', 'where', 'code'),
  [
    ('checkpoint ls', '>/dev/full', 74),
    ('checkpoint ls', '| true', 141),
    ('checkpoint ls', '2>/dev/full', 0),
    ('supervise -- false', '>/dev/full 2>&1', 1),
    ('supervise -- sh -c "exit 2"', '2>&1 | true', 2),
  ],
)
def test_the_exit_code_of_the_process(tmp_path, verb, where, code):
  (tmp_path / 'run/checkpoints').mkdir(parents=True)
  verb += f' {tmp_path}/run' if 'checkpoint' in verb else ''
  verb = verb.replace('supervise', 'supervise --max_failures=1')
  script = f'{{ {sys.executable} -m llamax.cli.main {verb}; echo $? > "$0"; }} {where}'
  done = subprocess.run(
    ['sh', '-c', script, str(tmp_path / 'code')],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'PYTHONUNBUFFERED': ''},
    check=False,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert (tmp_path / 'code').read_text() == f'{code}\n'
  assert 'Traceback' not in done.stderr and 'Exception ignored' not in done.stderr
  assert done.stderr.count('\n') == (code == exits.STORAGE)
