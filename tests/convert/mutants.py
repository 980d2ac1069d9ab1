"""Damages files in thousands of ways, opens each in a process with bounded memory and time.

Run as a script it is that process: CHECKPOINT FILE FORMAT COUNT SEED HEAD -> one line of JSON.
"""

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SECONDS = 5
BATCH = 10_000  # mutants that one process reads
MEMORY = 1 << 30  # beyond what the libraries take
_EXTREMES = (
  0,
  1,
  2,
  3,
  7,
  255,
  1 << 16,
  1 << 31,
  (1 << 31) - 1,
  (1 << 32) - 1,
  1 << 40,
  (1 << 63) - 1,
  (1 << 64) - 1,
)


def survives(path: Path, format_name: str, count: int, file: str = '', head: int = 4096) -> Counter:
  """Kinds of outcome -> how many; AssertionError where one is neither success nor a UserError.

  Args:
    file: that is damaged, where the checkpoint at `path` is a folder.
    head: bytes at the beginning that most of the damage goes to.
  """
  kinds: Counter = Counter()
  for seed, done in enumerate(range(0, count, BATCH)):
    words = [str(path), file, format_name, str(min(BATCH, count - done)), str(seed), str(head)]
    here = Path(__file__)
    env = os.environ | {'PYTHONPATH': f'{here.parents[2]}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'}
    child = [sys.executable, str(here), *words]
    ended = subprocess.run(child, capture_output=True, text=True, env=env, timeout=1800)
    assert ended.returncode == 0, f'the process died: {ended.returncode}\n{ended.stderr[-2000:]}'
    found = json.loads(ended.stdout.splitlines()[-1])
    assert not found['bad'], found['bad'][:3]
    kinds += Counter(found['kinds'])
  return kinds


def mutants(content: bytes, count: int, seed: int, head: int) -> Iterator[bytes]:
  rng = random.Random(seed)
  for _ in range(count):
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
      _damage(changed, rng, head)
    yield bytes(changed)


def _damage(content: bytearray, rng: random.Random, head: int) -> None:
  most = len(content) if rng.random() < 0.1 else min(head, len(content))
  at = rng.randrange(max(1, most))
  kind = rng.randrange(6)
  if kind == 0:
    content[at : at + 1] = bytes([rng.randrange(256)])
  elif kind == 1:
    content[at : at + 1] = bytes([(content[at] if at < len(content) else 0) ^ (1 << rng.randrange(8))])
  elif kind == 2:
    form = rng.choice(('<Q', '<I', '<i'))
    size = struct.calcsize(form)
    at = at // 4 * 4 if rng.random() < 0.5 else at
    value = rng.choice(_EXTREMES) & ((1 << 8 * size) - 1)
    content[at : at + size] = value.to_bytes(size, 'little')
  elif kind == 3:
    del content[at : at + rng.choice((1, 4, 8, 64, 1 << 20))]
  elif kind == 4:
    other = rng.randrange(max(1, most))
    content[at:at] = content[other : other + rng.choice((1, 4, 8, 32, 256))]
  else:
    content[at : at + 8] = rng.randbytes(8)


def _main(checkpoint: str, file: str, format_name: str, count: str, seed: str, head: str) -> None:
  from llamax.checkpoint import digests
  from llamax.convert import formats
  from llamax.core.errors import UserError

  def stop(*_):
    raise TimeoutError

  signal.signal(signal.SIGALRM, stop)
  now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
  os.fsync = lambda file: None  # The digests of thousands of liars need not outlive this machine.
  kinds, bad = Counter(), []
  with tempfile.TemporaryDirectory() as scratch:
    path = Path(scratch, Path(checkpoint).name)
    damaged = path / file if file else path
    if file:
      shutil.copytree(checkpoint, path)
    original = Path(checkpoint, file).read_bytes() if file else Path(checkpoint).read_bytes()
    for number, content in enumerate(mutants(original, int(count), int(seed), int(head))):
      damaged.write_bytes(content)
      if format_name == 'llamax' and damaged.name != digests.MANIFEST:
        digests.write(path / 'checkpoints/0')  # A liar writes the digests that fit.
      begun = time.monotonic()
      signal.setitimer(signal.ITIMER_REAL, SECONDS)
      try:
        found = formats.module(format_name).open_source(path, None)
        for place in found.places.values():
          entry = found.entries[place.theirs]
          entry.read(0, entry.shape[0])
        kinds['accepted'] += 1
      except UserError as error:
        kinds[type(error).__name__] += 1
      except BaseException as error:
        bad.append([number, repr(error)[:300], time.monotonic() - begun])
      finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
  print(json.dumps({'kinds': kinds, 'bad': bad}))


if __name__ == '__main__':
  _main(*sys.argv[1:])
