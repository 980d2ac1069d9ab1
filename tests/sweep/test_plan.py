"""From points to named, checked runs; the plan that a folder keeps."""

import json

import pytest

from llamax.cli.configure import load
from llamax.core.config import parse_text
from llamax.core.errors import UserError
from llamax.sweep import space as s
from llamax.sweep.plan import (
  Plan,
  check_plan,
  keep_plan,
  make_plan,
  num_steps_of,
  read_plan,
  to_text,
  train_arguments,
)
from llamax.sweep.run_names import run_name

CONFIG = 'configs/debug.py'
RATE = 'optim.learning_rate'


def plan_of(space, overrides=(), prune=None):
  return make_plan(CONFIG, overrides, space, lambda texts: load(CONFIG, [*overrides, *texts])[0], prune)


def test_a_plan_comes_back_from_its_file(tmp_path):
  space = s.product(
    s.grid('optim.learning_rate', [1e-3, 3e-3]), s.fixed({'train.num_steps': 1e2, 'optim.clip_norm': None})
  )
  plan, configs = plan_of(space)
  keep_plan(tmp_path, plan)
  assert read_plan(tmp_path) == plan
  assert [run.name for run in plan.runs] == ['learning_rate=0.001', 'learning_rate=0.003']
  assert dict(plan.runs[1].point) == {
    'optim.learning_rate': 3e-3,
    'train.num_steps': 100,
    'optim.clip_norm': None,
  }
  assert type(plan.runs[1].point['train.num_steps']) is int
  assert configs[1].optim.learning_rate == 3e-3 and configs[1].train.num_steps == 100
  assert plan.objective == 'eval/validation/loss' and num_steps_of(plan, plan.runs[0].point) == 100
  assert num_steps_of(plan, {}) == 20


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('optim.learning_rate', 1e-5),
    ('train.seed', 3),
    ('model.tie_embeddings', True),
    ('optim.clip_norm', None),
    ('model.d_ff', None),
    ('data.weights', (0.5, 2.0)),
    ('sample.prompts', ()),
    ('optim.decay', ('w[a-z_]*', 'kernel')),
    ('log.wandb_project', '$(touch x) "it\'s" ; é'),
  ],
)
def test_values_come_through_the_command_line_as_they_are(key, value):
  assert parse_text(key, to_text(value)) == value


@pytest.mark.parametrize(
  ('space', 'told'),
  [
    (s.grid('optim.learning_rat', [1.0]), "run optim.learning_rat=1.0: .*Did you mean 'optim.learning_rate'"),
    (s.grid('train.num_steps', [10.5]), 'run num_steps=10.5: train.num_steps'),
    (s.grid('train.num_steps', ['10']), "train.num_steps='10' would be read as 10"),
    (s.grid('data.sources', [['a,b']]), 'would be read as'),
    (s.grid('sample.prompts', [['def ']]), 'would be read as'),
    (s.grid('log.batches', ['perhaps']), 'want true or false'),
    (s.grid('model.num_heads', [3]), 'run num_heads=3: .*head'),
    (s.chain(s.fixed({}), s.grid('optim.b1', [0.9])), 'runs base and b1=0.9 have one and the same config'),
    (s.product(s.named('a', {'train.seed': 1}), s.fixed({'train.num_steps': 30})), None),
  ],
)
def test_points_that_cannot_be_runs(space, told):
  if told is None:
    assert [run.name for run in plan_of(space)[0].runs] == ['a']
    return
  with pytest.raises(UserError, match=told):
    plan_of(space)


def test_what_the_sweep_sets_is_not_set_for_all_runs():
  with pytest.raises(UserError, match=r'--config.train.seed=3: the sweep itself sets that key'):
    plan_of(s.grid('train.seed', [1]), [('train.seed', '3')])


def test_names_depend_on_the_point_alone():
  grid = s.grid('optim.learning_rate', [1e-3])
  wide = s.product(grid, s.grid('train.seed', [0, 1]))
  assert run_name(grid.points[0]) == 'learning_rate=0.001'
  # `seed` is the last word of three keys.
  assert [run_name(p) for p in wide] == ['learning_rate=0.001,train.seed=0', 'learning_rate=0.001,train.seed=1']
  assert run_name(s.fixed({'train.seed': 1}).points[0]) == 'train.seed=1'
  assert run_name(s.product(s.named('big', {'model.d_model': 64}), grid).points[0]) == 'big,learning_rate=0.001'
  assert run_name(s.Point({})) == 'base'


