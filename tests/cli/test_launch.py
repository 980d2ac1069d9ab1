"""The verb launch: its words, its mistakes; what targets do is in tests/launch."""

import subprocess
import sys

import pytest

from llamax.cli.launch import load
from llamax.cli.main import main
from llamax.launch.target import TARGETS, VERBS
from tests.launch.processes import ROOT

TRAIN = ['--', 'llamax', 'train', '--config=configs/debug.py', '--workdir=runs/My run']


@pytest.mark.parametrize('target', TARGETS)
def test_each_target_keeps_to_the_protocol(target):
  module = load(target)
  assert (
    set(module.VERBS) <= set(VERBS)
    and 'run' in module.VERBS
    and set(module.VERBS) >= {'submit', 'logs', 'stop'}
  )
  assert isinstance(module.TAKES_CODE, bool) and callable(module.add_arguments) and callable(module.plan)
  assert set(getattr(module, 'NAMELESS', ())) <= set(module.VERBS)


@pytest.mark.parametrize('target', TARGETS)
def test_help_tells_the_verbs_of_a_target(target, capsys):
  with pytest.raises(SystemExit) as ended:
    main(['launch', target, '--help'])
  shown = capsys.readouterr().out
  assert ended.value.code == 0 and f'llamax launch {target} [VERB]' in shown and '--dry_run' in shown
  assert all(f'\n  {verb:<8}' in shown for verb in load(target).VERBS)


def test_help_tells_the_targets(capsys):
  with pytest.raises(SystemExit):
    main(['launch', '--help'])
  shown = capsys.readouterr().out
  assert all(target in shown for target in TARGETS)


@pytest.mark.parametrize(
  ('words', 'told'),
  [
    (['local', '--processes=2'], 'no command to run: llamax launch local run'),
    (['local', 'stat', '--workdir=x'], "local has no verb 'stat'. Did you mean 'status'?"),
    (['local', 'status'], 'which job? Give --name=NAME'),
    (['local', '--processes=2', '--no_such=1', *TRAIN], "'--no_such=1' is no argument of this verb"),
    (['local', '--processes=2', '--env=A', *TRAIN], '--env A: want NAME=VALUE'),
    (['local', '--processes=2', '--env=A-B=x', *TRAIN], "'A-B' is no name of a variable"),
    (['local', '--processes=2', '--name=A b', *TRAIN], "'A b' cannot name a job"),
    (['local', '--processes=2', '--secret=NO_SUCH_TOKEN', *TRAIN], 'this shell has no such variable'),
  ],
  ids=str,
)
def test_mistakes_are_told(words, told, capsys):
  assert main(['launch', *words]) == 2
  assert told in capsys.readouterr().err


def test_an_unknown_target(capsys):
  with pytest.raises(SystemExit) as ended:
    main(['launch', 'cloud', *TRAIN])
  assert ended.value.code == 2 and "invalid choice: 'cloud'" in capsys.readouterr().err


@pytest.mark.parametrize(
  'words',
  [
    ['--processes=2', 'run', '--dry_run'],
    ['--dry_run', 'run', '--processes', '2'],
    ['--processes=2', '--dry_run'],
  ],
)
def test_the_verb_stands_anywhere(words, capsys):
  assert main(['launch', 'local', *words, *TRAIN]) == 0
  assert (
    "llamax train --config=configs/debug.py '--workdir=runs/My run' --coordinator=" in capsys.readouterr().out
  )


def test_only_the_target_that_is_used_is_imported_and_never_jax():
  look = (
    'import sys; from llamax.cli.main import main; '
    f'main(["launch", "local", "--processes=2", "--dry_run", *{TRAIN!r}]); '
    'print([m for m in sys.modules if m in ("jax", "numpy") or m.startswith("llamax.launch.ssh")])'
  )
  ran = subprocess.run([sys.executable, '-c', look], cwd=ROOT, capture_output=True, text=True, check=True)
  assert ran.stdout.splitlines()[-1] == '[]'
