"""Work in processes: in order, ended when it must, its progress told."""

import os
import signal
import time

import pytest

from llamax.core.errors import UserError
from llamax.data.pool import WorkerDied, progress, run_in_order


def test_one_worker_stays_in_this_process():
  assert list(run_in_order(os.getpid, [(), ()], 1)) == [os.getpid()] * 2


def test_results_come_in_order_from_other_processes():
  assert list(run_in_order(divmod, [(i, 3) for i in range(7)], 2)) == [divmod(i, 3) for i in range(7)]
  assert os.getpid() not in set(run_in_order(os.getpid, [()] * 3, 2))


def test_killed_worker_is_an_error_that_keeps_what_is_done():
  with pytest.raises(WorkerDied, match='ended before its work was done'):
    list(run_in_order(signal.raise_signal, [(signal.SIGKILL,)] * 2, 2))
  assert issubclass(WorkerDied, UserError)


def test_closing_ends_the_workers():
  results = run_in_order(time.sleep, [(0,), (60,), (60,)], 2)
  next(results)
  start = time.monotonic()
  results.close()
  assert time.monotonic() - start < 20


def test_progress_speaks_in_lines_when_there_is_no_terminal(monkeypatch):
  now = [0.0]
  monkeypatch.setattr('llamax.data.pool.time.monotonic', lambda: now[0])
  lines = []
  with progress('reading', 4_000_000, lines.append) as advance:
    for _ in range(4):
      now[0] += 6
      advance(1_000_000)
  assert lines == ['reading: 50 %, 2.0 of 4.0 MB, 12 s left', 'reading: 100 %, 4.0 of 4.0 MB, 0 s left']
