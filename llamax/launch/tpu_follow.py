"""The output of a job on all workers of some TPU slices, on this screen, while its life goes on."""

import os
import signal
import threading
from collections.abc import Sequence

from llamax.launch import tpu_vm
from llamax.launch.job import Job
from llamax.launch.lines import Lines, Pump
from llamax.launch.tpu_commands import Place
from llamax.train.child import STOPPING, Child


class Follower:
  """Shows what the job says on all workers, as long as it is wanted; takes a broken connection up again."""

  def __init__(self, place: Place, job: Job):
    self._place, self._job = place, job
    self._children: list[Child] = []
    self._before = False

  def follow(self, on: bool) -> None:
    if self._children and (not on or all(child.poll() is not None for child in self._children)):
      for child in self._children:
        child.kill()
        child.wait()
        child.close(kill_leftovers=True)
      self._children = []
    if on and not self._children:
      # What came before the connection broke has been shown, or is in the log on the machine.
      runs = tpu_vm.follow(self._place, self._job, 10 if self._before else None).runs
      self._before = True
      self._children = [_shown(run.argv, run.label) for run in runs]


def _shown(argv: Sequence[str], label: str) -> Child:
  """Made in the main thread: the kernel ends a child with the thread that made it."""
  read, write = os.pipe()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
  try:
    # What gcloud itself says of its connections helps nobody.
    null = os.open(os.devnull, os.O_WRONLY)
    child = Child(argv, output=write, errors=null)
    os.close(null)
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(write)
  pump = Pump()
  pump.add(read, Lines(lambda line: print(line, end='', flush=True), label))

  def show() -> None:
    while pump.run(None):
      pass

  threading.Thread(target=show, daemon=True).start()
  return child
