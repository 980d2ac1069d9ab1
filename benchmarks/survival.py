"""What it costs to survive: digests, lease, watchdog beside the saves and steps that they guard.

  python benchmarks/survival.py [--megabytes=500] [--rounds=5]

Saves with and without digests take turns in one process, so that a noisy machine disturbs both alike.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from llamax.checkpoint import digests, lease
from llamax.checkpoint.manager import Checkpoints
from llamax.cli.configure import load
from llamax.parallel.watchdog import Watchdog


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--megabytes', type=int, default=500)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--step_ms', type=float, default=100.0, help='a step that the cost is compared with')
  args = parser.parse_args()
  cfg, _ = load('configs/debug.py', [])
  with tempfile.TemporaryDirectory(dir='.') as folder:
    saves(Path(folder), cfg, args.megabytes, args.rounds)
    steps(Path(folder), cfg, args.step_ms)


def saves(folder: Path, cfg, megabytes: int, rounds: int) -> None:
  """Seconds of a save, of its blocking part, of the digests in it."""
  keys = jax.random.split(jax.random.key(0), 10)
  state = {f'leaf{i}': jax.random.normal(key, (megabytes * 25_000,)) for i, key in enumerate(keys)}
  jax.block_until_ready(state)
  took: dict[str, list[float]] = {'with digests': [], 'without': []}
  blocked, hashing = [], []
  for round_ in range(rounds + 1):
    for name, hashed in (('with digests', True), ('without', False)):
      section = type(cfg.checkpoint)(
        **{**vars(cfg.checkpoint), 'digests': hashed, 'keep_last': 1, 'keep_best': 0}
      )
      with Checkpoints(folder / name, section) as checkpoints:
        start = time.perf_counter()
        checkpoints.save(round_, state, {})
        held = time.perf_counter() - start
        checkpoints.wait()
        whole = time.perf_counter() - start
        step = checkpoints.directory / str(round_)
        start = time.perf_counter()
        assert digests.verify(step) == []
        checked = time.perf_counter() - start
      if round_:  # The first one warms up.
        took[name].append(whole)
        blocked.append(held / whole)
        if hashed:
          hashing.append(checked / whole)
    state = {name: leaf + jnp.float32(1) for name, leaf in state.items()}
    jax.block_until_ready(state)
  ratios = [a / b for a, b in zip(took['with digests'], took['without'], strict=True)]
  print(f'state {megabytes} MB, {rounds} rounds, median (least to most)')
  for name, seconds in took.items():
    print(f'  save {name:13} {spread(seconds)} s')
  print(f'  with / without     {spread(ratios)}')
  print(f'  reading every byte again for its digest, of the save {spread(hashing, 100)} %')
  print(f'  the step is blocked for, of the save                 {spread(blocked, 100)} %')


def steps(folder: Path, cfg, step_ms: float) -> None:
  """Microseconds that watchdog, lease take in a step."""
  count = 20_000
  with Watchdog(cfg.watchdog, folder, None) as watchdog, lease.acquire(folder, 60.0, print) as held:
    start = time.perf_counter()
    for step in range(count):
      watchdog.enter('data', step)
      watchdog.enter('step', step)
      watchdog.enter('log', step)
      if held.lost:
        raise AssertionError
    each = (time.perf_counter() - start) / count
    idle = time.process_time()
    time.sleep(20)
    beside = (time.process_time() - idle) / 20
  print(f'in each step {1e6 * each:.1f} us; beside it {100 * beside:.3f} % of a core (watchdog, lease threads)')
  print(f'  of a step of {step_ms:.0f} ms: {100 * (each / (step_ms / 1e3)):.4f} % + {100 * beside:.3f} %')


def spread(values: list[float], times: float = 1) -> str:
  return f'{times * statistics.median(values):.3f} ({times * min(values):.3f} to {times * max(values):.3f})'


if __name__ == '__main__':
  main()
