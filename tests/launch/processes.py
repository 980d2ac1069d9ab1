"""What tests of launchers ask of processes."""

import contextlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def gone(pid):
  """It has ended, whether or not somebody has taken note."""
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] in 'ZX'
  except FileNotFoundError:
    return True


def command_lines():
  """Those of all processes, as bytes."""
  found = []
  for path in Path('/proc').glob('[0-9]*/cmdline'):
    with contextlib.suppress(OSError):  # It has ended meanwhile.
      found.append(path.read_bytes())
  return found
