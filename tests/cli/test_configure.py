"""Loading a config: origins of values, what a config file may import, every way of getting it wrong."""

import json
import re
import subprocess
import sys
import types
import typing

import pytest
from ml_collections import ConfigDict

from llamax.cli import configure
from llamax.cli.configure import difference, load, resolve
from llamax.core.config import Config, fields_of, flatten, later_fields, parse_text, unflatten
from llamax.core.errors import UserError

KEYS = fields_of()
RUN = """
import base

def get_config(arg='none given'):
  config = base.get_config()
  config.train.seed = 7
  config.log.wandb_project = arg
  return config
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes mine/NAME.py below the working directory, gives that path."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine').mkdir()

  def write(text, name='run'):
    (tmp_path / 'mine' / f'{name}.py').write_text(text)
    return f'mine/{name}.py'

  return write


@pytest.fixture(scope='module')
def full():
  """Every key, resolved."""
  return load('configs/debug.py', [])[0].to_mapping()


def refused(path, overrides=()):
  with pytest.raises(UserError) as caught:
    load(path, list(overrides))
  return str(caught.value)


def test_each_value_has_its_origin(write):
  path = write(RUN.replace('return', "config.model.update({'preset': 'llama2_7b', 'd_ff': 1024})\n  return"))
  config, provenance = load(f'{path}:mine', [('model.d_model', '512'), ('train.num_steps', '2e3')])
  assert provenance['model.preset'] == ('llama2_7b', 'file')
  assert provenance['model.max_seq_len'] == (4096, 'preset')
  assert provenance['model.d_ff'] == (1024, 'file')
  assert provenance['model.d_model'] == (512, 'command line')
  assert provenance['log.wandb_project'] == ('mine', 'file')
  assert provenance['train.num_steps'] == (2000, 'command line')
  assert provenance['optim.b1'] == (0.9, 'base')
  assert {key: value for key, (value, _) in provenance.items()} == flatten(config.to_mapping())


def test_difference_is_what_file_and_command_line_set(write):
  config, provenance = load(write(RUN), [('data.seed', '3'), ('data.seed', '5')])
  assert difference(config, provenance) == [
    ('model.preset', 'llamax_15m', 'base'),
    ('data.seed', 5, 'command line'),
    ('train.seed', 7, 'file'),
    ('log.wandb_project', 'none given', 'file'),
  ]


def test_none_on_the_command_line_gives_a_model_key_back_to_the_preset():
  config, provenance = load('configs/debug.py', [('model.d_ff', 'none'), ('eval.num_batches', 'none')])
  assert (config.model.d_ff, provenance['model.d_ff']) == (768, (768, 'preset'))
  assert provenance['eval.num_batches'] == (None, 'command line')


def test_a_config_may_be_a_plain_dict_that_imports_nothing(write, full):
  write("raise RuntimeError('a file of that name which the config does not import')", 'base')
  path = write(f'import json\ndef get_config():\n  return json.loads({json.dumps(full)!r})')
  config, provenance = load(path, [])
  assert config == Config.from_mapping(full)
  assert provenance['train.num_steps'] == (20, 'file')  # Told apart from the base that is shipped.
  assert provenance['optim.b1'] == (0.9, 'base')


def test_base_is_the_one_beside_the_file(write):
  shipped = configure._shipped() / 'base.py'
  write(shipped.read_text().replace("'num_steps': 1000", "'num_steps': 777"), 'base')
  config, provenance = load(write(RUN), [])
  assert (config.train.num_steps, provenance['train.num_steps']) == (777, (777, 'base'))


def test_loading_leaves_the_interpreter_as_it_was(write, monkeypatch):
  """A neighbour is imported anew each time; a module of the caller that shares its name comes back."""
  theirs = types.ModuleType('base')
  monkeypatch.setitem(sys.modules, 'base', theirs)
  path, modules = list(sys.path), set(sys.modules)
  write('SEED = 1', 'neighbour')
  config = write(RUN.replace('= 7', '= neighbour.SEED').replace('import base', 'import base, neighbour'))
  assert load(config, [])[0].train.seed == 1
  write('SEED = 12345', 'neighbour')
  assert load(config, [])[0].train.seed == 12345
  refused(write('import neighbour\n1 / 0', 'broken'))
  assert sys.path == path
  assert sys.modules['base'] is theirs
  assert set(sys.modules) == modules


def test_configs_name_finds_the_one_here_then_the_one_shipped(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load('configs/debug.py', [])[0].train.num_steps == 20
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'debug.py').write_text(RUN)
  assert load('configs/debug.py', [])[0].train.seed == 7
  assert load('configs/quickstart.py:long', [])[0].model.preset == 'llamax_quickstart'


def test_a_home_that_nobody_has():
  assert (
    refused('~nobody here/c.py') == "--config=~nobody here/c.py: no user '~nobody here' whose home is known"
  )


def test_missing_file_names_near_files(write):
  write(RUN, 'experiment')
  assert refused('mine/experimnt.py') == "no config file 'mine/experimnt.py'. Did you mean 'experiment.py'?"
  assert refused('mine').endswith('is a folder; name a file in it. Known: experiment.py.')
  assert "no folder 'elsewhere'. Did you mean 'configs/debug.py'?" in refused('elsewhere/debug.py')
  assert "Did you mean 'configs/llama3_8b.py'?" in refused('llama3_8b.py:v5p')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('x = 1', 'mine/run.py has no function get_config'),
    ('\n\ndef get_config(:', 'mine/run.py:3: SyntaxError'),
    ('\n1 / 0', 'mine/run.py:2: ZeroDivisionError: division by zero'),
    ('import nowhere_at_all', "mine/run.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    (RUN.replace('seed = 7', "seed = 'a'"), 'mine/run.py:6: TypeError'),
    (RUN.replace('config.train.seed', 'config.trian.seed'), 'mine/run.py:6: AttributeError'),
    ('def get_config(arg):\n  return {}', 'mine/run.py: TypeError'),
    ('def get_config():\n  return 3', 'mine/run.py: a config is a ConfigDict or a nested mapping; got int'),
    ('def get_config():\n  return {"train": {"seed": 1}}', "config lacks 'model'"),
    (RUN.replace('train.seed', 'train.sed'), "py: config has no key 'train.sed'. Did you mean 'train.seed'"),
    (RUN.replace('train.seed', 'log.seed'), "no key 'log.seed'. Did you mean 'data.seed' or 'train.seed' or"),
    (RUN.replace('config.train.seed = 7', 'config.model.preset = "mistral"'), "Did you mean 'mistral_7b' or"),
  ],
)
def test_mistakes_in_a_file_are_named(write, text, message):
  assert message in refused(write(text))


def test_error_in_a_neighbour_names_the_neighbour(write):
  write('def half():\n  return 1 / 0', 'neighbour')
  assert re.search(r'neighbour\.py:2: ZeroDivisionError', refused(write('import neighbour\nneighbour.half()')))


def test_argument_that_a_config_does_not_take(write):
  path = write('import base\ndef get_config():\n  return base.get_config()')
  assert "mine/run.py takes no argument; got 'fast'" in refused(path + ':fast')
  assert 'llama3_8b.py' in refused('configs/llama3_8b.py:v9') and "'v9'" in refused('configs/llama3_8b.py:v9')


def _one_edit_apart(a, b):
  if len(a) > len(b):
    a, b = b, a
  start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
  return a[start:] == b[start + 1 :] or a[start + 1 :] == b[start + 1 :]


@pytest.mark.parametrize('key', KEYS)
def test_every_one_character_typo_is_refused_naming_the_nearest_key(key):
  for i in range(len(key)):
    typo = key[:i] + ('', 'x', 'q' + key[i])[i % 3] + key[i + 1 :]
    if typo in KEYS:
      continue
    with pytest.raises(UserError, match='config has no key') as caught:
      parse_text(typo, '1')
    named = re.findall(r"'([^']+)'", str(caught.value))[1:]
    assert any(name in KEYS and (name == key or _one_edit_apart(name, typo)) for name in named), caught.value


def test_typos_are_refused_from_files_the_command_line_or_python(write, full):
  message = "config has no key 'optim.learning_rat'. Did you mean 'optim.learning_rate'?"
  assert refused('configs/debug.py', [('optim.learning_rat', '1')]) == message
  config = ConfigDict(full)
  config.optim.learning_rat = 1.0
  with pytest.raises(UserError, match=re.escape(message)):
    resolve(config)


WRONG = {
  int: (0.5, 'seven', True, (1,), [1], float('inf')),
  float: ('seven', False, (1.0,), float('nan')),
  bool: (1, 'true', None, ()),
  str: (1, True, ('a',)),
  tuple: ('a', 1, 1.5, None, True),
}


def _bare(kind):
  inner = typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind  # `int | None`
  return typing.get_origin(inner) or inner


@pytest.mark.parametrize('key', KEYS)
def test_every_wrong_type_is_refused_naming_the_key(key, full):
  optional = isinstance(KEYS[key], types.UnionType) or key.startswith('model.')
  for value in WRONG[_bare(KEYS[key])] + (() if optional else (None,)):
    if value is None and optional:
      continue
    with pytest.raises(UserError, match=re.escape(key)):
      resolve(unflatten(flatten(full) | {key: value}))


@pytest.mark.parametrize('key', [key for key in KEYS if _bare(KEYS[key]) in (int, float, bool)])
def test_every_wrong_word_on_the_command_line_is_refused_naming_the_key(key):
  words = ['seven', '', '1,2'] + ([] if _bare(KEYS[key]) is bool else ['true'])
  words += ['0.5'] if _bare(KEYS[key]) is int else []
  for word in words:
    with pytest.raises(UserError, match=re.escape(key)):
      parse_text(key, word)


@pytest.mark.parametrize('key', KEYS)
def test_every_missing_key_is_refused_naming_it(key, full):
  flat = flatten(full)
  del flat[key]
  if key in later_fields():
    assert flatten(resolve(unflatten(flat)).to_mapping())[key] == later_fields()[key]
    return
  with pytest.raises(UserError, match=re.escape(key)):
    resolve(unflatten(flat))


def test_resolve_takes_mappings_or_configdicts_alike(full):
  partly = unflatten(flatten(full) | {'model.d_model': None, 'model.preset': 'llamax_60m'})
  assert resolve(partly) == resolve(ConfigDict(partly)) == resolve(resolve(partly).to_mapping())
  assert resolve(partly).model.d_model == 512
  assert partly['model']['d_model'] is None
  with pytest.raises(UserError, match='got list'):
    resolve([1])


def test_loading_is_quick_without_jax():
  code = """
import sys, time
from llamax.cli.configure import load
load('configs/llama3_405b.py', [('optim.learning_rate', '1e-3')])
sys.exit(f'{time.process_time()} s' if time.process_time() > 2 else 'jax' in sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
