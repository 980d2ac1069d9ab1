"""Events of a run are on disk when they are recorded, whatever the disk or the process does."""

import datetime
import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from llamax.observe.ledger import Ledger, read_ledger


def test_events_come_back_in_order_with_the_time_in_utc(tmp_path):
  before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
  assert read_ledger(tmp_path) == []
  ledger = Ledger(tmp_path)
  assert ledger.record('resumed', step=7)
  assert ledger.record('skipped', step=8, losses=[float('nan'), 1.5], at={'norm': float('inf')})
  first, second = read_ledger(tmp_path)
  assert (first['event'], first['step']) == ('resumed', 7)
  assert before <= datetime.datetime.fromisoformat(first['time']) <= datetime.datetime.now(datetime.UTC)
  assert datetime.datetime.fromisoformat(first['time']).utcoffset() == datetime.timedelta(0)
  assert (second['losses'], second['at']) == (['NaN', 1.5], {'norm': 'Infinity'})
  ledger.close()


def test_another_host_writes_nothing(tmp_path):
  assert Ledger(tmp_path, enabled=False).record('resumed')
  assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_no_event(tmp_path, monkeypatch):
  ledger = Ledger(tmp_path)
  assert ledger.record('a')
  fsync = os.fsync

  def full(handle):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  assert not ledger.record('b', step=1)
  assert not ledger.record('c')
  assert [event['event'] for event in read_ledger(tmp_path)] == ['a']
  monkeypatch.setattr(os, 'fsync', fsync)
  assert ledger.record('d')
  assert [event['event'] for event in read_ledger(tmp_path)] == ['a', 'b', 'c', 'd']


def test_a_file_that_cannot_be_opened_yet_is_tried_again(tmp_path):
  (tmp_path / 'ledger.jsonl').mkdir()
  ledger = Ledger(tmp_path)
  assert not ledger.record('a')
  (tmp_path / 'ledger.jsonl').rmdir()
  assert ledger.record('b')
  assert [event['event'] for event in read_ledger(tmp_path)] == ['a', 'b']


def test_a_torn_last_line_is_repaired(tmp_path):
  path = tmp_path / 'ledger.jsonl'
  path.write_bytes(b'{"event": "a"}\n{"event": "b", "st')
  Ledger(tmp_path).record('c')
  assert [event['event'] for event in read_ledger(tmp_path)] == ['a', 'c']


def test_events_outlive_a_killed_process(tmp_path):
  code = (
    'import os, signal, sys\n'
    'from llamax.observe.ledger import Ledger\n'
    'Ledger(sys.argv[1]).record("last words")\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, '-c', code, tmp_path], env=environment, check=False)
  assert done.returncode == -signal.SIGKILL
  assert [event['event'] for event in read_ledger(tmp_path)] == ['last words']


def test_threads_do_not_tear_each_others_lines(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'fsync', lambda handle: None)
  ledger = Ledger(tmp_path)

  def work(name):
    for count in range(200):
      ledger.record(name, count=count, padding='x' * 100)

  threads = [threading.Thread(target=work, args=(name,)) for name in 'abcd']
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  lines = [json.loads(line) for line in (tmp_path / 'ledger.jsonl').read_text().splitlines()]
  for name in 'abcd':
    assert [line['count'] for line in lines if line['event'] == name] == list(range(200))


def test_what_json_cannot_hold_is_a_bug(tmp_path):
  ledger = Ledger(tmp_path)
  with pytest.raises(TypeError):
    ledger.record('a', what=object())
  assert ledger.record('b') and len(read_ledger(tmp_path)) == 1
