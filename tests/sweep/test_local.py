"""The process that starts runs, and so forks, is a light one."""

import subprocess
import sys

HEAVY = ('jax', 'flax', 'orbax', 'tensorflow', 'matplotlib', 'optuna')


def test_it_imports_nothing_that_has_threads():
  code = 'import sys, llamax.cli.sweep, llamax.cli.configure, llamax.sweep.local; print(*sys.modules)'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert 'llamax.train.child' in done.stdout.split()
  assert not set(HEAVY) & set(done.stdout.split())
