"""The folder of steps by name alone: a step listed under its number is whole, its rename was the last act."""

import json
import os
from pathlib import Path
from typing import Any

from llamax.checkpoint import digests

WRITER = 'writer-'  # + token of the lease: what is being written; no step yet
TRASH = 'trash'
PROTECTED = 'protected.json'
STATE_ITEM = 'state'
META_ITEM = 'meta'
ARRAY = '.zarray'  # in the folder of an array that has files of its own
META_FILE = f'{META_ITEM}/metadata'


def steps(directory: str | Path) -> list[int]:
  """The committed steps, ascending, looked up on disk; folders alone, named as `save` names them."""
  try:
    with os.scandir(directory) as found:
      return sorted(int(entry.name) for entry in found if _is_number(entry.name) and entry.is_dir())
  except (FileNotFoundError, NotADirectoryError):
    return []


def _is_number(name: str) -> bool:
  return name.isascii() and name.isdecimal() and str(int(name)) == name


def latest(directory: str | Path) -> int | None:
  """The newest committed step, or None."""
  return max(steps(directory), default=None)


def meta(folder: Path) -> dict[str, Any]:
  """What was stored beside the arrays of a step. Raises OSError, ValueError: also for a flipped bit."""
  found = json.loads(digests.read_file(folder, META_FILE))
  if not isinstance(found, dict) or not isinstance(found.get('leaves'), dict):
    raise ValueError('no table of leaves')
  return found


def protected(directory: Path) -> dict[int, str]:
  """{step: why} of the checkpoints that trouble came after."""
  try:
    return {int(step): str(why) for step, why in json.loads((directory / PROTECTED).read_text()).items()}
  except (OSError, ValueError, AttributeError):
    return {}
