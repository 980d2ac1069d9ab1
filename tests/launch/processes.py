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


def commands():
  """(process id, command line as bytes) of all processes."""
  found = []
  for path in Path('/proc').glob('[0-9]*/cmdline'):
    with contextlib.suppress(OSError):  # It has ended meanwhile.
      found.append((int(path.parent.name), path.read_bytes()))
  return found


def command_lines():
  return [line for _, line in commands()]
