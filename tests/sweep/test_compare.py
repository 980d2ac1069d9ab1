"""llamax/sweep/compare.py: the table of a comparison."""

import csv
import io

import pytest

from llamax.core.errors import UserError
from llamax.sweep.compare import as_csv, as_text, compare
from llamax.sweep.gather import gather
from tests.sweep.made_runs import base_config, make_run


@pytest.fixture(scope='module')
def base():
  return base_config()


@pytest.fixture(scope='module')
def runs(base, tmp_path_factory):
  root = tmp_path_factory.mktemp('compare')
  make_run(root / 'slow', base, {'optim.learning_rate': 1e-3}, floor=3.0)
  make_run(root / 'best', base, {'optim.learning_rate': 4e-3}, floor=2.0)
  make_run(root / 'new', base, {'optim.learning_rate': 8e-3}, done=0, ended=False, evals=0)
  return root


def lines(*paths, **options):
  return as_text(compare(gather([str(path) for path in paths]), **options)).splitlines()


def test_the_table_has_what_differs_alone_the_best_first(runs):
  found = lines(runs)
  assert found[0].split() == [
    'run', 'learning_rate', 'state', 'step', 'of', 'eval/loss', 'at', 'step', 'bits/byte', 'tokens', 'time',
    'tokens/s', 'mfu',
  ]  # fmt: skip
  assert [line.split()[0] for line in found[2:]] == ['best', 'slow', 'new']
  assert found[2].split()[1:5] == ['0.004', 'finished', '1,000', '1,000']
  assert found[2].split()[-4:] == ['1.02M', '3m25s', '5k', '41.0%']


def test_another_order(runs):
  assert [line.split()[0] for line in lines(runs, sort='learning_rate')[2:]] == ['slow', 'best', 'new']
  assert [line.split()[0] for line in lines(runs, sort='-optim.learning_rate')[2:]] == ['new', 'best', 'slow']
  with pytest.raises(UserError, match='no such column'):
    lines(runs, sort='lerning_rate')


def test_one_run_alone_differs_in_nothing(runs):
  assert 'learning_rate' not in lines(runs / 'best')[0]


def test_keys_that_go_together_share_a_column_when_there_are_many(base, tmp_path):
  for i, width in enumerate((32, 64, 96, 128, 160)):
    together = {
      f'model.{key}': (i + 1) * n for n, key in enumerate(('num_layers', 'num_heads', 'head_dim', 'd_ff'), 1)
    }
    falling = {'optim.learning_rate': 0.1 / width, 'optim.warmup_steps': 1000 - width}
    own = {'train.seed': (3, 1, 4, 5, 9)[i]}
    make_run(tmp_path / str(width), base, together | falling | own | {'model.d_model': width})
  text = '\n'.join(lines(tmp_path))
  head = text.splitlines()[0].split()
  assert head[:4] == ['run', 'd_model', 'seed', 'state']
  assert 'with it optim.learning_rate, model.num_layers, model.num_heads, model.head_dim, model.d_ff' in text
  rows = list(csv.DictReader(io.StringIO(as_csv(compare(gather([str(tmp_path)]))))))
  assert rows[0]['model.d_ff'] in ('4', '8', '12', '16', '20')  # all of them are in the CSV


def test_two_runs_that_differ_in_much_are_told_key_by_key(base, tmp_path):
  make_run(tmp_path / 'a', base)
  changes = {f'model.{key}': 7 for key in ('d_model', 'num_layers', 'num_heads', 'num_kv_heads', 'd_ff')}
  make_run(tmp_path / 'b', base, changes | {'train.seed': 1, 'optim.b2': 0.99})
  text = '\n'.join(lines(tmp_path))
  assert 'all that differs\nkey ' in text
  for key in ('model.d_ff', 'train.seed', 'optim.b2'):
    assert key in text


def test_csv_has_full_numbers(runs):
  rows = list(csv.DictReader(io.StringIO(as_csv(compare(gather([str(runs)]))))))
  assert [row['run'] for row in rows] == ['best', 'slow', 'new']
  record = gather([str(runs / 'best')]).records[0]
  assert float(rows[0]['eval/loss']) == record.value('eval/loss').value
  assert rows[0]['optim.learning_rate'] == '0.004'
  assert rows[2]['eval/loss'] == ''


def test_what_would_move_the_cursor_is_replaced(base, tmp_path):
  make_run(tmp_path / 'a', base, {'data.tokenizer': 'x\x1b[31m\r\ny'})
  make_run(tmp_path / 'b', base)
  text = '\n'.join(lines(tmp_path))
  assert '\x1b' not in text and '\r' not in text and 'x�[31m��y' in text


def test_names_and_keys_cannot_move_the_cursor_either(base, tmp_path):
  for name, changes in (('a\x1b[31m\nb', {}), ('b', {f'evil\x1b[3{i}m.k\udcff': i for i in range(7)})):
    make_run(tmp_path / name, base, changes)
  found = compare(gather([str(tmp_path)]))
  text = as_text(found)
  assert '\x1b' not in text and 'all that differs' in text and 'a�[31m�b' in text
  assert '\x1b' not in as_csv(found).encode().decode()  # without a word that UTF-8 lacks


def test_a_run_whose_config_cannot_be_read_has_no_values(runs, base, tmp_path):
  make_run(tmp_path / 'torn', base)
  (tmp_path / 'torn/config.json').write_text('{"torn')
  found = compare(gather([str(runs), str(tmp_path / 'torn')]))
  torn = next(record for record in found.records if record.name == 'torn')
  assert found.columns[1].header == 'learning_rate'
  assert found.columns[1].cell(torn) == ''