@pytest.mark.parametrize('text', ['a/../../b', '$(touch x)', 'a\nb', '-rf', '.', 'x' * 300, 'é', '', '\0'])
def test_names_are_safe_and_tell_apart(text):
  one, other = (run_name(s.Point({'log.wandb_project': t}, quiet=frozenset())) for t in (text, text + '?'))
  for name in (one, other):
    assert len(name) <= 80 and name.isascii() and name[0].isalnum()
    assert not set(name) - set('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=+,-')
  assert one != other


def test_another_plan_in_the_folder_is_refused_with_the_difference(tmp_path):
  grid = s.grid('optim.learning_rate', [1e-3, 3e-3])
  plan, _ = plan_of(grid)
  keep_plan(tmp_path, plan)
  before = (tmp_path / 'sweep.json').read_bytes()
  others = [
    (plan_of(s.grid('optim.learning_rate', [1e-3]))[0], r'run learning_rate=0.003: .* | not there'),
    (plan_of(grid, [('train.num_steps', '70')])[0], r'train.num_steps: 20 \| 70'),
    (plan_of(s.chain(s.named('learning_rate=0.001', {'train.seed': 1}), s.grid(RATE, [3e-3])))[0],
     r'run learning_rate=0.001 optim.learning_rate: 0.001 \| None'),
  ]  # fmt: skip
  for other, told in others:
    with pytest.raises(UserError, match=told):
      keep_plan(tmp_path, other)
  assert (tmp_path / 'sweep.json').read_bytes() == before


def test_a_sweep_may_grow(tmp_path):
  keep_plan(tmp_path, plan_of(s.grid('optim.learning_rate', [1e-3]))[0])
  more, _ = plan_of(s.grid('optim.learning_rate', [3e-4, 1e-3]), prune={'rule': 'diverged'})
  keep_plan(tmp_path, more)
  assert read_plan(tmp_path) == more


def test_points_added_later_rename_none(tmp_path):
  seeds = s.grid('train.seed', [0, 1])
  first = s.product(s.grid(RATE, [1e-3]), seeds)
  keep_plan(tmp_path, plan_of(first)[0])
  more, _ = plan_of(s.chain(first, s.product(s.fixed({RATE: 1e-3}), seeds), s.grid(RATE, [3e-3])))
  keep_plan(tmp_path, more)
  names = ['learning_rate=0.001,train.seed=0', 'learning_rate=0.001,train.seed=1', 'learning_rate=0.003']
  assert [run.name for run in more.runs] == names


def test_folders_that_cannot_be_a_sweeps(tmp_path):
  plan, _ = plan_of(s.grid('train.seed', [1]))
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='is the folder of a run'):
    check_plan(tmp_path, plan)
  with pytest.raises(UserError, match='is an address; want a folder'):
    check_plan('gs://bucket/x', plan)
  with pytest.raises(UserError, match='--workdir= is empty'):
    check_plan('', plan)
  for folder in ('config.json', 'config.json/x'):
    with pytest.raises(UserError, match=r'config.json is a file; want a folder'):
      check_plan(tmp_path / folder, plan)
  for text in ('[]', '{"format": 1}', '{"format": 2}', '{', json.dumps({'format': 1, 'runs': [3]})):
    (tmp_path / 'sweep.json').write_text(text)
    with pytest.raises(UserError, match=r'sweep.json (is not the plan|has format 2)'):
      read_plan(tmp_path)
  assert read_plan(tmp_path / 'nothing') is None


def test_the_words_after_train():
  plan = Plan('a b.py:x', (('train.seed', '1'),), {}, 'loss', ())
  words = train_arguments(plan, {'optim.clip_norm': None, 'data.weights': (1.0, 2.0)}, 'runs/x')
  assert words == [
    '--config=a b.py:x',
    '--workdir=runs/x',
    '--config.train.seed=1',
    '--config.optim.clip_norm=none',
    '--config.data.weights=1.0,2.0',
  ]
