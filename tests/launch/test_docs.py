"""Each `llamax launch` in docs/launch*.md works as it stands there: in a dry run, some for real."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from llamax.cli.main import VERBS, main
from llamax.launch import worker
from llamax.launch.target import TARGETS
from tests.launch.documents import ROOT, commands

PAGES = [ROOT / 'docs/launch.md', *sorted((ROOT / 'docs/launch').glob('*.md'))]
FOUND = [(page, number, command) for page in PAGES for number, command in commands(page)]
LAUNCHES = [one for one in FOUND if one[2].startswith('llamax launch ')]


def name(one):
  return f'{one[0].stem}:{one[1]}' if isinstance(one, tuple) else None


@pytest.mark.parametrize('one', LAUNCHES, ids=name)
def test_a_launch_in_a_dry_run(one, tmp_path, monkeypatch, capsys):
  _, _, command = one
  words = shlex.split(command)[1:]
  at = words.index('--') if '--' in words else len(words)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('LLAMAX_CACHE', str(tmp_path / 'cache'))
  with monkeypatch.context() as context:
    context.setenv('PATH', '/nowhere')  # No tool is needed.
    assert main([*words[:at], *['--dry_run'] * ('--dry_run' not in words), *words[at:]]) == 0, (
      capsys.readouterr().err
    )
  shown = capsys.readouterr().out
  assert shown.startswith('# ')
  assert subprocess.run(['bash', '-n'], input=shown, text=True, stderr=subprocess.PIPE).stderr == ''
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('one', [one for one in FOUND if one not in LAUNCHES], ids=name)
def test_other_commands_are_known(one):
  word, *rest = shlex.split(one[2])
  assert (
    '=' in word
    or word in ('export', 'cd', 'bash')
    or shutil.which(word)
    or word in ('gcloud', 'kubectl', 'sbatch')
  )
  if word == 'llamax':
    assert rest[0] in VERBS


def test_each_target_has_a_page_which_the_front_page_names():
  front = (ROOT / 'docs/launch.md').read_text()
  for target in TARGETS:
    assert (ROOT / 'docs/launch' / f'{target}.md').is_file() and f'](launch/{target}.md)' in front


def test_the_table_of_verbs_is_true():
  from llamax.cli.launch import load
  from llamax.launch.target import VERBS

  rows = [
    line.split('|')[1:-1]
    for line in (ROOT / 'docs/launch.md').read_text().splitlines()
    if line.startswith('| ')
  ]
  header = next(row for row in rows if row[0].strip() == 'verb')
  targets = [cell.strip() for cell in header[2:]]
  assert targets == list(TARGETS)
  for verb in VERBS:
    (row,) = [row for row in rows if row[0].strip().startswith(f'`{verb}`') and len(row) == len(header)]
    for target, cell in zip(targets, row[2:], strict=True):
      assert (verb in load(target).VERBS) == (cell.strip() == 'x'), (verb, target)


def test_the_commands_on_this_machine_for_real(request, tmp_path):
  if request.config.getoption('--scale') == 'quick':
    pytest.skip('long: with --scale=ci')
  (tmp_path / 'llamax').write_text(f'#!/bin/sh\nexec {sys.executable} -m llamax.cli.main "$@"\n')
  (tmp_path / 'llamax').chmod(0o755)
  env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'PYTHONPATH': str(ROOT)}
  # Process 0 alone reads this cache: the others would compile for longer than it waits for them (30 s).
  env.pop('JAX_COMPILATION_CACHE_DIR', None)
  del env['XLA_FLAGS']
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data/stdlib').symlink_to(request.getfixturevalue('tiny_data'))
  pages = [one for one in LAUNCHES if one[0].name == 'local.md']
  assert len(pages) > 5
  for _, _, command in pages:
    if 'logs' in command:
      command = f'timeout 600 {command}'
    ran = subprocess.run(
      ['bash', '-c', command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, f'{command}\n{ran.stdout}{ran.stderr}'
  assert worker.status(tmp_path / 'runs/two/launch')['code'] == 0
