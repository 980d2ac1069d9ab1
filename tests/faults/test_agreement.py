"""A key misspelt, a value of the wrong type, a run changed on its way: refused by name, within two seconds."""

import itertools
import json
import random
import shutil
import subprocess
import sys
import time
import types
import typing

import pytest

from llamax.checkpoint.claim import check_workdir
from llamax.checkpoint.steps import steps
from llamax.cli.configure import load
from llamax.cli.main import main
from llamax.core.config import fields_of, flatten
from llamax.core.errors import UserError
from llamax.data.prepare import Settings, prepare
from llamax.observe.ledger import read_ledger
from tests.checkpoint.test_integrity import MAY_CHANGE, MAY_MOVE
from tests.faults.forked import ROOT, words
from tests.test_dead_config import PROGRAM, WEIGHTS

KEYS = fields_of()
SECONDS = 2.0
LETTERS = 'abcdefghijklmnopqrstuvwxyz_0123456789.'


@pytest.fixture
def refused(capsys):
  """(arguments of llamax train) -> what it says while it refuses them."""

  def refused(*arguments):
    assert main(['train', '--config=configs/debug.py', *arguments]) == 2
    return capsys.readouterr().err

  return refused


def refused_in_time(*arguments):
  """The same as a process of its own. A machine that does more than this gets three tries."""
  command = [sys.executable, '-m', 'llamax.cli.main', 'train', '--config=configs/debug.py', *arguments]
  took = []
  while not took or (min(took) > SECONDS and len(took) < 3):
    begun = time.monotonic()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    took.append(time.monotonic() - begun)
    assert ended.returncode == 2 and not ended.stdout, ended
  assert min(took) < SECONDS, (took, arguments[-2:])
  return ended.stderr


def one_edit_apart(key):
  """Every deletion, swap of neighbours; an insertion, a replacement at every place, the letter drawn."""
  rng = random.Random(key)
  for i in range(len(key)):
    letter = rng.choice(LETTERS)
    yield key[:i] + key[i + 1 :]
    yield key[:i] + key[i + 1 : i + 2] + key[i] + key[i + 2 :]
    yield key[:i] + letter + key[i:]
    yield key[:i] + letter + key[i + 1 :]


TYPOS = sorted({typo for key in KEYS for typo in one_edit_apart(key)} - set(KEYS))


def test_every_typo_is_refused_by_name(refused, scale, tmp_path):
  random.Random(2).shuffle(TYPOS)
  for typo in TYPOS[: scale(quick=300, ci=2000, soak=len(TYPOS))]:
    assert repr(typo) in refused(f'--workdir={tmp_path}/run', f'--config.{typo}=1')
  for typo in TYPOS[: scale(quick=1, ci=20, soak=len(TYPOS))]:
    assert repr(typo) in refused_in_time(f'--workdir={tmp_path}/run', f'--config.{typo}=1')
  assert not (tmp_path / 'run').exists()


def bare(kind):
  inner = typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind
  return typing.get_origin(inner) or inner


# What a config file may give a field by mistake; what the command line may.
WRONG = {
  int: (0.5, 'seven', '7', True, [1], float('inf')),
  float: ('5e-4', False, [1.0], float('nan'), float('-inf')),
  bool: (1, 0.0, 'true', None, []),
  str: (1, True, ['a']),
  tuple: ('a', 1, 1.5, None, True, [None]),
}
WRONG_WORDS = {
  int: ('seven', '', '1,2', '0.5', 'true', 'nan', '1e400'),
  float: ('seven', '', '1,2', 'true', 'nan', 'inf'),
  bool: ('seven', '', '2', 'none'),
  str: (),  # Any word is one.
  tuple: (),
}


def wrong_values():
  """(key, arguments of the command)."""
  for key, kind in KEYS.items():
    for word in WRONG_WORDS[bare(kind)]:
      if not (word == 'none' and key.startswith('model.')):
        yield key, [f'--config.{key}={word}']
    for value in WRONG[bare(kind)]:
      if not (value is None and key.startswith('model.')):
        yield key, [f'--config=wrong.py:{json.dumps([key, value])}']
  yield 'data.weights', ['--config.data.weights=1,a']


