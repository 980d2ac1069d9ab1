"""The script for sbatch: what it asks for, what it does with each end, with srun and the like stood in for."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from llamax.core.errors import UserError
from llamax.launch.code import Code
from llamax.launch.job import Job
from llamax.launch.slurm_script import Asked, directive, script

RECORDED = json.loads((Path(__file__).parent / 'recorded/slurm.json').read_text())
HOSTILE = '100% of $(touch bad) `touch bad` "$HOME" it\'s; & | > * ~ #'
STUBS = {
  # Each task in turn; what SLURM would do with a signal is not here.
  'srun': 'printf "%s\\n" "$@" >srun-words\nwhile [[ $1 == -* ]]; do shift; done\n'
  'for ((rank = 0; rank < SLURM_NTASKS; rank++)); do SLURM_PROCID=$rank "$@" || code=$?; done\n'
  'exit "${code:-0}"',
  'squeue': 'echo "$STATE"',
  'scontrol': 'printf "%s\\n" "$*" >>asked',
  'sleep': '',
  'llamax': 'printf "%s\\n" "$@" >words-$SLURM_PROCID\n'
  'printf "%s" "$NOTE" >note; printf "%s" "$PYTHONPATH" >pythonpath\n'
  '[[ -d new ]] && mkdir -p run/checkpoints/9\nread -ra codes <<<"$CODES"; exit "${codes[$SLURM_PROCID]}"',
}


@pytest.fixture
def play(tmp_path):
  """(codes, state, words, **job) -> (exit code, what scontrol was asked, the last line of ends.jsonl)."""
  bin_folder = tmp_path / 'bin'
  bin_folder.mkdir()
  for name, text in STUBS.items():
    (bin_folder / name).write_text(f'#!/bin/bash\n{text}\n')
    (bin_folder / name).chmod(0o755)

  def run(codes='0 0', state='RUNNING', words=(), env=None, restart=0, max_failures=5, setup='', code=None):
    job = Job('run', ('llamax', 'train', '--workdir=run', *words), env or {}, (), code)
    folder = tmp_path / 'run/launch/run'
    folder.mkdir(parents=True, exist_ok=True)
    text = script(job, Asked(nodes=2), folder, tmp_path, setup, max_failures)
    (tmp_path / 'job.sbatch').write_text(text)
    (tmp_path / 'asked').unlink(missing_ok=True)
    variables = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2', 'SLURM_JOB_NODELIST': 'a,b', 'CODES': codes}
    variables |= {'STATE': state, 'PATH': f'{bin_folder}:{os.environ["PATH"]}'}
    if restart:
      variables['SLURM_RESTART_COUNT'] = str(restart)
    done = subprocess.run(
      ['bash', 'job.sbatch'], cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True
    )
    asked = (tmp_path / 'asked').read_text() if (tmp_path / 'asked').exists() else ''
    ends = [json.loads(line) for line in (folder / 'ends.jsonl').read_text().splitlines()]
    return done.returncode, asked.strip(), ends[-1]

  return run


@pytest.mark.parametrize(
  ('codes', 'code', 'again'),
  [
    ('0 0', 0, False),
    ('75 75', 75, True),
    ('0 76', 76, True),
    ('137 76', 76, True),
    ('137 0', 137, True),
    ('76 2', 2, False),  # A mistake that one host alone sees is final.
    ('76 77', 77, False),
    ('78 76', 78, False),
    ('1 76', 1, True),
    ('74 76', 74, True),
    ('130 0', 130, True),
  ],
)
def test_what_follows_an_end(play, codes, code, again):
  end, asked, noted = play(codes)
  assert end == code and asked == ('requeue 7' if again else '')
  assert (noted['job'], noted['code']) == (7, code)
  assert (noted['then'] == 'requeued') == again


@pytest.mark.parametrize('state', ['COMPLETING', 'CANCELLED', ''])
def test_a_cancelled_job_does_not_come_back(play, state):
  end, asked, noted = play('75 75', state=state)
  assert end == 75 and asked == '' and noted['then'].startswith('left to SLURM')


def test_a_stopped_job_does_not_come_back(play, tmp_path):
  (tmp_path / 'run/launch/run').mkdir(parents=True)
  (tmp_path / 'run/launch/run/stop').write_text('')
  end, asked, noted = play('75 75')
  assert end == 75 and asked == '' and noted['then'].startswith('stopped')
  assert not (tmp_path / 'words-0').exists()  # SLURM had it started again after the stop.


def test_it_gives_up_without_progress(play, tmp_path):
  said = [play('76 76', restart=restart, max_failures=3)[1] for restart in range(3)]
  assert said == ['requeue 7', 'requeue 7', '']
  (tmp_path / 'new').mkdir()  # A checkpoint comes.
  assert play('76 76', restart=3, max_failures=3)[1] == 'requeue 7'
  (tmp_path / 'new').rmdir()
  said = [play('76 76', restart=restart, max_failures=3)[1] for restart in range(4, 7)]
  assert said == ['requeue 7', 'requeue 7', '']
  assert play('76 76', restart=0, max_failures=3)[1] == 'requeue 7'  # A new job counts from none.


def test_hostile_words_reach_the_task(play, tmp_path):
  words = (f'--config.x={HOSTILE}', 'two\nlines', '', '@FOLDER@ @COMMAND@', '\\1 \\g<0>')
  end, _, _ = play(words=words, env={'NOTE': HOSTILE + '\nmore'})
  assert end == 0
  assert (tmp_path / 'words-1').read_text() == '\n'.join(('train', '--workdir=run', *words)) + '\n'
  assert (tmp_path / 'note').read_text() == HOSTILE + '\nmore'
  assert not list(tmp_path.rglob('bad'))


def test_setup_comes_before_the_command(play, tmp_path):
  assert play(setup='export NOTE=from_setup\n')[0] == 0
  assert (tmp_path / 'note').read_text() == 'from_setup'


@pytest.fixture
def bundle(tmp_path):
  """As launch/code.py makes it, of a wheel with one file; where `submit` copies it to."""
  folder = tmp_path / 'run/launch/run'
  folder.mkdir(parents=True)
  with zipfile.ZipFile(tmp_path / 'llamax-1-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('llamax/which.py', "print('the copy')")
  with tarfile.open(folder / 'bundle.tar', 'w') as tar:
    tar.add(tmp_path / 'llamax-1-py3-none-any.whl', 'llamax-1-py3-none-any.whl')
  digest = hashlib.sha256((folder / 'bundle.tar').read_bytes()).hexdigest()
  (folder / 'bundle.tar.sha256').write_text(f'{digest}  bundle.tar\n')
  return folder


def test_the_copy_of_the_code_comes_first(play, bundle, tmp_path):
  for _ in range(2):  # A second start finds it unpacked.
    assert play(code=Code('1+gabc', tmp_path), setup='PYTHONPATH=/elsewhere')[0] == 0
    env = (tmp_path / 'pythonpath').read_text()
    assert env == f'{bundle}/code-1+gabc:/elsewhere'
    assert (bundle / 'code-1+gabc/llamax/which.py').is_file() and not list(bundle.glob('.code-*'))


def test_other_code_than_was_submitted_does_not_run(play, bundle, tmp_path):
  (bundle / 'bundle.tar').write_bytes((bundle / 'bundle.tar').read_bytes() + b'x')
  end, asked, noted = play(code=Code('1+gabc', tmp_path))
  assert end == 2 and asked == '' and 'another digest' in noted['then']
  assert not (tmp_path / 'words-0').exists()


@pytest.mark.parametrize(
  'asked',
  [
    {'partition': 'a"b'},
    {'account': 'a\n#SBATCH --uid=0'},
    {'time': ''},
    {'constraint': "a'b"},
    {'more': ('gres=gpu:8',)},
    {'more': ('--comment=a\\b',)},
  ],
)
def test_what_sbatch_would_misread_is_refused(asked):
  with pytest.raises(UserError, match='want'):
    Asked(nodes=1, **asked).options()


@pytest.mark.parametrize('folder', ['/a\n/b', '/a"b', '/a\\b'])
def test_a_folder_that_no_line_could_carry(folder):
  job = Job('run', ('llamax', 'train', f'--workdir={folder}'))
  with pytest.raises(UserError, match='want'):
    script(job, Asked(nodes=1), Path(folder), Path('/'), '', 5)


def test_directives():
  assert directive('--constraint=a&b') == '#SBATCH --constraint="a&b"'
  assert directive('--output=/a 100%% b/x.log') == '#SBATCH --output="/a 100%% b/x.log"'
  assert directive('--requeue') == '#SBATCH --requeue'


def test_every_option_is_known_to_the_real_sbatch():
  asked = Asked(4, 8, 12, '0', 'p', 'a', 'q', 'c', '1-0', 60, ('--gres=gpu:8',))
  whole = script(Job('run', ('llamax', '--workdir=a')), asked, Path('/f'), Path('/'), '', 5)
  lines = [line.removeprefix('#SBATCH ') for line in whole.splitlines() if line.startswith('#SBATCH')]
  lines += Asked(1).options()
  assert len(lines) > 18
  known = RECORDED['commands']['sbatch']
  for line in lines:
    name, equals, _ = line.removeprefix('--').partition('=')
    assert known[name] in (('must', 'may') if equals else ('no', 'may')), line
  srun = next(line for line in whole.splitlines() if line.startswith('srun '))
  for word in srun.split()[1:-1]:
    name, equals, _ = word.removeprefix('--').partition('=')
    assert RECORDED['commands']['srun'][name] == 'must' and equals, word


@pytest.mark.skipif(shutil.which('shellcheck') is None, reason='apt-get install -y shellcheck')
def test_shellcheck(tmp_path):
  text = script(Job('run', ('llamax', '--workdir=a b'), {'A': HOSTILE}), Asked(1), tmp_path, tmp_path, '', 5)
  (tmp_path / 'job.sbatch').write_text(text)
  stand_in = Path(__file__).parent / 'slurm_stand_in.sh'
  done = subprocess.run(['shellcheck', tmp_path / 'job.sbatch', stand_in], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
