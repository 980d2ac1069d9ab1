"""A screen that fails ends only what is for the screen."""

import errno
import io
import os
import subprocess
import sys

import pytest

from llamax.core import exits, screen


class Failing(io.StringIO):
  def __init__(self, number):
    super().__init__()
    self.number = number

  def write(self, text=''):
    raise OSError(self.number, os.strerror(self.number))  # BrokenPipeError for EPIPE

  flush = write


@pytest.fixture
def fails(monkeypatch):
  def both(number):
    monkeypatch.setattr(sys, 'stdout', Failing(number))
    monkeypatch.setattr(sys, 'stderr', Failing(number))

  return both


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO, errno.EPIPE])
def test_what_lasts_does_not_notice(fails, number):
  fails(number)
  before = sys.stdout, sys.stderr
  with screen.lasting():
    print('x', flush=True)
    print('x', file=sys.stderr, flush=True)
    assert not sys.stdout.isatty()
  assert (sys.stdout, sys.stderr) == before


def test_a_bar_lasts_too(fails, monkeypatch):
  from llamax.observe.progress import Bar, make_progress

  fails(errno.EIO)
  monkeypatch.setattr(Failing, 'isatty', lambda self: True)
  monkeypatch.setenv('TERM', 'xterm')
  with screen.lasting():
    progress = make_progress(10, 0)
    assert isinstance(progress, Bar)
    progress.train(5, {'loss': 1.0})
    progress.say('text')
    progress.close()


def test_what_is_shown_again_goes_on(capsys):
  with screen.lasting():
    print('x')
    print('y', file=sys.stderr)
  assert capsys.readouterr() == ('x\n', 'y\n')


def test_a_required_output_is_a_disk_that_failed(fails):
  fails(errno.ENOSPC)
  with pytest.raises(exits.Stop, match='the output cannot be written') as end, screen.required():
    print('x')
  assert end.value.code == exits.STORAGE


def test_a_required_output_is_flushed_while_that_can_be_told(monkeypatch):
  full = open('/dev/full', 'w')  # noqa: SIM115
  monkeypatch.setattr(sys, 'stdout', full)
  with pytest.raises(exits.Stop), screen.required():
    print('x')
  screen.settle()
  full.close()


def test_a_reader_that_left_is_told_apart(fails):
  fails(errno.EPIPE)
  with pytest.raises(BrokenPipeError), screen.required():
    print('x')
  with pytest.raises(BrokenPipeError), screen.required():
    print('x', file=sys.stderr)
  screen.tell('x')


PROGRAM = """
import atexit, sys
from llamax.core import screen
screen.open_missing()
atexit.register(screen.settle)
with screen.lasting():
  print('x' * 100_000)
  print('x')
  print('y', file=sys.stderr)
  open(sys.argv[1], 'w').write('a file of its own\\n')
sys.exit(75)
"""


@pytest.mark.parametrize('where', ['>/dev/full 2>&1', '>&- 2>&-', '2>/dev/full | true', '</dev/null >&-'])
def test_the_exit_code_of_a_process_is_its_own(tmp_path, where):
  script = f'{{ {sys.executable} -c "$0" "$1"; echo $? > "$2"; }} {where}'
  words = [PROGRAM, str(tmp_path / 'file'), str(tmp_path / 'code')]
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'PYTHONUNBUFFERED': ''}
  subprocess.run(['sh', '-c', script, *words], env=environment, check=False, capture_output=True, timeout=20)
  assert (tmp_path / 'code').read_text() == '75\n'
  assert (tmp_path / 'file').read_text() == 'a file of its own\n'
