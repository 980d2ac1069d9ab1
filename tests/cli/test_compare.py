"""llamax/cli/compare.py, scaling.py: the verbs as a user types them."""

import json
import math
import shlex
import subprocess
import sys

import pytest

from llamax.cli.compare import _from_defaults
from llamax.cli.configure import load
from llamax.cli.main import main
from llamax.sweep.record import read_record
from tests.sweep.made_runs import SPLIT, base_config, make_run


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  root, base = tmp_path_factory.mktemp('runs'), base_config()
  make_run(root / 'a', base, {'optim.learning_rate': 1e-3})
  make_run(root / 'b', base, {'optim.learning_rate': 4e-3}, floor=2.0)
  return root


def test_compare_prints_the_table_and_writes_what_is_asked_for(runs, tmp_path, capsys):
  files = [f'--{kind}={tmp_path}/out/report.{kind}' for kind in ('csv', 'png', 'html')]
  assert main(['compare', str(runs), *files]) == 0
  out = capsys.readouterr().out
  assert [line.split()[0] for line in out.splitlines()[2:4]] == ['b', 'a']
  assert {path.suffix for path in (tmp_path / 'out').iterdir()} == {'.csv', '.png', '.html'}
  assert f'page: {tmp_path}/out/report.html' in out
  assert '--config=configs/base.py' in (tmp_path / 'out/report.html').read_text()


@pytest.mark.parametrize(
  ('words', 'told'),
  [
    (['{runs}/c'], 'there is no such folder'),
    (['{runs}', '--metric=nonsense'], 'no run has it'),
    (['{runs}', '--sort=nonsense'], 'no such column'),
    (['{runs}', '--csv={runs}/a/config.json/x.csv'], 'cannot be written'),
  ],
)
def test_mistakes_end_with_2(runs, words, told, capsys):
  assert main(['compare', *(word.format(runs=runs) for word in words)]) == 2
  assert told in capsys.readouterr().err


def test_the_command_of_a_lone_run_gives_its_config(runs):
  config = read_record('b', runs / 'b').config
  words = _from_defaults(config)
  overrides = [tuple(word.removeprefix('--config.').split('=', 1)) for word in words[1:]]
  again, _ = load('configs/base.py', overrides)
  lone = {key: value for key, value in config.items() if not key.startswith('sample.')}
  from llamax.core.config import flatten

  assert {key: value for key, value in flatten(again.to_mapping()).items() if key in lone} == lone
  assert shlex.split(shlex.join(words)) == words


def test_scaling_fits_the_runs_of_a_ladder(tmp_path):
  base = base_config()
  for width in (32, 64, 128, 256):
    for steps in (100, 300, 900):
      size = {'model.d_model': width, 'model.num_layers': 2, 'model.d_ff': 3 * width}
      folder = make_run(tmp_path / f'{width}-{steps}', base, size, steps=steps, lines=4)
      # 2 layers of 4 heads of 32, half as many key heads, three matrices of width x 3 width, norms.
      params = 2 * (width * 32 * (4 + 2 + 2 + 4) + 9 * width * width + 2 * width) + width
      loss = 1.5 + 30 / params**0.3 + 200 / (1024 * steps) ** 0.4
      with open(folder / 'metrics.jsonl', 'a') as lines:
        lines.write(json.dumps({'step': steps, SPLIT: loss}) + '\n')
  make_run(tmp_path / 'unfinished', base, done=300, ended=False)
  out = tmp_path / 'numbers.json'
  words = ['scaling', f'{tmp_path}/*', '--flops=1e13', f'--png={tmp_path}/law.png', f'--json={out}']
  # In a process of its own, as scipy's threads spin in this one (sweep/scaling.py).
  done = subprocess.run(
    [sys.executable, '-m', 'llamax.cli.main', *words], capture_output=True, text=True, timeout=280, check=False
  )
  assert done.returncode == 0, done.stderr
  said = done.stdout
  assert 'L(N, D) = 1.5 + 30 / N^0.3000 + 200 / D^0.4000' in said
  assert 'left out: unfinished: stopped, not finished' in said
  assert 'Budget 1.00e13 FLOPs: N = ' in said and '12 runs; off by 0.00%' in said
  found = json.loads(out.read_text())
  assert found['law']['alpha'] == pytest.approx(0.3, rel=1e-3)
  assert math.isclose(6 * found['budgets'][0]['params'] * found['budgets'][0]['tokens'], 1e13, rel_tol=1e-6)
  assert (tmp_path / 'law.png').read_bytes().startswith(b'\x89PNG')


def test_scaling_refuses_a_budget_that_is_none(tmp_path, capsys):
  assert main(['scaling', str(tmp_path), '--flops=lots']) == 2
  assert '--flops=lots: want a number of FLOPs' in capsys.readouterr().err
