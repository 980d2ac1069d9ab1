"""Shell that llamax carries: launch/*.sh, the scripts that workers run, checked by shellcheck."""

import os
import shutil
import subprocess

import pytest

from llamax.cli.main import main
from llamax.launch import hosts, install
from tests.launch.processes import ROOT

SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
# What our code puts before a script.
SETTINGS = "folder='a'\npython='b'\nextra=''\nhow='venv'\ndigest='c'\ncode='d'\n"
USES = ': "$folder" "$python" "$extra" "$how" "$digest" "$code"\n'
CARRIED = {
  'install': '#!/bin/sh\n' + SETTINGS + USES + install.SCRIPT,
  'prepare': '#!/bin/sh\n' + SETTINGS + USES + hosts._PREPARE + 'fail ""\n',
  'delete': '#!/bin/sh\n' + hosts._DELETE.format(root='a', name='b', rank=0),
}


def shellcheck(text):
  if shutil.which('shellcheck') is None:
    pytest.skip('no shellcheck here (Debian: apt-get install shellcheck)')
  ran = subprocess.run(['shellcheck', '-'], input=text, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
  assert os.access(script, os.X_OK)
  shellcheck(script.read_text())


@pytest.mark.parametrize('name', CARRIED)
def test_scripts_for_workers_are_clean(name):
  shellcheck(CARRIED[name])


def test_what_a_dry_run_prints_is_clean(capsys, tmp_path, monkeypatch):
  monkeypatch.setenv('LLAMAX_CACHE', str(tmp_path))
  words = ['launch', 'ssh', '--hosts=a,b', '--dry_run', '--name=x', '--secret=TOKEN', "--env=A=it's", '--dirty']
  assert main([*words, '--', 'llamax', 'train', '--config=configs/debug.py', '--workdir=/mnt/run']) == 0
  shellcheck('#!/bin/bash\n: "${TOKEN:=}"\n' + capsys.readouterr().out)


def test_the_ssh_script_passes_its_settings_on(tmp_path):
  (tmp_path / 'llamax').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  (tmp_path / 'llamax').chmod(0o755)
  env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
  for words in ([], ['status'], ['run', '--dry_run']):
    ran = subprocess.run([ROOT / 'launch/ssh.sh', *words], env=env, capture_output=True, text=True, check=True)
    passed = ran.stdout.splitlines()
    assert passed[:4] == ['launch', 'ssh', (words or ['run'])[0], '--name=demo']
    assert passed[passed.index('--') + 1 :][:2] == ['llamax', 'train']
    assert ('--dry_run' in passed[: passed.index('--')]) == ('--dry_run' in words)
