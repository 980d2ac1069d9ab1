"""JsonLines against kills, torn lines, full disks."""

import errno
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.observe.jsonl import JsonLines, read_lines, read_metrics


def write(path, *records):
  lines = JsonLines(path)
  for record in records:
    lines.append(record)
  lines.close()


def test_lines_are_json_that_a_strict_reader_takes(tmp_path):
  path = tmp_path / 'new' / 'metrics.jsonl'
  write(path, {'step': 1, 'loss': math.nan, 'a': math.inf, 'b': -math.inf, 'c': np.float64(math.nan)})
  write(path, {'step': 2, 'loss': 0.1, 'tokens_seen': 2**60 + 1})

  def refuse(constant):
    raise AssertionError(constant)

  first, second = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
  assert first == {'step': 1, 'loss': 'NaN', 'a': 'Infinity', 'b': '-Infinity', 'c': 'NaN'}
  assert second == {'step': 2, 'loss': 0.1, 'tokens_seen': 2**60 + 1}
  back = read_metrics(path)[0]
  assert math.isnan(back['loss']) and back['a'] == math.inf and back['b'] == -math.inf
  assert read_lines(path)[0]['loss'] == 'NaN'


def test_a_line_torn_at_any_byte_is_repaired(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write(path, {'step': 1, 'loss': 2.5}, {'step': 2, 'loss': 1.5})
  whole = path.read_bytes()
  first = whole.index(b'\n') + 1
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    write(path, {'step': 9})
    complete = (size >= first - 1) + (size >= len(whole) - 1)
    assert [r['step'] for r in read_lines(path)] == [*[1, 2][:complete], 9], size
    assert path.read_bytes().count(b'\n') == complete + 1


def test_a_torn_line_longer_than_a_block_is_found(tmp_path):
  path = tmp_path / 'samples.jsonl'
  write(path, {'step': 1, 'text': 'x' * 300_000})
  path.write_bytes(path.read_bytes() + b'{"step": 2, "text": "' + b'y' * 300_000)
  write(path, {'step': 3})
  assert [r['step'] for r in read_lines(path)] == [1, 3]


def test_zeros_that_a_power_cut_left_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write(path, {'step': 1})
  path.write_bytes(path.read_bytes() + b'\0' * 500)
  write(path, {'step': 2})
  assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_lines_outlive_a_killed_process(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  code = (
    'import os, signal, sys\n'
    'from llamax.observe.jsonl import JsonLines\n'
    'lines = JsonLines(sys.argv[1])\n'
    'for step in range(50): lines.append({"step": step})\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, '-c', code, path], env=environment, check=False)
  assert done.returncode == -signal.SIGKILL
  assert [r['step'] for r in read_lines(path)] == list(range(50))


def test_truncate_drops_later_steps_then_appends_again(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = JsonLines(path)
  for step in (10, 20, 20, 30, 40):
    lines.append({'step': step})
  assert lines.truncate_after(20) == 2
  lines.append({'step': 30, 'again': 1})
  lines.close()
  assert read_lines(path) == [{'step': 10}, {'step': 20}, {'step': 20}, {'step': 30, 'again': 1}]
  assert os.listdir(tmp_path) == ['metrics.jsonl']


def test_truncate_with_nothing_to_drop_leaves_the_file_itself(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = JsonLines(path)
  lines.append({'step': 10})
  inode = path.stat().st_ino
  assert lines.truncate_after(10) == 0
  assert path.stat().st_ino == inode
  lines.close()


def test_truncate_that_fails_keeps_every_line(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
  lines = JsonLines(path)
  lines.append({'step': 10})
  lines.append({'step': 20})
  before = path.read_bytes()

  def full(source, target):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(UserError, match=r'after step 10 from .*metrics\.jsonl: No space left'):
    lines.truncate_after(10)
  lines.close()
  assert path.read_bytes() == before


class FullDisk:
  """A raw file that takes three bytes, then none."""

  def __init__(self, file):
    self._file = file

  def __getattr__(self, name):
    return getattr(self._file, name)

  def write(self, data):
    if len(data) < 10:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return self._file.write(data[:3])


def test_half_a_line_on_a_full_disk_is_taken_back(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = JsonLines(path)
  lines.append({'step': 1})
  real = lines._file
  lines._file = FullDisk(real)
  with pytest.raises(OSError, match='No space left'):
    lines.append({'step': 2, 'loss': 1.25})
  lines._file = real
  lines.append({'step': 3})
  lines.close()
  assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'


def test_a_path_that_cannot_be_written_is_a_users_mistake(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write .*file/metrics.jsonl: .*--workdir'):
    JsonLines(tmp_path / 'file' / 'metrics.jsonl')


def test_a_missing_file_has_no_lines(tmp_path):
  assert read_lines(tmp_path / 'metrics.jsonl') == []
