"""How many faults to try, where."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope='session')
def scale(request):
  """(quick=, ci=, soak=) -> the number for this run (pytest --scale)."""
  chosen = request.config.getoption('--scale')
  return lambda **counts: counts[chosen]


def pytest_collection_modifyitems(config, items):
  """The limit of a test is that of quick runs: longer ones have it lifted, each kill has limits of its own."""
  if config.getoption('--scale') != 'quick':
    for item in items:
      if item.path.is_relative_to(HERE):
        item.add_marker(pytest.mark.timeout(0))
