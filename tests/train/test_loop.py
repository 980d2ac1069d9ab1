"""Whole runs: what they write, how they go on, what they refuse."""

import json
import os
import signal

import jax
import pytest

from llamax.core.errors import UserError
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
