"""An evaluation of several processes ends at one batch when any of them is asked to stop."""

import signal
import time

import pytest

from llamax.checkpoint.steps import steps
from llamax.core import exits
from llamax.observe.jsonl import read_metrics
from tests.faults import processes


def test_a_sigterm_to_any_host_ends_the_evaluation_of_all(server, tiny_data, tmp_path, scale):
  tries = scale(quick=0, ci=2, soak=10)
  if not tries:
    pytest.skip('with --scale=ci')
  slow = dict.fromkeys((0, 1), 'llamax.train.between.own_rows:0:0.4')  # Each batch takes longer.
  changes = {'train.num_steps': 100, 'eval.every': 2, 'checkpoint.every': 2, 'checkpoint.keep_best': 0}
  changes |= {'eval.splits': f'held={tiny_data}:train', 'eval.num_batches': 60}
  for attempt in range(tries):
    workdir = tmp_path / str(attempt)
    run = processes.start(server, 2, tiny_data, workdir, slow, **changes)
    end = time.monotonic() + 120
    while steps(workdir / 'checkpoints') != [2]:  # Begun before the evaluation, which goes on.
      assert time.monotonic() < end, run.screens()
      time.sleep(0.05)
    run[1 - attempt % 2].kill(signal.SIGTERM)
    asked = time.monotonic()
    assert run.codes(60) == [exits.RESUME] * 2, run.screens()
    assert 'the evaluation at step 2 is left to the next start' in run[0].screen(), run.screens()
    assert 'stopped after step 2, saved' in run[0].screen(), run.screens()
    assert steps(workdir / 'checkpoints') == [2]
    print(f'\n{attempt}: ended {time.monotonic() - asked:.1f} s after it was asked to')
  # The next start begins with it, on all processes.
  run = processes.start(server, 2, tiny_data, workdir, **changes)
  run.wait_for('eval held after step')
  run[0].kill(signal.SIGTERM)
  found = [line['step'] for line in read_metrics(workdir / 'metrics.jsonl') if 'eval/held/loss' in line]
  assert found[0] == 2
  assert run.codes(120) == [exits.RESUME] * 2, run.screens()
