"""Following the metrics of a run that may be cut back, torn, not there yet."""

import math

from llamax.observe.jsonl import JsonLines
from llamax.sweep.watch import Watched, last_words


def test_it_follows_a_file_that_grows_and_is_cut_back(tmp_path):
  run = Watched(tmp_path, 'x', 'eval/v/loss')
  assert not run.look() and run.result is None and run.step == 0
  lines = JsonLines(tmp_path / 'runs/x/metrics.jsonl')
  lines.append({'step': 1, 'tokens_seen': 10, 'loss': 7.0})
  lines.append({'step': 2, 'tokens_seen': 20, 'loss': math.nan, 'eval/v/loss': 5.0})
  assert run.look() and not run.look()
  assert run.step == 2 and run.result == 5.0
  assert run.curve[0] == (1, 10, 7.0) and math.isnan(run.curve[1][2])
  lines.truncate_after(1)
  lines.append({'step': 2, 'tokens_seen': 20, 'loss': 6.0, 'eval/v/loss': 4.0})
  assert run.look()
  assert run.curve == [(1, 10, 7.0), (2, 20, 6.0)] and run.evals == {2: 4.0}
  with open(tmp_path / 'runs/x/metrics.jsonl', 'ab') as file:
    file.write(b'{"step": 3, "lo')
    file.flush()
    assert not run.look() and run.step == 2
    file.write(b'ss": 1.0}\n')
  assert run.look() and run.curve[-1][0] == 3
  lines.close()


def test_last_words(tmp_path):
  log = tmp_path / 'log'
  assert last_words(log, 2) == []
  log.write_bytes(b'x' * 20000 + b'\none\n\n 10%|#\r 20%|##\r\x1b[31mtwo\x1b[0m\x07 \n\nthree\xff')
  assert last_words(log, 2) == ['two', 'three\ufffd']
