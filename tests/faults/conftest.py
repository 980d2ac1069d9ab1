"""How many faults to try, where."""

from pathlib import Path

import pytest

from tests.faults.forked import ForkServer

HERE = Path(__file__).parent


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


def pytest_collection_modifyitems(config, items):
  """The limit of a test is that of quick runs: longer ones have it lifted, each kill has limits of its own."""
  if config.getoption('--scale') != 'quick':
    for item in items:
      if item.path.is_relative_to(HERE):
        item.add_marker(pytest.mark.timeout(0))
