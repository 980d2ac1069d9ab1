"""The progress line by exact strings, on a terminal or not."""

import io
import math
import os
import subprocess
import sys

import pytest

from llamax.observe.progress import Bar, Lines, eval_lines, human, human_time, make_progress, train_line

METRICS = {
  'loss': 3.21456, 'perplexity': 24.89, 'learning_rate': 3e-4, 'grad_norm': 0.8123,
  'tokens_per_second': 12345.0, 'tokens_per_second_per_device': 1543.0, 'mfu': 0.412, 'mfu_palm': 0.44,
  'data_wait_fraction': 0.003, 'memory_gb': 1.434, 'eta_seconds': 252.0, 'param_norm': 12.0,
}  # fmt: skip


@pytest.mark.parametrize(
  'value, text',
  [
    (0, '0'), (7, '7'), (950, '950'), (999.4, '999'), (999.6, '1k'), (1234, '1.23k'), (2_100_000, '2.1M'),
    (2_000_000, '2M'), (405e9, '405B'), (15.6e12, '15.6T'), (3e18, '3000P'), (0.5, '0.5'), (0.01234, '0.0123'),
    (-1234, '-1.23k'), (100, '100'), (10, '10'), (math.inf, 'inf'), (math.nan, 'nan'),
  ],
)  # fmt: skip
def test_human(value, text):
  assert human(value) == text


@pytest.mark.parametrize(
  'seconds, text',
  [
    (0, '0s'), (42.4, '42s'), (59.7, '1m00s'), (252, '4m12s'), (3599.6, '1h00m'), (11_100, '3h05m'),
    (187_200, '2d04h'), (math.inf, '?'), (math.nan, '?'),
  ],
)  # fmt: skip
def test_human_time(seconds, text):
  assert human_time(seconds) == text


def test_the_whole_line():
  assert train_line(120, 1000, METRICS) == (
    'step  120/1000 | loss 3.2146 | ppl 24.9 | eta 4m12s | lr 3.00e-04 | grad 0.812 | '
    '12.3k tok/s (1.54k/device) | mfu 41.2% (palm 44.0%) | wait 0.3% | mem 1.43GB'
  )


def test_a_line_leaves_out_what_is_not_known():
  assert train_line(1, 10, {'loss': math.nan, 'compile_seconds': 3.2}) == 'step  1/10 | loss nan | compile 3s'
  one_device = {'tokens_per_second': 950.0, 'tokens_per_second_per_device': 950.0}
  assert train_line(10, 10, one_device) == 'step 10/10 | 950 tok/s'


def test_each_split_has_a_line():
  metrics = {
    'eval/valid/loss': 3.1, 'eval/valid/perplexity': 22.2, 'eval/valid/bits_per_byte': 1.23456,
    'eval/code/loss': 2.0, 'eval/valid/tokens': 123_456, 'loss': 9.0,
  }  # fmt: skip
  assert eval_lines(500, metrics) == [
    'eval valid after step 500 | loss 3.1000 | ppl 22.2 | 1.2346 bits/byte | 123k tokens',
    'eval code after step 500 | loss 2.0000',
  ]


def test_plain_lines_where_there_is_no_terminal():
  stream = io.StringIO()
  progress = make_progress(30, 0, stream)
  assert isinstance(progress, Lines)
  progress.advance(1)
  progress.train(10, {'loss': 2.5})
  progress.evaluated(10, {'eval/valid/loss': 2.25})
  progress.say('sample: é')
  progress.close()
  assert stream.getvalue() == ('step 10/30 | loss 2.5000\neval valid after step 10 | loss 2.2500\nsample: é\n')


def test_a_stream_that_lacks_a_letter_gets_a_question_mark():
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding='ascii')
  make_progress(30, 0, stream).say('é→e')
  assert raw.getvalue() == b'??e\n'


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_gets_a_bar_with_texts_above(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  stream = Terminal()
  progress = make_progress(200, 40, stream)
  assert isinstance(progress, Bar)
  progress.train(50, METRICS)
  progress.say('sample: x')
  progress.advance(60)
  progress.close()
  shown = stream.getvalue()
  assert '40/200  20%|' in shown
  assert '50/200  25%|' in shown
  assert 'loss 3.2146 | ppl 24.9 | eta 4m12s' in shown
  assert 'lr 3.00e-04  grad 0.812  12.3k tok/s (1.54k/device)  mfu 41.2% (palm 44.0%)' in shown
  assert 'sample: x\n' in shown
  assert '60/200  30%|' in shown


def test_a_dumb_terminal_gets_lines(monkeypatch):
  monkeypatch.setenv('TERM', 'dumb')
  assert isinstance(make_progress(30, 0, Terminal()), Lines)


def test_importing_the_room_is_light():
  heavy = '{"jax", "numpy", "matplotlib", "plotext", "tqdm", "tensorboardX", "wandb"}'
  code = (
    'import sys, llamax.observe.progress, llamax.observe.writer, llamax.observe.report, llamax.observe.perf\n'
    f'sys.exit(str(sorted({heavy} & set(sys.modules))) if {heavy} & set(sys.modules) else 0)'
  )
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, '')
