"""llamax/sweep/record.py: what a run's folder tells, whole or not."""

import json
import math
import os

import pytest

from llamax.checkpoint import lease_folder
from llamax.checkpoint.holder import Holder, Process, here
from llamax.sweep.record import read_record
from llamax.sweep.state import RunState
from tests.sweep.made_runs import SPLIT, base_config, make_run


@pytest.fixture(scope='module')
def base():
  return base_config()


def append(path, *lines):
  with open(path, 'a') as file:
    file.writelines(lines)


def test_the_numbers_of_a_whole_run(base, tmp_path):
  folder = make_run(tmp_path / 'run', base, {'optim.learning_rate': 1e-3}, steps=1000, lines=50)
  record = read_record('run', folder)
  assert (record.state, record.note) == ('finished', '')
  assert (record.step, record.num_steps, record.tokens) == (1000, 1000, 1_024_000)
  assert record.config['optim.learning_rate'] == 1e-3
  assert record.config['data.sources'] == ('data/stdlib',)  # as a Config has it
  # Each line's step_seconds is the mean since the line before; the first step has none.
  assert record.seconds == pytest.approx(999 * 1024 / 5000)
  assert record.tokens_per_second == pytest.approx(5000)
  assert record.mfu == pytest.approx(0.41)
  best = record.value('eval/loss')
  assert best == record.value(SPLIT)
  assert best.step == 1000
  assert best.value == min(s.value for s in record.series[SPLIT])


def test_the_best_is_not_the_last(base, tmp_path):
  folder = make_run(tmp_path / 'run', base)
  append(folder / 'metrics.jsonl', json.dumps({'step': 1100, SPLIT: 9.0}) + '\n')
  record = read_record('run', folder)
  assert record.value(SPLIT).step == 1000
  assert record.value(SPLIT, maximize=True).value == 9.0
  assert record.step == 1100


def test_training_loss_is_a_mean_of_the_end_so_that_one_lucky_batch_decides_nothing(base, tmp_path):
  folder = make_run(tmp_path / 'run', base, lines=50)
  record = read_record('run', folder)
  losses = [s.value for s in record.series['loss']]
  assert record.value('loss').value == pytest.approx(sum(losses[-5:]) / 5)


def test_a_run_that_is_being_written(base, tmp_path):
  folder = make_run(tmp_path / 'run', base, done=300, ended=False)
  whole = read_record('run', folder)
  append(folder / 'metrics.jsonl', '{"step": 320, "loss": 3.1, "tok')
  assert read_record('run', folder) == whole
  assert whole.state == 'stopped'  # nobody holds its lease
  lease = folder / 'lease'
  lease.mkdir()
  assert lease_folder.create(lease, Holder(1, here(), '2026-01-01T00:00:00', 60.0, identity='me'))
  assert read_record('run', folder).state == 'running'


@pytest.mark.parametrize(
  ('renewed_ago', 'released', 'state'),
  [(5.0, False, 'running'), (500.0, False, 'stopped'), (5.0, True, 'stopped')],
)
def test_a_holder_on_another_machine_is_judged_by_its_renewals(
  base, tmp_path, renewed_ago, released, state, monkeypatch
):
  folder = make_run(tmp_path / 'run', base, done=300, ended=False)
  (folder / 'lease').mkdir()
  other = Process('elsewhere', 'boot', 'namespace', os.getpid(), 1)
  holder = Holder(1, other, '', 60.0, renewed=1e6 - renewed_ago, released=released)
  lease_folder.create(folder / 'lease', holder)
  monkeypatch.setattr('llamax.sweep.record.time.time', lambda: 1e6)
  assert read_record('run', folder).state == state


def test_a_run_without_a_number_yet(base, tmp_path):
  folder = make_run(tmp_path / 'run', base, ended=False)
  (folder / 'metrics.jsonl').unlink()
  record = read_record('run', folder)
  assert (record.step, record.num_steps, record.tokens, record.mfu) == (0, 1000, None, None)
  assert record.value('eval/loss') is None
  assert record.curve('loss') == []


