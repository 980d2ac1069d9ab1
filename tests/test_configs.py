"""Every shipped config: loads, says what it is, holds commands that work."""

import ast
import math
import re
from pathlib import Path

import pytest

from llamax.cli.configure import difference, load
from llamax.core.errors import UserError
from llamax.model.presets import NUM_PARAMS

FOLDER = Path(__file__).parents[1] / 'configs'
NAMES = sorted(file.stem for file in FOLDER.glob('*.py'))
RUNNABLE = [name for name in NAMES if name != 'base']
OWN = ['quickstart', 'debug', '15m', '60m', '125m', '350m', '1b']
PROMISED = [*OWN, 'llama_7b', 'llama_65b', 'llama2_70b', 'llama3_8b', 'llama3_405b']


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
  monkeypatch.chdir(FOLDER.parent)


def docstring(name):
  return ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text()))


def commands(name):
  """(path with argument, overrides, other flags) of each `llamax train`, `llamax sweep` in the docstring."""
  for line in re.findall(r'^llamax (?:train|sweep) (.*)$', docstring(name), re.MULTILINE):
    flags = dict(re.fullmatch(r'--([\w.]+)=?(.*)', word).groups() for word in line.split())
    overrides = {flag[len('config.') :]: text for flag, text in flags.items() if flag.startswith('config.')}
    yield flags['config'], list(overrides.items()), flags


def test_the_promised_configs_are_here():
  assert set(PROMISED) <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_loads_with_every_row_of_its_difference_from_somewhere(name):
  config, provenance = load(f'configs/{name}.py', [])
  rows = difference(config, provenance)
  assert rows[0][:2] == ('model.preset', config.model.preset)
  if name == 'base':
    assert rows == [('model.preset', 'llamax_15m', 'base')]
  else:
    assert len(rows) > 5 and {where for _, _, where in rows[1:]} == {'file'}


@pytest.mark.parametrize('name', RUNNABLE)
def test_docstring_says_what_it_is_then_how_to_run_it(name):
  first, blank, *_ = docstring(name).splitlines()
  assert len(first) > 40 and first[-1] in '.:' and blank == ''
  assert any(flags['config'] == f'configs/{name}.py' and 'workdir' in flags for _, _, flags in commands(name))
  assert {flags['config'].split(':')[0] for _, _, flags in commands(name)} == {f'configs/{name}.py'}
  if name not in ('quickstart', 'debug'):
    assert any('dry_run' in flags for _, _, flags in commands(name))


@pytest.mark.parametrize('name', RUNNABLE)
def test_every_command_of_the_docstring_loads_for_the_devices_it_names(name):
  for path, overrides, flags in commands(name):
    config, _ = load(path, overrides)
    if 'topology' in flags:
      devices = math.prod(int(n) for n in flags['topology'].split(':')[1].split('x'))
      rows = config.batch_size // config.train.grad_accum
      assert devices % config.mesh.tensor == 0
      assert rows % (devices // config.mesh.tensor) == 0, f'{rows} rows on {devices} devices'
  for override in re.findall(r'--config\.(\S+)', docstring(name)):
    load(f'configs/{name}.py', [tuple(override.split('=', 1))])


@pytest.mark.parametrize('name', [name for name in RUNNABLE if name != 'debug'])
def test_an_argument_it_does_not_know_is_refused(name):
  with pytest.raises(UserError, match='argument'):
    load(f'configs/{name}.py:no_such_argument', [])


def test_named_sizes_are_the_sizes():
  for name, said in {'15m': 15e6, '125m': 125e6, '1b': 1e9, 'llama_7b': 6.7e9, 'llama3_405b': 405e9}.items():
    preset = load(f'configs/{name}.py', [])[0].model.preset
    assert NUM_PARAMS[preset] == pytest.approx(said, rel=0.05)
  assert load('configs/quickstart.py', [])[0].model.vocab_size == 2048


def test_llama3_405b_trains_at_the_length_before_its_context_was_extended():
  model = load('configs/llama3_405b.py', [])[0].model
  assert (model.preset, model.rope_scaling, model.max_seq_len) == ('llama31_405b', 'none', 8192)


def test_published_lengths_of_training():
  """Tokens seen, in units of 1e12, as the papers say."""
  for name, tokens in {'llama_7b': 1.0, 'llama_65b': 1.4, 'llama2_70b': 2.0}.items():
    config, _ = load(f'configs/{name}.py', [])
    seen = config.train.num_steps * config.batch_size * config.data.seq_len
    assert seen / 1e12 == pytest.approx(tokens, rel=1e-4)
