"""Actions: what --dry_run prints, pasted into a real bash, does what `execute` does."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamax.core.errors import UserError
from llamax.launch.action import Run, Secret, Together, Write, show
from llamax.launch.execute import execute

HOSTILE = [
  'two words',
  "it's",
  '"quoted"',
  '$(touch INTRUDER)',
  '`touch INTRUDER`',
  '${HOME}',
  '; touch INTRUDER',
  '&& touch INTRUDER',
  '| tee INTRUDER',
  '> INTRUDER',
  '*',
  '~',
  'a\nb',
  'END',
  'x\nEND\ny',
  '\\',
  "\\'",
  '-n',
  '--',
  '!!',
  '\t',
  '',
  'ümläut 模型',
  '#',
  '%s%n',
  "'\"'\"'",
]
RECORD = """
import json, os, sys
open(sys.argv[1], 'w').write(json.dumps([sys.argv[2:], os.environ.get('ODD'), sys.stdin.read()]))
"""


def actions(folder):
  """One command with all that is hostile in its words, environment, standard input."""
  record = (sys.executable, '-c', RECORD)
  text = '\n'.join(HOSTILE)
  return [
    Write(folder / 'a folder' / "it's", text, 'a file'),
    Write(folder / 'secret mode', 'x\n', 'a file for one', mode=0o600),
    Run((*record, 'words', *HOSTILE), 'words', env={'ODD': text}),
    Run((*record, 'whole'), 'a text', stdin=(text + '\n',)),
    Run((*record, 'torn'), 'a text without an end', stdin=(text,)),
    Run((*record, 'file'), 'a file', stdin=(folder / 'a folder' / "it's",)),
    Run(
      (*record, 'parts'), 'parts', stdin=('a\n', 'b', Path(folder, 'secret mode'), Secret('ODD_SECRET'), 'c')
    ),
    Run((*record, 'coded'), 'coded', stdin=(Secret('ODD_SECRET', 'base64'),)),
    Run(('sh', '-s'), 'a shell', stdin=('x=', Secret('ODD_SECRET', 'sh'), '\nprintf %s "$x" > shell\n')),
    Run(('false',), 'fails', may_fail=True),
    Run(('sh', '-c', 'echo "it is: there" >&2; exit 1'), 'is there', forgiven="it is: 'th|th"),
    Together((Run((*record, 'one'), 'one'), Run((*record, 'two'), 'two', stdin=('x\n',), label='w-1')), 'both'),
  ]


def contents(folder):
  return {
    str(path.relative_to(folder)): (path.read_text(), path.stat().st_mode & 0o77)
    for path in folder.rglob('*')
    if path.is_file()
  }


def test_a_pasted_transcript_does_what_execute_does(tmp_path, monkeypatch):
  secret = 'geheim $(touch INTRUDER) \'"'
  monkeypatch.setenv('ODD_SECRET', secret)
  folder = tmp_path / 'here'
  folder.mkdir()
  monkeypatch.chdir(folder)
  script = show(actions(folder))
  assert secret not in script
  execute(actions(folder), say=lambda why: None)
  done = contents(folder)
  assert json.loads(done['words'][0]) == [HOSTILE, '\n'.join(HOSTILE), '']
  assert json.loads(done['whole'][0])[2] == '\n'.join(HOSTILE) + '\n'
  assert json.loads(done['torn'][0])[2] == json.loads(done['file'][0])[2] == '\n'.join(HOSTILE)
  assert json.loads(done['parts'][0])[2] == f'a\nbx\n{secret}c'
  assert base64.b64decode(json.loads(done['coded'][0])[2]).decode() == done['shell'][0] == secret
  assert done['secret mode'][1] == 0
  assert not any('INTRUDER' in name for name in done)
  subprocess.run(['rm', '-r', str(folder)], check=True)
  folder.mkdir()
  ran = subprocess.run(['bash'], input=script, text=True, capture_output=True, cwd=folder)
  assert ran.returncode == 0, ran.stderr
  assert contents(folder) == done


def test_each_action_says_why():
  shown = show([Run(('a', 'b c'), 'for this reason'), Write(Path('x/y'), 'text\n', 'for that one')])
  assert (
    shown
    == "# for this reason\na 'b c' < /dev/null\n\n# for that one\nmkdir -p x\ncat > x/y <<'END'\ntext\nEND\n"
  )


def test_what_is_forgiven_is_said():
  assert show([Run(('a',), 'x', forgiven='is (not )?there')]) == (
    '# x\na < /dev/null  # no failure where it says: is (not )?there\n'
  )


def test_a_zero_byte_is_refused():
  with pytest.raises(UserError, match='zero byte'):
    Run(('a', 'b\0c'), 'x')


def test_a_text_that_ends_a_here_document_does_not(tmp_path):
  text = 'END\nEND_\ntouch INTRUDER\n'
  subprocess.run(['bash'], input=show([Write(tmp_path / 'f', text, 'x')]), text=True, check=True, cwd=tmp_path)
  assert (tmp_path / 'f').read_text() == text and os.listdir(tmp_path) == ['f']
