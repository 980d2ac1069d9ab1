"""A sweep of fake_train.py: python fake_sweep.py DIR NUM_RUNS NUM_STEPS SLOTS [KIND ...].

KIND: fail, diverge (what the second run does), prune, study, median (its pruner), join, kill (SIGKILL to itself
once its runs have gone a random number of steps), jobs (a run ends by a command of its own, then RUN/gone is
there), stuck (that command fails).
"""

import contextlib
import os
import random
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

from llamax.sweep import runner as module
from llamax.sweep import space
from llamax.sweep.display import Display, Pace
from llamax.sweep.locks import only_one
from llamax.sweep.plan import Plan, PlannedRun, run_folder
from llamax.sweep.planned import Planned
from llamax.sweep.prune import Diverged, watcher
from llamax.sweep.runner import Runner
from llamax.sweep.slots import make_slots
from llamax.sweep.state import SweepLedger

module._LOOK_SECONDS = 0.1
FAKE = Path(__file__).with_name('fake_train.py')


def die(folder, steps):
  """By the work that is done, not by the clock: the machine may be fast or busy."""
  steps += lines_written(folder)
  while lines_written(folder) < steps:
    time.sleep(0.002)
  os.kill(os.getpid(), signal.SIGKILL)


def lines_written(folder):
  return sum(file.read_bytes().count(b'\n') for file in Path(folder).glob('runs/*/metrics.jsonl'))


def planned(folder, names, ledger):
  return Planned(folder, [PlannedRun(name, {}) for name in names], ledger)


def study(folder, trials, ledger, kinds):
  from llamax.sweep.search import Searched

  spec = space.study(
    int(trials), {'x': space.log_uniform(1, 10)}, seed=3, pruner='median' if 'median' in kinds else 'none'
  )
  plan = Plan('', (), {}, 'eval/x/loss', (), study={})
  return Searched(folder, spec, plan, lambda texts: None, ledger)


def main(folder, runs, steps, slots, *kinds):
  if 'kill' in kinds:
    threading.Thread(target=die, args=(folder, random.randrange(25)), daemon=True).start()
  how = next((kind for kind in kinds if kind in ('fail', 'diverge')), '')
  names = [f'run{i}' for i in range(int(runs))]

  def command(run):
    scale = run.point['x'] if 'x' in run.point else 1 + names.index(run.name)
    its = how if run.name == 'run1' else ''
    return [sys.executable, '-S', FAKE, run_folder(folder, run.name), steps, str(scale), its]

  def ends(name):
    run = shlex.quote(str(run_folder(folder, name)))
    stop = 'echo no such host >&2; exit 2' if 'stuck' in kinds else f'kill $(cat {run}/pid)'
    # Nobody else holds the job by then.
    return [['sh', '-c', stop], ['flock', '--nonblock', f'{run}/fake.lock', 'touch', f'{run}/gone']]

  ledger = SweepLedger(folder)
  with contextlib.nullcontext() if 'join' in kinds else only_one(folder):
    queue = study(folder, runs, ledger, kinds) if 'study' in kinds else planned(folder, names, ledger)
    policy = Diverged() if 'prune' in kinds else None
    runner = Runner(
      folder, queue, make_slots(int(slots), None, 1),
      command=command, ledger=ledger, display=Display(), objective='eval/x/loss',
      policy=watcher(policy, folder, queue.names, lambda name: int(steps)),
      num_steps=lambda name: int(steps), pace=Pace({}, len(queue)),
      end=ends if {'jobs', 'stuck'} & {*kinds} else None,
    )  # fmt: skip
    asked = runner.run()
  return 0 if asked is None else 128 + asked


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