WRONG_CONFIG = """
import json
import base

def get_config(arg):
  key, value = json.loads(arg)
  section, name = key.split('.')
  config = base.get_config().to_dict()
  config[section][name] = value
  return config
"""


def test_every_wrong_type_is_refused_by_name(refused, scale, tmp_path):
  file = tmp_path / 'wrong.py'
  file.write_text(WRONG_CONFIG)
  cases = [(key, [a.replace('wrong.py', str(file)) for a in arguments]) for key, arguments in wrong_values()]
  random.Random(3).shuffle(cases)
  for key, arguments in cases[: scale(quick=300, ci=len(cases), soak=len(cases))]:
    said = refused(f'--workdir={tmp_path}/run', *arguments)
    assert f'{key}=' in said, (arguments, said)
  for key, arguments in cases[: scale(quick=1, ci=20, soak=len(cases))]:
    assert f'{key}=' in refused_in_time(f'--workdir={tmp_path}/run', *arguments)
  assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def run(forks, tiny_data, tmp_path_factory):
  """(workdir after two steps, arguments of its command after `train --config=...`)."""
  folder = tmp_path_factory.mktemp('agreement')
  command = words(tiny_data, folder / 'run', **{'train.num_steps': 2, 'optim.warmup_steps': 1})
  assert forks.start(command, folder / 'screen').wait(120) == 0, (folder / 'screen').read_text()
  assert steps(folder / 'run/checkpoints') == [2]
  return folder / 'run', command[2:]


# Key -> another value, where tests/test_dead_config.py has none.
OTHER = {
  'model.preset': 'llamax_60m',
  'model.max_seq_len': 4096,
  'model.attention': 'another',
  'model.position': 'none',
  'data.seq_len': 16,
  'data.sources': '/elsewhere',
  'data.weights': '2.0',
  'data.text_feature': 'content',
  'data.tokenizer': '/elsewhere.model',
  'data.seed': 7,
  'train.batch_size': 4,
  'optim.warmup_steps': 2,
  'optim.decay_steps': 1,
  'eval.splits': 'other=/elsewhere:validation',
  'log.wandb': True,
  'checkpoint.on_failed_save': 'stop',
}
ALSO = {
  'train.batch_tokens': ['--config.train.batch_size=none'],
  'model.mup_base_width': ['--config.model.tie_embeddings=false'],
}


def changed(key, cfg):
  """Arguments that give the key another value than `cfg` has."""
  now, kind = flatten(cfg.to_mapping())[key], bare(KEYS[key])
  known = WEIGHTS | {name: value for name, (value, _) in PROGRAM.items()} | OTHER
  if key in known:
    value = known[key]
  elif kind in (int, float):
    value = (now or 1) + 1 if kind is int else (now or 0.25) / 2
  else:
    value = not now if kind is bool else '/other'
  text = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
  return [f'--config.{key}={text}', *ALSO.get(key, [])]


def overrides(arguments):
  return [tuple(a.removeprefix('--config.').split('=', 1)) for a in arguments if a.startswith('--config.')]


ONE_VALUE = {'optim.name'}  # All that another can do is be refused as unknown.


def test_every_field_that_changes_is_resumable_or_refused_by_name(run, refused, capsys):
  workdir, arguments = run
  cfg = load('configs/debug.py', overrides(arguments))[0]
  assert check_workdir(workdir, cfg.to_mapping()) == []
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  went_on = set()
  for key in sorted(set(KEYS) - ONE_VALUE):
    new = [*arguments, *changed(key, cfg)]
    try:
      differences = check_workdir(workdir, load('configs/debug.py', overrides(new))[0].to_mapping())
    except UserError:
      assert f'  {key}: saved ' in refused(*new), key
    else:
      assert key in [d.key for d in differences]
      went_on.add(key)
  assert went_on == MAY_CHANGE | MAY_MOVE
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before, (
    'a refused run changes nothing'
  )


