"""The table at the end of a sweep."""

import json

import pytest

from llamax.sweep.compare import compare
from llamax.sweep.gather import gather
from llamax.sweep.plan import read_plan
from llamax.sweep.result import result_table
from llamax.sweep.state import run_states
from tests.sweep.made_runs import SPLIT, base_config, make_plan, make_run

LOSSES = {'slow': [4.0, 3.5], 'none': [], 'overfits': [3.0, 5.0]}


@pytest.mark.parametrize(('direction', 'sign'), [('minimize', 1), ('maximize', -1)])
def test_runs_stand_by_their_best_as_in_the_report(tmp_path, direction, sign):
  base = base_config()
  points = {name: {'train.seed': seed} for seed, name in enumerate(LOSSES, 1)}
  make_plan(tmp_path, base, points, direction=direction)
  for name, losses in LOSSES.items():
    metrics = make_run(tmp_path / 'runs' / name, base, points[name], evals=0) / 'metrics.jsonl'
    lines = [json.dumps({'step': 500 * i, SPLIT: sign * loss}) + '\n' for i, loss in enumerate(losses, 1)]
    metrics.write_text(metrics.read_text() + ''.join(lines))
  shown = result_table(tmp_path, read_plan(tmp_path), run_states(tmp_path, list(LOSSES))).splitlines()
  assert f'best {SPLIT}' in shown[0] and f'{sign * 3.0:.4f}' in shown[-3]
  assert [line.split()[0] for line in shown[-3:]] == ['overfits', 'slow', 'none']
  assert compare(gather([str(tmp_path)])).best.folder.name == 'overfits'
