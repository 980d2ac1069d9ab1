"""A process that reads hostile files of torch under an audit hook, says what came of each.

python hostile_reader.py pth FOLDER              every file in it
python hostile_reader.py pth FOLDER COUNT SEED   so many mutants of the files in it
python hostile_reader.py meta FOLDER COUNT SEED  the folder, as a checkpoint of Meta, one of its files a mutant

Prints {name: 'ok' | 'UserError ...' | anything else, which is a fault} as JSON.
"""

import json
import random
import re
import resource
import signal
import sys
import time
from pathlib import Path

from llamax.convert import meta
from llamax.convert.pth import open_pth
from llamax.core.errors import UserError

SECONDS = 5
MEMORY = 2 << 30
READING = ('os.listdir', 'os.scandir')
events = []


def watch(event, args):
  """Anything but reading a file is a fault: importing, compiling, running, connecting, writing."""
  if watching and event not in READING and not (event == 'open' and not args[2] & 3):
    events.append(f'{event} {args!r}')


def late(*_):
  raise TimeoutError(f'more than {SECONDS} s')


def tensors(path):
  if kind == 'pth':
    return open_pth(path)
  source = meta.open_source(path, None)
  return {name: source.entry(name) for name in source.places}


def read(path):
  events.clear()
  # Of the processor: a busy machine is no fault of the file.
  signal.setitimer(signal.ITIMER_PROF, SECONDS)
  try:
    for entry in tensors(path).values():
      entry.read(0, entry.shape[0] if entry.shape else 1)
    said = 'ok'
  except UserError as error:
    said = f'UserError {error}'
  except Exception as error:
    said = f'{type(error).__name__} {error}'
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
  return f'ran {events[0]}' if events else said


def mutant(raw, rng):
  raw = bytearray(raw)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    at = rng.randrange(len(raw))
    change = rng.randrange(6)
    if change == 0:
      raw[at] ^= 1 << rng.randrange(8)
    elif change == 1:
      raw[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif change == 2:
      raw[at : at + 4] = rng.choice((b'\xff' * 4, bytes(4), b'\xff\xff\xff\x7f', b'9999', rng.randbytes(4)))
    elif change == 3:
      del raw[at : at + rng.choice((1, 2, 8, 100, len(raw)))]
    elif change == 4:
      raw[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
    else:
      start = rng.randrange(len(raw))
      raw[at:at] = raw[start : start + rng.choice((1, 4, 16, 64, 300))]
    raw = raw or bytearray(b'P')
  return bytes(raw)


def mutants(count, seed):
  rng, sound = random.Random(seed), {path: path.read_bytes() for path in files}
  for index in range(count):
    path = rng.choice(files)
    path.write_bytes(mutant(sound[path], rng))
    yield f'{seed}.{index}', path if kind == 'pth' else folder
    path.write_bytes(sound[path])


if __name__ == '__main__':
  kind, folder = sys.argv[1], Path(sys.argv[2])
  files = sorted(folder.iterdir())
  watching = False
  # The last one is in order. What numpy imports when it is first used is no fault of a file.
  assert read(files[-1] if kind == 'pth' else folder) == 'ok'
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  signal.signal(signal.SIGPROF, late)
  sys.addaudithook(watch)
  todo = mutants(*map(int, sys.argv[3:])) if len(sys.argv) > 3 else ((file.name, file) for file in files)
  said, slowest = {}, 0.0
  for name, path in todo:
    start = time.process_time()
    watching = True
    said[name] = read(path)
    watching = False
    slowest = max(slowest, time.process_time() - start)
  # Not ru_maxrss: that is inherited from whoever started us.
  peak = int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) << 10
  print(json.dumps({'said': said, 'slowest': slowest, 'peak': peak}))
