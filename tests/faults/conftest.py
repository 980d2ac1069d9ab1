"""How many faults to try, where."""

import pytest

from tests.faults.forked import ForkServer


@pytest.fixture(scope='session')
def scale(request):
  """(quick=, ci=, soak=) -> the number for this run (pytest --scale)."""
  chosen = request.config.getoption('--scale')
  return lambda **counts: counts[chosen]


@pytest.fixture(scope='session')
def forks():
  """The fork server of all tests of one worker: to start one takes some 4 s of processor time."""
  with ForkServer() as server:
    yield server


@pytest.fixture
def server(forks):
  """The same; no run that it started outlives its test."""
  yield forks
  forks.kill()
