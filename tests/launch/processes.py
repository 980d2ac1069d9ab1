"""What tests of launchers ask of processes."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def gone(pid):
  """It has ended, whether or not somebody has taken note."""
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] in 'ZX'
  except FileNotFoundError:
    return True
