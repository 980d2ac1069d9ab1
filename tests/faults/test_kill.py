"""SIGKILL at random instants of a real training run: no checkpoint lost, each loss the same to the bit."""

import random
import signal
import time

from llamax.checkpoint import digests
from llamax.checkpoint.steps import steps
from llamax.observe.batchlog import read_batches
from tests.faults.forked import words


def wait_for_step(child, workdir, step, seconds=60):
  """Until a checkpoint of at least `step` is in place."""
  end = time.monotonic() + seconds
  while max(steps(workdir / 'checkpoints'), default=-1) < step:
    assert not child.ended.is_set(), child.screen()
    assert time.monotonic() < end, child.screen()
    time.sleep(0.01)


def test_killed_at_random_instants(server, tiny_data, tmp_path, scale):
  kills = scale(quick=4, ci=200, soak=1000)
  rng = random.Random(kills)
  run = tmp_path / 'run'
  folder = run / 'checkpoints'
  checked: set[int] = set()
  start_seconds = 3.0
  newest = -1
  for kill in range(kills):
    log = tmp_path / 'screen'
    log.unlink(missing_ok=True)
    begun = time.monotonic()
    child = server.start(words(tiny_data, run), log)
    if kill % 4 == 0:  # These go on for a while; the others die anywhere from the first import on.
      wait_for_step(child, run, max(newest, 0) + 2)
      start_seconds = 0.8 * start_seconds + 0.2 * (time.monotonic() - begun)
      time.sleep(rng.uniform(0, 0.3))
    else:
      child.ended.wait(rng.uniform(0, 1.3 * start_seconds))
    before = max(steps(folder), default=-1)
    child.kill(signal.SIGKILL)
    assert child.wait(30) == -signal.SIGKILL, child.screen()
    listed = steps(folder)
    assert max(listed, default=-1) >= before >= newest, f'kill {kill}: step {before} is lost: {listed}'
    assert not list(folder.glob('damaged-*')), f'kill {kill}: {child.screen()}'
    newest = max(listed, default=-1)
    for step in set(listed) - checked:
      assert digests.verify(folder / str(step)) == [], f'kill {kill}: step {step}'
    checked = set(listed)
    assert len(list(folder.glob('writer-*'))) <= 1, 'the debris of several kills'
  rows, losses = read_batches(run)  # raises when a step that was done again differs
  last = max(losses)
  assert sorted(losses) == list(range(1, last + 1)), 'a step is missing'
  whole = tmp_path / 'whole'
  log = tmp_path / 'whole-screen'
  ending = words(tiny_data, whole, **{'train.num_steps': last, 'checkpoint.every': 'none'})
  assert server.start(ending, log).wait(600) == 0, log.read_text()
  assert read_batches(whole) == (rows, losses)
  print(f'\n{kills} kills, {last} steps, newest checkpoint {newest}, a start takes {start_seconds:.1f} s')
