"""llamax/sweep/gather.py: which runs a path means."""

import pytest

from llamax.core.errors import UserError
from llamax.sweep.gather import gather
from tests.sweep.made_runs import base_config, make_plan, make_run


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """runs/{one,two,notes}, runs/sweep with a finished, a waiting run."""
  root, base = tmp_path_factory.mktemp('gather') / 'runs', base_config()
  make_run(root / 'one', base)
  make_run(root / 'two', base, evals=0)
  (root / 'notes').mkdir()
  points = {'a': {'optim.learning_rate': 1e-3}, 'b': {'optim.learning_rate': 2e-3}}
  make_plan(root / 'sweep', base, points, objective='eval/validation/bits_per_byte')
  make_run(root / 'sweep/runs/a', base, points['a'])
  return root


def names(*paths):
  return [record.name for record in gather([str(path) for path in paths]).records]


def test_a_path_may_be_a_run_a_sweep_a_folder_of_both_a_pattern(runs):
  assert names(runs / 'two', runs / 'one') == ['two', 'one']
  assert names(runs / 'sweep') == ['a', 'b']
  assert names(runs) == ['one', 'a', 'b', 'two']
  assert names(runs / '*o*e') == ['one']
  assert names(runs / 'one', runs / 'one', runs / '*') == ['one', 'a', 'b', 'two']


def test_a_run_of_a_sweep_that_has_not_begun_has_the_config_of_the_plan(runs):
  waiting = gather([str(runs / 'sweep')]).records[1]
  assert waiting.state == 'waiting'
  assert waiting.config['optim.learning_rate'] == 2e-3
  assert waiting.config['data.sources'] == ('data/stdlib',)
  assert waiting.num_steps == 1000


def test_one_run_of_a_sweep_is_still_known_as_such(runs):
  found = gather([str(runs / 'sweep/runs/a')])
  assert found.plans['a'].config == 'configs/quickstart.py'
  assert found.metric == 'eval/validation/bits_per_byte'


def test_what_runs_are_ranked_by(runs):
  assert gather([str(runs / 'one')]).metric == 'eval/loss'
  assert gather([str(runs / 'two')]).metric == 'loss'  # no evaluation there
  assert gather([str(runs / 'sweep')]).metric == 'eval/validation/bits_per_byte'
  assert gather([str(runs / 'sweep')], 'loss').metric == 'loss'


def test_names_that_clash_are_told_apart_by_their_folders(runs, tmp_path):
  base = base_config()
  make_plan(tmp_path / 'other', base, {'a': {'optim.learning_rate': 1e-3}})
  make_run(tmp_path / 'other/runs/a', base)
  assert names(runs / 'sweep', tmp_path / 'other') == ['sweep/a', 'b', 'other/a']


@pytest.mark.parametrize(
  ('path', 'told'),
  [
    ('nowhere', 'there is no such folder'),
    ('runs/x*', 'no folder matches it'),
    ('runs/notes', 'no run there; want the folder of a run'),
    ('runs/one/config.json', 'no run there'),
    ('x' * 300, 'cannot be read .File name too long'),
  ],
)
def test_a_path_that_is_no_run_is_an_error(runs, path, told):
  with pytest.raises(UserError, match=told):
    gather([str(runs.parent / path)])


def test_the_home_of_nobody_is_an_error():
  with pytest.raises(UserError, match=r'~nosuch/x.*no home folder'):
    gather(['~nosuch/x'])


def test_beside_runs_a_folder_that_is_none_is_left_out_aloud(runs):
  found = gather([str(runs / 'one'), str(runs / 'notes')])
  assert found.left_out == [str(runs / 'notes')]


def test_a_metric_that_no_run_has_names_those_there_are(runs):
  with pytest.raises(UserError, match='no run has it; there are eval/validation/bits_per_byte'):
    gather([str(runs / 'one')], 'eval/validation/los')


def test_a_metric_that_was_asked_for_is_required_of_a_sweep_too(runs):
  with pytest.raises(UserError, match='--metric=typo: no run has it; there are eval/validation/bits_per_byte'):
    gather([str(runs / 'sweep')], 'typo')
  with pytest.raises(UserError, match='no run has it'):
    gather([str(runs)], 'typo')


def test_more_is_better_of_a_metric_that_is_named_alone(runs):
  with pytest.raises(UserError, match='--maximize: of what'):
    gather([str(runs / 'sweep')], maximize=True)
