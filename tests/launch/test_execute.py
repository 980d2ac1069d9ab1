"""Commands that are run: their output, their failures, their secrets."""

import os
import sys
import time

import pytest

from llamax.core.errors import UserError
from llamax.launch.action import Run, Secret, Together
from llamax.launch.execute import answer, attempt, execute
from tests.launch.processes import ROOT


def shell(script, **options):
  return Run(('sh', '-c', script), 'a try', **options)


def test_output_comes_with_its_label(capfd):
  execute([Together((shell('echo one; echo oops >&2', label='a'), shell('echo two', label='b')), 'both')])
  out, errors = capfd.readouterr()
  assert sorted(out.splitlines()) == ['[a] one', '[b] two']
  assert errors.splitlines() == ['launch: both', '[a] oops']


def test_a_failure_names_the_command_its_code_its_last_words():
  with pytest.raises(UserError, match=r'(?s)^a try: sh ended with exit code 3: 81\n.*99\nlast words$'):
    execute([shell('seq 1 99 >&2; echo last words >&2; exit 3')])
  with pytest.raises(UserError, match='signal 9'):
    execute([shell('kill -9 $$')])
  with pytest.raises(UserError, match="this machine has no program 'no-such-program'"):
    execute([Run(('no-such-program',), 'a try')])


def test_only_the_failure_that_is_forgiven_is_none(tmp_path):
  gone = {'forgiven': r'(?i)\bnot found\b'}
  execute([shell('echo ERROR: code=404, Not found: it >&2; echo more >&2; exit 1', **gone)])
  for other in ('echo code=403 permission denied >&2; exit 1', 'echo not found; exit 1', 'exit 1'):
    with pytest.raises(UserError, match='ended with exit code 1'):
      execute([shell(other, **gone)])
  with pytest.raises(UserError, match='signal 9'):
    execute([shell('echo not found >&2; kill -9 $$', **gone)])


def test_nothing_is_done_after_a_failure(tmp_path):
  with pytest.raises(UserError):
    execute([shell('exit 1'), shell(f'touch {tmp_path}/x')])
  assert not os.listdir(tmp_path)


def test_of_several_each_ends_before_one_is_told_to_have_failed(tmp_path):
  with pytest.raises(UserError):
    execute([Together((shell('exit 1'), shell(f'sleep 0.3; touch {tmp_path}/x')), 'both')])
  assert os.listdir(tmp_path) == ['x']


def test_they_run_at_the_same_time():
  begun = time.monotonic()
  execute([Together(tuple(shell('sleep 0.5') for _ in range(6)), 'six')])
  assert time.monotonic() - begun < 2


def test_an_answer_is_not_shown(capfd):
  assert answer(shell('echo 42')) == '42\n'
  assert capfd.readouterr().out == ''


def test_a_secret_is_in_no_argument_and_not_on_the_screen(capfd, monkeypatch):
  monkeypatch.setenv('TOKEN', 'geheim-1234')
  look = (
    f'import sys; sys.path.insert(0, {str(ROOT)!r})\n'
    'from tests.launch.processes import command_lines\n'
    'secret = sys.stdin.read()\n'
    'seen = [line for line in command_lines() if secret.encode() in line]\n'
    'print(len(secret), seen, "I say", secret)\n'
    'print(secret, file=sys.stderr)\n'
  )
  ended = attempt((Run((sys.executable, '-c', look), 'a try', stdin=(Secret('TOKEN'),)),))
  out, errors = capfd.readouterr()
  assert out == '11 [] I say ****\n' and errors == '****\n'
  assert 'geheim' not in repr(ended)


def test_a_secret_that_is_not_set_is_a_mistake(monkeypatch):
  monkeypatch.delenv('TOKEN', raising=False)
  with pytest.raises(UserError, match='--secret TOKEN: this shell has no such variable'):
    execute([Run(('cat',), 'a try', stdin=(Secret('TOKEN'),))])


def test_a_file_that_is_not_there_is_a_mistake(tmp_path):
  with pytest.raises(UserError, match='cannot be read'):
    execute([Run(('cat',), 'a try', stdin=(tmp_path / 'none',))])


def test_when_one_cannot_start_the_others_are_ended():
  with pytest.raises(UserError, match='no-such-program'):
    execute([Together((shell('sleep 60'), Run(('no-such-program',), 'a try')), 'both')])
