"""Versions of the workers, compared."""

import json
import subprocess
import sys

import jax
import pytest

from llamax.launch.environment import PACKAGES, differences, read
from tests.launch.processes import ROOT


def test_it_tells_what_is_installed_without_importing_it():
  found = read()
  assert found['python'] == sys.version.split()[0] and found['jax'] == jax.__version__
  assert set(found) == {'python', *PACKAGES}
  look = 'import sys, json, runpy; runpy.run_module("llamax.launch.environment", run_name="__main__")'
  look += '; sys.exit("jax" in sys.modules)'
  ran = subprocess.run([sys.executable, '-c', look], capture_output=True, text=True, check=True, cwd=ROOT)
  assert json.loads(ran.stdout)['jax'] == jax.__version__


ALIKE = {'python': '3.12.3', 'jax': '0.12.0', 'libtpu': None}


@pytest.mark.parametrize(
  ('found', 'lines'),
  [
    ({'a': ALIKE}, []),
    ({'a': ALIKE, 'b': dict(ALIKE)}, []),
    ({'a': ALIKE, 'b': ALIKE | {'jax': '0.11.2'}}, ['b has jax 0.11.2, a has 0.12.0']),
    (
      {'a': ALIKE, 'b': ALIKE | {'python': '3.11.7', 'jax': None}, 'c': ALIKE},
      ['b has jax (none), a and 1 more have 0.12.0', 'b has python 3.11.7, a and 1 more have 3.12.3'],
    ),
    (
      {'a': ALIKE | {'libtpu': '1'}, 'b': ALIKE, 'c': ALIKE},
      ['a has libtpu 1, b and 1 more have none'],
    ),
  ],
)
def test_who_differs_is_named(found, lines):
  assert differences(found) == lines