def test_a_change_is_refused_in_time(run, scale):
  workdir, arguments = run
  cfg = load('configs/debug.py', overrides(arguments))[0]
  keys = sorted(set(KEYS) - ONE_VALUE - MAY_CHANGE - MAY_MOVE)
  random.Random(4).shuffle(keys)
  for key in keys[: scale(quick=1, ci=10, soak=len(keys))]:
    assert f'  {key}: saved ' in refused_in_time(*arguments, *changed(key, cfg))
  # config.json does not decide: the checkpoint does.
  (workdir / 'config.json').rename(workdir / 'config.away')
  assert '  data.seed: saved ' in refused_in_time(*arguments, '--config.data.seed=9')
  (workdir / 'config.away').rename(workdir / 'config.json')


@pytest.fixture
def going_on(server, run, tiny_data, tmp_path):
  """(*flags, **config) -> (exit code, screen) of the command on a copy of `run`, two steps more each time."""
  shutil.copytree(run[0], tmp_path / 'run')
  turns = itertools.count(2)

  def start(*flags, kill_at=None, data=tiny_data, **config):
    turn = next(turns)
    log = tmp_path / f'screen-{turn}'
    config = {'train.num_steps': 2 * turn, 'optim.warmup_steps': 1, **config}
    child = server.start([*words(data, tmp_path / 'run', **config), *flags], log)
    if kill_at is None:
      return child.wait(120), child.screen()
    end = time.monotonic() + 60
    while not any(map(kill_at, read_ledger(tmp_path / 'run'))) and time.monotonic() < end:
      time.sleep(0.005)
    child.kill()
    return child.wait(10), child.screen()

  return start


def test_an_allowed_change_is_asked_for_once(going_on, tmp_path):
  run, new = tmp_path / 'run', {'optim.learning_rate': 0.5}
  flag = '--allow_change=optim.learning_rate'
  code, screen = going_on(**new)
  assert code == 2 and '  optim.learning_rate: saved 0.003, now 0.5' in screen and flag in screen
  killed, screen = going_on(flag, kill_at=lambda event: event['event'] == 'changed', **new)
  assert killed == -9 and max(steps(run / 'checkpoints')) == 2, screen
  # The next start of either command goes on from the checkpoint of before the change.
  assert going_on(**new)[0] == 0
  assert going_on(flag, **new)[0] == 0
  (event,) = [event for event in read_ledger(run) if event['event'] == 'changed']
  assert (event['key'], event['saved'], event['now'], event['step']) == ('optim.learning_rate', 0.003, 0.5, 2)
  newest = max(steps(run / 'checkpoints'))
  meta = json.loads((run / f'checkpoints/{newest}/meta/metadata').read_text())
  assert meta['changed'] == {'optim.learning_rate': 0.5} and meta['config']['optim']['learning_rate'] == 0.5
  code, screen = going_on()
  assert code == 2 and '  optim.learning_rate: saved 0.5, now 0.003' in screen


def test_a_change_of_shapes_is_refused_by_the_arrays(going_on, tmp_path):
  before = (tmp_path / 'run/config.json').read_bytes()
  code, screen = going_on('--allow_change=model.d_ff', **{'model.d_ff': 96})
  assert code == 2 and 'params/layers/mlp/w_up: wanted float32[2,32,96], found float32[2,32,80]' in screen
  assert (tmp_path / 'run/config.json').read_bytes() == before
  assert not [event for event in read_ledger(tmp_path / 'run') if event['event'] == 'changed']


def test_other_data_is_refused_until_it_is_allowed(going_on, tiny_data, tmp_path):
  (tmp_path / 'text').mkdir()
  for i in range(12):
    (tmp_path / f'text/{i}.txt').write_text(f'other text {i}\n' * 40)
  other = tmp_path / 'other'
  given = {'out': str(other), 'inputs': (str(tmp_path / 'text'),), 'tokenizer': f'{tiny_data}/tokenizer.model'}
  prepare(Settings(**given, workers=1), say=lambda line: None)
  code, screen = going_on(data=other)
  assert code == 2 and f'  dataset_fingerprints[0] of {other}: saved ' in screen
  code, screen = going_on('--allow_change=dataset_fingerprints[0]', data=other)
  assert code == 0 and '--allow_change: dataset_fingerprints[0] is now' in screen, screen
  assert going_on(data=other)[0] == 0
  assert going_on()[0] == 2
