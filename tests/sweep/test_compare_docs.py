"""The commands of docs/sweep/compare.md, scaling.md work as they stand there, on runs that are made up."""

import shlex

import pytest

from llamax.cli.main import main
from llamax.core.config import flatten
from llamax.sweep import count
from tests.launch.documents import ROOT, commands
from tests.sweep.made_runs import base_config, make_plan, make_run

FOUND = [
  pytest.param(command, id=f'{page}:{number}')
  for page in ('compare', 'scaling')
  for number, command in commands(ROOT / f'docs/sweep/{page}.md')
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root, base = tmp_path_factory.mktemp('docs'), base_config()
  for k, name in enumerate(('quickstart', 'long', 'lr1', 'lr2')):
    make_run(root / 'runs' / name, base, {'optim.learning_rate': 1e-3 * (k + 1)}, lines=10)
  points = {f'{lr}': {'optim.learning_rate': lr} for lr in (1e-3, 4e-3)}
  make_plan(root / 'runs/quickstart_sweep', base, points)
  make_run(root / 'runs/quickstart_sweep/runs/0.001', base, points['0.001'], lines=10)
  for width in (32, 64, 128):
    for steps in (100, 200, 400):
      make_run(
        root / f'runs/ladder/{width}-{steps}',
        base,
        {'model.d_model': width},
        steps=steps,
        lines=4,
        floor=30 / width,
      )
  return root


@pytest.mark.parametrize('command', FOUND)
def test_a_command(command, folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  verb, *rest = shlex.split(command)[1:]
  monkeypatch.setattr(count, 'count_parameters', lambda configs: [10**6] * len(configs))
  if verb == 'sweep':
    assert main([verb, *rest, '--dry_run']) == 0
    said = capsys.readouterr().out
    assert '14 runs, 14 to do' in said or '9 runs, 9 to do' in said
  elif verb == 'compare':
    assert main([verb, *rest]) == 0
    assert 'learning_rate' in capsys.readouterr().out
  elif verb == 'scaling':
    # The search itself is tested elsewhere: here the command is read, the runs are found.
    monkeypatch.setattr(
      'llamax.sweep.ladder.count_parameters',
      lambda cs: [(2048 + 16 * c.model.d_model) * c.model.d_model for c in cs],
    )
    monkeypatch.setattr('llamax.sweep.scaling._SHARES', ((0.6, 0.2, 0.2),))
    monkeypatch.setattr('llamax.sweep.scaling._SLOPES', (0.3,))
    monkeypatch.setattr('llamax.sweep.scaling.fit.__kwdefaults__', {'repeats': 2, 'seed': 0})
    assert main([verb, *rest]) == 0
    assert (folder / 'runs/ladder/scaling.png').exists() and (folder / 'runs/ladder/scaling.json').exists()
  else:
    assert verb == 'prepare'


def test_the_ladder_is_what_the_page_says():
  from llamax.cli.configure import load
  from llamax.model.presets import PRESETS

  sizes = {}
  for name in ('100k-0.4M', '320k-0.4M', '1m-0.4M', '3m-0.4M', '10m-0.4M'):
    m = load(f'configs/ladder.py:{name}', [])[0].model
    assert m.head_dim * m.num_heads == m.d_model and m.num_kv_heads == m.num_heads
    sizes[name] = m.num_layers * (4 * m.d_model**2 + 3 * m.d_model * m.d_ff)
  assert list(sizes.values()) == pytest.approx([1e5, 3.2e5, 1e6, 3.1e6, 1e7], rel=0.07)
  assert 'llamax_quickstart' in PRESETS and flatten(base_config())['model.vocab_size'] == 2048