def test_junk_between_the_lines_is_left_out(base, tmp_path):
  folder = make_run(tmp_path / 'run', base)
  whole = read_record('run', folder)
  append(folder / 'metrics.jsonl', '[1, 2]\n', 'null\n', '\x00\x00\n', '{"loss": "text", "step": true}\n', '\n')
  assert read_record('run', folder) == whole


def test_a_loss_that_is_not_finite_is_told(base, tmp_path):
  folder = make_run(tmp_path / 'run', base)
  append(folder / 'metrics.jsonl', '{"step": 1020, "loss": "NaN", "eval/validation/loss": "Infinity"}\n')
  record = read_record('run', folder)
  assert record.note == 'its last loss is nan'
  assert math.isfinite(record.value(SPLIT).value)
  assert all(math.isfinite(s.value) for s in record.curve('loss'))


def test_what_went_wrong_is_in_the_note(base, tmp_path):
  folder = make_run(tmp_path / 'run', base, done=300, ended=False)
  (folder / 'supervise.jsonl').write_text('{"event": "ended", "code": 2}\n')
  record = read_record('run', folder)
  assert (record.state, record.note) == ('failed', 'exit code 2 (a mistake in the command or its config)')
  told = read_record('run', folder, known=RunState('run', 'pruned', reason='loss 9.1 at step 300'))
  assert (told.state, told.note) == ('pruned', 'loss 9.1 at step 300')
  (folder / 'config.json').write_text('{"torn')
  assert 'cannot be read' in read_record('run', folder).note


def test_a_longer_run_after_a_finished_one_is_not_finished(base, tmp_path):
  folder = make_run(tmp_path / 'run', base)
  append(folder / 'ledger.jsonl', '{"event": "start", "step": 1000}\n')
  assert read_record('run', folder).state == 'stopped'


def test_a_run_that_a_sweep_calls_finished_is_so_where_its_folder_cannot_be_seen(base, tmp_path):
  planned = {'train.num_steps': 1000}
  record = read_record('run', tmp_path / 'run', known=RunState('run', 'finished'), planned=planned)
  assert (record.state, record.num_steps) == ('finished', 1000)
  assert record.note == f'its folder {tmp_path / "run"} is not here'


def test_a_line_between_two_with_a_rate_loses_no_time(base, tmp_path):
  folder = make_run(tmp_path / 'run', base)
  whole = read_record('run', folder)
  path = folder / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  at = next(i for i, line in enumerate(lines) if json.loads(line)['step'] == 500)
  # An update that was left out is told at once, without a rate (docs/metrics.md).
  lines.insert(at, '{"step": 493, "loss": "NaN", "grad_norm": "NaN", "skipped": 1.0}\n')
  path.write_text(''.join(lines))
  assert read_record('run', folder).seconds == pytest.approx(whole.seconds)


def test_a_run_that_was_resumed_counts_each_step_once_but_the_first_of_each_start(base, tmp_path):
  folder = make_run(tmp_path / 'run', base)
  path = folder / 'metrics.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  # As llamax train leaves it: cut back to the checkpoint, a line without a rate for the step that compiles.
  for start in (200, 500, 700):
    at = next(i for i, line in enumerate(lines) if line['step'] > start)
    lines.insert(at, {'step': start + 1, 'loss': 4.0, 'tokens': 1024.0, 'tokens_seen': 1024 * (start + 1)})
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  record = read_record('run', folder)
  assert (record.step, record.tokens) == (1000, 1_024_000)
  assert record.seconds == pytest.approx(996 * 1024 / 5000)


def test_numbers_that_cannot_be_are_left_out(base, tmp_path):
  folder = make_run(tmp_path / 'run', base)
  whole = read_record('run', folder)
  append(folder / 'metrics.jsonl', '{"step": "NaN", "eval/validation/loss": 3}\n', '{"step": 1e999}\n')
  append(folder / 'metrics.jsonl', '{"step": 1000, "tokens_seen": "NaN", "step_seconds": 1, "mfu": "NaN"}\n')
  assert read_record('run', folder) == whole
