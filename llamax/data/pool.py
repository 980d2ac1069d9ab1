"""Work spread over processes, its progress shown on a terminal as a bar, elsewhere as lines."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from llamax.core.errors import UserError

_LINE_SECONDS = 10.0


class WorkerDied(UserError):
  """A worker was ended from outside; what the others finished is kept."""


def cores() -> int:
  """Cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def run_in_order(
  function: Callable[..., Any], calls: Sequence[tuple], workers: int
) -> Generator[Any, None, None]:
  """Yields function(*call) for each call, in order, at most `workers` at a time; one worker: in this process.

  Processes are spawned, not forked: threads of the libraries do not survive a fork. Closing the iterator, or an
  error in it, ends the workers at once; what they write has to be whole or absent.
  """
  workers = min(workers, len(calls))
  if workers <= 1:
    for call in calls:
      yield function(*call)
    return
  context = multiprocessing.get_context('spawn')
  pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
  try:
    futures = [pool.submit(function, *call) for call in calls]
    for future in futures:
      yield future.result()
  except BrokenProcessPool:
    raise WorkerDied(
      'a worker process ended before its work was done (out of memory? killed? or called from a script without '
      "`if __name__ == '__main__':`); the same command goes on from here, --workers=1 needs least memory"
    ) from None
  except BaseException:
    # The executor has no public way to end a task that has begun before Python 3.14.
    for process in list((getattr(pool, '_processes', None) or {}).values()):
      process.terminate()
    raise
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
  """A worker leaves the keyboard to its parent, but does not outlive it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def wait() -> None:
    if parent is not None:
      parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def progress(label: str, total: int, say: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
  """Gives a function to call with the bytes just done."""
  if sys.stderr.isatty():
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit='B', unit_scale=True, leave=False) as bar:
      yield bar.update
    return
  start = spoken = time.monotonic()
  done = 0

  def advance(count: int) -> None:
    nonlocal done, spoken
    done += count
    if time.monotonic() - spoken >= _LINE_SECONDS:
      spoken = time.monotonic()
      left = (total - done) * (spoken - start) / max(done, 1)
      percent = 100 * done // max(total, 1)
      say(f'{label}: {percent} %, {done / 1e6:.1f} of {total / 1e6:.1f} MB, {left:.0f} s left')

  yield advance
