"""One process of a run of several, with a fault of its own; started by processes.py."""

import atexit
import os
import time
from types import SimpleNamespace


def train(*words):
  """`llamax WORDS`. FAULT in the environment: see processes.py."""
  if fault := os.environ.get('FAULT'):
    place, _, what = fault.partition(':')
    install(place, what)
  from jax._src import compiler

  from llamax.cli.main import main

  # jax lets process 0 alone write compiled programs to its cache; on CPU no other can use these.
  compiler.distributed = SimpleNamespace(global_state=SimpleNamespace(process_id=0, client=None))
  code = main(words)
  atexit._run_exitfuncs()  # A forked child ends without: jax's farewell is in it.
  return code


def install(place, what):
  """Replaces the function at `place` (module.function or module.Class.function) by one with the fault `what`.

  what: COUNT:KIND, at its COUNT-th call (0: at each one). KIND: hang, hold (with Python's lock), error, die, or
  the seconds that it takes longer.
  """
  import importlib

  parts = place.split('.')
  for split in range(len(parts) - 1, 0, -1):
    try:
      owner = importlib.import_module('.'.join(parts[:split]))
      break
    except ModuleNotFoundError:
      continue
  for part in parts[split:-1]:
    owner = getattr(owner, part)
  count, kind = what.split(':')
  original, calls = getattr(owner, parts[-1]), [0]

  def faulty(*args, **kwargs):
    calls[0] += 1
    if int(count) in (0, calls[0]):
      act(kind)
    return original(*args, **kwargs)

  setattr(owner, parts[-1], faulty)


def act(kind):
  if kind == 'hang':
    while True:
      time.sleep(1)
  elif kind == 'hold':
    import ctypes

    ctypes.PyDLL(None).sleep(10_000)
  elif kind == 'error':
    raise RuntimeError('a fault of this host alone')
  elif kind == 'die':
    os.kill(os.getpid(), 9)
  else:
    time.sleep(float(kind))
