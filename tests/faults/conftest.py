"""How many faults to try, where."""

import pytest


@pytest.fixture(scope='session')
def scale(request):
  """(quick=, ci=, soak=) -> the number for this run (pytest --scale)."""
  chosen = request.config.getoption('--scale')
  return lambda **counts: counts[chosen]


@pytest.fixture(autouse=True)
def time_enough(request):
  """The limit of a test is that of quick runs: longer ones have it lifted, each kill has limits of its own."""
  if request.config.getoption('--scale') != 'quick':
    request.node.add_marker(pytest.mark.timeout(0))
