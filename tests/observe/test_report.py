"""Curves drawn from files with known content, tables by exact strings."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from llamax.observe import report


def write_metrics(workdir, *records):
  workdir.mkdir(exist_ok=True)
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
  return workdir


def falling_run(n, start=9.0, floor=3.0):
  for i in range(n):
    step = 10 * (i + 1)
    yield {'step': step, 'loss': floor + (start - floor) * np.exp(-i / 5), 'tokens_seen': 700 * step}


def test_the_curve_is_what_the_file_says(tmp_path):
  write_metrics(
    tmp_path,
    {'step': 10, 'loss': 5.0, 'tokens_seen': 70, 'z_loss': 1.0},
    {'step': 20, 'loss': 'NaN', 'tokens_seen': 140},
    {'step': 20, 'eval/valid/loss': 4.5, 'eval/valid/perplexity': 90.0, 'eval/code/loss': 'Infinity'},
    {'step': 30, 'loss': 4.0},
  )
  curve = report.read_curve(tmp_path)
  assert (curve.steps, curve.losses) == ([10, 30], [5.0, 4.0])
  assert curve.broken == [20, 20]
  assert curve.tokens == [(10, 70), (20, 140)]
  assert curve.splits == {'valid': [(20, 4.5)]}


def test_smoothing_is_a_centred_mean():
  losses = np.random.default_rng(0).normal(size=400)
  smooth = report.Curve(losses=list(losses)).smooth()
  assert smooth[0] == losses[0]
  np.testing.assert_allclose(smooth[2], losses[:5].mean())
  np.testing.assert_allclose(smooth[200], losses[195:206].mean())
  np.testing.assert_allclose(smooth[-1], losses[-6:].mean())


def test_smoothing_keeps_a_straight_line():
  falling = list(np.linspace(9, 3, 160))
  np.testing.assert_allclose(report.Curve(losses=falling).smooth()[:150], falling[:150])


def test_the_picture_is_written_whole(tmp_path):
  write_metrics(tmp_path, *falling_run(30), {'step': 100, 'eval/valid/loss': 4.0})
  assert report.loss_curve(tmp_path) == f'loss curve: {tmp_path}/loss_curve.png'
  data = (tmp_path / 'loss_curve.png').read_bytes()
  assert data.startswith(b'\x89PNG\r\n\x1a\n') and data.endswith(b'IEND\xaeB`\x82')
  assert int.from_bytes(data[16:20], 'big') == 1200
  assert sorted(os.listdir(tmp_path)) == ['loss_curve.png', 'metrics.jsonl']


def test_a_picture_that_cannot_be_written_keeps_the_old_one(tmp_path, monkeypatch):
  write_metrics(tmp_path, *falling_run(3))
  (tmp_path / 'loss_curve.png').write_bytes(b'old')

  def full(source, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  assert report.loss_curve(tmp_path) == (
    f'no loss curve: cannot write {tmp_path}/loss_curve.png: No space left on device'
  )
  assert (tmp_path / 'loss_curve.png').read_bytes() == b'old'


def drawn(curve):
  """The axes of the picture, before it becomes pixels."""
  from matplotlib.figure import Figure

  axes = Figure().add_subplot()
  report._draw(axes, curve)
  return axes


def test_what_is_in_the_picture(tmp_path):
  write_metrics(
    tmp_path, *falling_run(30), {'step': 100, 'eval/valid/loss': 4.0}, {'step': 200, 'eval/valid/loss': 3.5}
  )
  axes = drawn(report.read_curve(tmp_path))
  assert (axes.get_xlabel(), axes.get_ylabel()) == ('step', 'loss (nats per token)')
  labels = [text.get_text() for text in axes.get_legend().get_texts()]
  assert labels[0].startswith('train 3.0') and labels[1:] == ['valid 3.500']
  points = axes.lines[2]
  assert (list(points.get_xdata()), list(points.get_ydata())) == ([100, 200], [4.0, 3.5])
  (tokens,) = axes.child_axes
  assert tokens.get_xlabel() == 'tokens'
  axes.set_xlim(100, 200)
  axes.figure.draw_without_rendering()
  np.testing.assert_allclose(tokens.get_xlim(), (70_000, 140_000))


def test_without_tokens_there_is_one_axis(tmp_path):
  write_metrics(tmp_path, {'step': 1, 'loss': 2.0}, {'step': 2, 'loss': 1.0})
  assert drawn(report.read_curve(tmp_path)).child_axes == []


def test_a_long_run_is_shown_from_where_it_slows_down(tmp_path):
  write_metrics(tmp_path, *falling_run(300))
  bottom, top = drawn(report.read_curve(tmp_path)).get_ylim()
  assert 2.7 < bottom < 3 and 4 < top < 6
  write_metrics(tmp_path, *falling_run(100))
  assert drawn(report.read_curve(tmp_path)).get_ylim()[1] > 9


def test_a_split_that_stays_high_is_in_sight(tmp_path):
  write_metrics(tmp_path, *falling_run(300, start=30.0), {'step': 1000, 'eval/far/loss': 13.0})
  assert 13 < drawn(report.read_curve(tmp_path)).get_ylim()[1] < 15


def test_the_terminal_curve_is_plain_text(tmp_path):
  write_metrics(tmp_path, *falling_run(30), {'step': 100, 'eval/valid/loss': 4.0}, {'step': 110, 'loss': 'NaN'})
  text = report.terminal_curve(tmp_path, width=70, height=15)
  assert '\x1b' not in text
  lines = text.splitlines()
  assert lines[0] == ('loss by step (line: train 3.022, x: valid 4.000, not finite 1 times, first at step 110)')
  assert 10 < len(lines) <= 16 and max(map(len, lines[1:])) <= 70
  assert 'x' in ''.join(lines[1:])
  assert lines[-1].split() == ['10', '68', '126', '184', '242', '300']
  assert report.terminal_curve(tmp_path, width=70, height=15) == text


@pytest.mark.parametrize('draw', [report.loss_curve, report.terminal_curve])
def test_missing_data_is_said(tmp_path, draw):
  assert draw(tmp_path) == f'no loss curve: there is no {tmp_path}/metrics.jsonl'
  write_metrics(tmp_path, {'step': 1, 'loss': 'NaN'}, {'step': 1, 'tokens_seen': 3})
  assert draw(tmp_path) == f'no loss curve: {tmp_path}/metrics.jsonl has no finite loss yet'
  assert os.listdir(tmp_path) == ['metrics.jsonl']


@pytest.mark.parametrize('draw', [report.loss_curve, report.terminal_curve])
@pytest.mark.parametrize(
  'record', [{'step': 5, 'loss': 2.0, 'tokens_seen': 3}, {'step': 5, 'eval/valid/loss': 2.0}]
)
def test_one_point_is_a_curve(tmp_path, draw, record):
  write_metrics(tmp_path, record)
  assert 'no loss curve' not in draw(tmp_path)


def test_drawing_leaves_no_global_state(tmp_path):
  write_metrics(tmp_path, *falling_run(5))
  code = (
    'import sys\n'
    'from llamax.observe import report\n'
    'assert report.loss_curve(sys.argv[1]).startswith("loss curve")\n'
    'assert "matplotlib.pyplot" not in sys.modules\n'
  )
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  subprocess.run([sys.executable, '-c', code, tmp_path], env=environment, check=True)


def test_table():
  rows = [
    ('embed/table', 'V D', 32_000, '1.2 MB', 0.25),
    ('layers/attn/wq', 'L D N H', 1_234_567, '22.5 MB', None),
    ('', 'x', 0, '3 MB', 12.0),
  ]
  assert report.table(rows, ('array', 'dims', 'params', 'memory', 'share')) == (
    'array           dims        params   memory  share\n'
    '--------------  -------  ---------  -------  -----\n'
    'embed/table     V D         32,000   1.2 MB   0.25\n'
    'layers/attn/wq  L D N H  1,234,567  22.5 MB\n'
    '                x                0     3 MB     12'
  )


def test_a_table_of_no_rows_is_its_headers():
  assert report.table([], ('a', 'bc')) == 'a  bc\n-  --'


def test_a_row_of_another_length_is_our_mistake():
  with pytest.raises(ValueError):
    report.table([(1, 2)], ('a',))
