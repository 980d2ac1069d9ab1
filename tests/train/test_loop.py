"""Whole runs: what they write, how they go on, what they refuse."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import jax
import pytest

from llamax.checkpoint.steps import meta, steps
from llamax.core.errors import UserError
from llamax.core.exits import RESUME, Stop
from llamax.observe.jsonl import read_metrics
from llamax.observe.ledger import read_ledger
from llamax.train import loop


@pytest.fixture
def quiet():
  lines = []
  return lines, lines.append


def losses(workdir):
  """step -> the loss as it stands in metrics.jsonl: equal texts are equal bits."""
  found = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    record = json.loads(line)
    if 'loss' in record:
      assert record['step'] not in found, 'a step is logged twice'
      found[record['step']] = (record['loss'], record['grad_norm'], record['tokens_seen'])
  return found


@pytest.fixture
def stop_after(monkeypatch):
  """(step, signal) -> the run gets the signal while that step is shown."""

  def arm(step, number=signal.SIGTERM):
    original = loop.make_progress

    def make(*args):
      progress = original(*args)
      advance = progress.advance

      def advance_then_signal(done):
        advance(done)
        if done == step:
          os.kill(os.getpid(), number)

      progress.advance = advance_then_signal
      return progress

    monkeypatch.setattr(loop, 'make_progress', make)
    return lambda: monkeypatch.setattr(loop, 'make_progress', original)

  return arm


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  return {'workdir': tmp_path_factory.mktemp('whole') / 'run'}


def undisturbed(whole_run, run_config):
  if 'result' not in whole_run:
    whole_run['result'] = loop.run(run_config(), whole_run['workdir'], say=lambda text: None)
  return whole_run['workdir'], whole_run['result']


def test_a_run_learns_and_writes_what_it_says(whole_run, run_config):
  workdir, result = undisturbed(whole_run, run_config)
  assert result.finished and result.step == 8
  seen = losses(workdir)
  assert list(seen) == list(range(1, 9))
  assert seen[8][0] < seen[1][0]
  assert {'eval/validation/loss', 'eval/validation/bits_per_byte'} <= set(result.metrics)
  for name in ('config.json', 'tokenizer.model', 'loss_curve.png', 'samples.jsonl', 'samples/00000008.txt'):
    assert (workdir / name).stat().st_size > 0, name
  steps = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
  assert steps == [6, 8]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT], ids=str)
def test_stopped_then_resumed_is_bitwise_the_undisturbed_run(
  whole_run, run_config, tmp_path, stop_after, number, quiet
):
  workdir, _ = undisturbed(whole_run, run_config)
  disarm = stop_after(5, number)
  result = loop.run(run_config(), tmp_path / 'run', say=quiet[1])
  disarm()
  assert (result.step, result.finished) == (5, False)
  result = loop.run(run_config(), tmp_path / 'run', say=quiet[1])
  assert result.finished
  assert any('resuming after step 5' in line for line in quiet[0])
  assert losses(tmp_path / 'run') == losses(workdir)


def test_a_crash_loses_no_more_than_since_the_last_checkpoint(
  whole_run, run_config, tmp_path, monkeypatch, quiet
):
  workdir, _ = undisturbed(whole_run, run_config)

  def crash(*args):
    raise RuntimeError('power cut')

  cfg = run_config()
  monkeypatch.setattr(loop, 'check_saves', lambda *_: crash() if len(losses(tmp_path / 'run')) == 5 else None)
  with pytest.raises(RuntimeError, match='power cut'):
    loop.run(cfg, tmp_path / 'run', say=quiet[1])
  monkeypatch.undo()
  loop.run(cfg, tmp_path / 'run', say=quiet[1])
  assert any('resuming after step 3' in line for line in quiet[0])
  assert losses(tmp_path / 'run') == losses(workdir)


def test_another_mesh_goes_on_within_rounding(whole_run, run_config, tmp_path, stop_after, quiet):
  workdir, _ = undisturbed(whole_run, run_config)
  disarm = stop_after(4)
  loop.run(run_config(), tmp_path / 'run', say=quiet[1])
  disarm()
  loop.run(run_config(**{'mesh.data': 1, 'mesh.fsdp': 8, 'mesh.tensor': 1}), tmp_path / 'run', say=quiet[1])
  want, got = losses(workdir), losses(tmp_path / 'run')
  for step in range(1, 9):
    assert got[step][0] == pytest.approx(want[step][0], rel=1e-6)
    assert got[step][2] == want[step][2]


def test_a_complete_run_says_so(whole_run, run_config, quiet):
  workdir, _ = undisturbed(whole_run, run_config)
  before = (workdir / 'metrics.jsonl').read_bytes()
  result = loop.run(run_config(), workdir, say=quiet[1])
  assert result.finished and 'this run is complete' in quiet[0][-1]
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_a_workdir_of_another_config_is_refused_untouched(whole_run, run_config):
  workdir, _ = undisturbed(whole_run, run_config)
  before = (workdir / 'config.json').read_bytes()
  with pytest.raises(UserError, match=r'optim.learning_rate'):
    loop.run(run_config(**{'optim.learning_rate': 1.0}), workdir, say=print)
  assert (workdir / 'config.json').read_bytes() == before


def test_ids_past_the_vocabulary_are_refused_before_training(run_config, tmp_path):
  with pytest.raises(UserError, match='vocab'):
    loop.run(run_config(**{'model.vocab_size': 500}), tmp_path / 'run', say=print)


def test_a_prompt_that_cannot_be_continued_is_refused_before_training(run_config, tmp_path):
  with pytest.raises(UserError, match='max_seq_len'):
    loop.run(run_config(**{'sample.max_new_tokens': 10**6}), tmp_path / 'run', say=print)
  assert not (tmp_path / 'run/metrics.jsonl').exists()


def test_a_mesh_that_does_not_fit_is_refused(run_config, tmp_path):
  with pytest.raises(UserError, match=r'mesh.*12 devices, there are 8'):
    loop.run(run_config(**{'mesh.fsdp': 3}), tmp_path / 'run', say=print)
  with pytest.raises(UserError, match=r'nearest batch in sequences: 4 or 8'):
    loop.run(run_config(**{'train.batch_size': 6}), tmp_path / 'run', say=print)
  with pytest.raises(UserError, match=r'mesh.tensor=8 does not divide dim N=4'):
    loop.run(run_config(**{'mesh.data': 1, 'mesh.fsdp': 1, 'mesh.tensor': 8}), tmp_path / 'run', say=print)


def test_a_missing_dataset_names_the_command_that_makes_it(run_config, tmp_path):
  with pytest.raises(UserError, match='prepare'):
    loop.run(run_config(**{'data.sources': (str(tmp_path / 'none'),)}), tmp_path / 'run', say=print)


def test_nothing_moves_between_host_and_devices_by_accident(whole_run, run_config, tmp_path, quiet):
  with jax.transfer_guard_device_to_device('disallow'):
    loop.run(run_config(**{'train.num_steps': 4, 'optim.warmup_steps': 1}), tmp_path / 'run', say=quiet[1])


def test_a_folder_in_the_place_of_the_tokenizer_is_a_mistake(run_config, tmp_path):
  (tmp_path / 'run/tokenizer.model').mkdir(parents=True)
  with pytest.raises(UserError, match=r'tokenizer\.model cannot be written .*in the way'):
    loop.run(run_config(), tmp_path / 'run', say=print)


@pytest.fixture
def order(monkeypatch):
  """What a run does, in its order, as (what, step); `signal_at`: the step whose evaluation SIGTERM comes in."""
  seen = SimpleNamespace(done=[], signal_at=None)

  def note(name):
    original = getattr(loop, name)

    def noted(r, state, step, *rest):
      seen.done.append((name, step))
      if name == 'evaluate' and step == seen.signal_at:
        os.kill(os.getpid(), signal.SIGTERM)
      return original(r, state, step, *rest)

    monkeypatch.setattr(loop, name, noted)

  for name in ('evaluate', 'save', 'save_last'):
    note(name)
  return seen


def test_an_evaluation_ends_when_the_run_is_to_stop(whole_run, run_config, tmp_path, order, quiet):
  workdir, _ = undisturbed(whole_run, run_config)
  order.signal_at = 4
  order.done.clear()
  result = loop.run(run_config(), tmp_path / 'run', say=quiet[1])
  assert (result.step, result.finished, result.signal, result.saved) == (4, False, signal.SIGTERM, True)
  assert order.done == [('save', 3), ('evaluate', 4), ('save_last', 4)]
  assert 'eval/' not in (tmp_path / 'run/metrics.jsonl').read_text()
  assert not (tmp_path / 'run/samples').exists()
  order.signal_at = None
  loop.run(run_config(), tmp_path / 'run', say=quiet[1])
  assert losses(tmp_path / 'run') == losses(workdir)
  assert evaluations(tmp_path / 'run') == evaluations(workdir)


def evaluations(workdir):
  """[(step, {name: number})]: no clock has a part in them."""
  found = read_metrics(workdir / 'metrics.jsonl')
  lines = [(line['step'], {k: v for k, v in line.items() if k.startswith('eval/')}) for line in found]
  return [line for line in lines if line[1]]


@pytest.mark.parametrize('at', [4, 8])
def test_a_kill_between_a_save_and_its_evaluation_costs_no_point_of_the_curve(
  whole_run, run_config, tmp_path, monkeypatch, quiet, at
):
  workdir, _ = undisturbed(whole_run, run_config)
  changes = {'checkpoint.every': 4, 'checkpoint.keep_best': 0}

  def die(r, state, step):
    if step == at:
      raise ZeroDivisionError('as if killed')
    return evaluate(r, state, step)

  evaluate = loop.evaluate
  monkeypatch.setattr(loop, 'evaluate', die)
  with pytest.raises(ZeroDivisionError):
    loop.run(run_config(**changes), tmp_path / 'run', say=quiet[1])
  assert [step for step, _ in evaluations(tmp_path / 'run')] == ([] if at == 4 else [4])
  monkeypatch.setattr(loop, 'evaluate', evaluate)
  result = loop.run(run_config(**changes), tmp_path / 'run', say=quiet[1])
  assert (result.step, result.finished) == (8, True)
  assert evaluations(tmp_path / 'run') == evaluations(workdir)
  assert losses(tmp_path / 'run') == losses(workdir)
  assert (tmp_path / 'run/samples.jsonl').exists()
  assert [event['finished'] for event in read_ledger(tmp_path / 'run') if event['event'] == 'end'] == [True]
  quiet[0].clear()
  loop.run(run_config(**changes), tmp_path / 'run', say=quiet[1])
  assert 'this run is complete' in quiet[0][-1]


@pytest.mark.parametrize('keep_best', [0, 1])
def test_a_save_waits_only_for_an_evaluation_that_it_is_judged_by(
  run_config, tmp_path, order, quiet, keep_best
):
  """To the end: asked to stop in its last evaluation, a run makes up for it at the next start."""
  order.signal_at = 3
  changes = {'train.num_steps': 3, 'optim.warmup_steps': 1, 'checkpoint.keep_best': keep_best}
  result = loop.run(
    run_config(**changes, **{'checkpoint.every': 2, 'eval.every': 2}), tmp_path / 'run', say=quiet[1]
  )
  assert (result.step, result.finished, result.signal, result.saved) == (3, False, signal.SIGTERM, True)
  first = [('save', 2), ('evaluate', 2)] if keep_best == 0 else [('evaluate', 2), ('save', 2)]
  last = [('save', 3), ('evaluate', 3)] if keep_best == 0 else [('evaluate', 3)]
  assert order.done == [*first, *last, ('save_last', 3)]
  checkpoints = tmp_path / 'run/checkpoints'
  assert steps(checkpoints) == [2, 3]
  assert [('validation_loss' in meta(checkpoints / str(step))) for step in (2, 3)] == [keep_best == 1, False]
  assert [step for step, _ in evaluations(tmp_path / 'run')] == [2]
  order.signal_at = None
  again = loop.run(
    run_config(**changes, **{'checkpoint.every': 2, 'eval.every': 2}), tmp_path / 'run', say=quiet[1]
  )
  assert again.finished and 'eval/validation/loss' in str(again.metrics)
  assert [step for step, _ in evaluations(tmp_path / 'run')] == [2, 3]


def test_sigterm_before_the_first_step_gives_the_workdir_back(run_config, tmp_path, monkeypatch):
  def ask(cfg):
    os.kill(os.getpid(), signal.SIGTERM)
    raise RuntimeError('not heard')

  monkeypatch.setattr(loop, 'open_data', ask)
  with pytest.raises(Stop, match='before the first step') as end:
    loop.run(run_config(), tmp_path / 'run', say=lambda text: None)
  assert end.value.code == RESUME and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  (lease,) = (tmp_path / 'run/lease').iterdir()
  assert json.loads(lease.read_text())['released']


def test_a_screen_that_cannot_be_written_does_not_end_a_run(run_config, tmp_path, monkeypatch):
  def train(r, start):
    r.progress.say('a line')
    r.progress.train(1, {'loss': 6.0})
    r.writer.write(1, {'loss': 6.0, 'grad_norm': 1.0, 'tokens_seen': 9})
    return loop.Result(8, True, {})

  def write(text=''):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(loop, 'train', train)
  for name in ('terminal_curve', 'loss_curve'):
    monkeypatch.setattr(loop.report, name, lambda workdir: 'a curve')
  full = SimpleNamespace(write=write, flush=write, isatty=lambda: False)
  with monkeypatch.context() as patched:
    patched.setattr(sys, 'stdout', full)
    patched.setattr(sys, 'stderr', full)
    result = loop.run(run_config(), tmp_path / 'run')
  assert result.finished and losses(tmp_path / 'run')
