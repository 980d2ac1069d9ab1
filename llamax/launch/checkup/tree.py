"""The files through which Linux tells of itself: /proc, /dev, /sys, under a root that a test can make."""

import fnmatch
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tree:
  """Reads below `root`; what is not there, or not ours to read, is None or an empty list."""

  root: Path = Path('/')

  def at(self, path: str) -> Path:
    return self.root / path.lstrip('/')

  def read(self, path: str) -> str | None:
    try:
      return self.at(path).read_bytes().decode(errors='replace').strip()
    except OSError:
      return None

  def names(self, folder: str, pattern: str = '*') -> list[str]:
    """Names in a folder that fit, in order: numbers as numbers."""
    try:
      found = fnmatch.filter(os.listdir(self.at(folder)), pattern)
    except OSError:
      return []
    return sorted(found, key=lambda name: (int(name) if name.isdecimal() else -1, name))

  def link(self, path: str) -> str | None:
    try:
      return os.readlink(self.at(path))
    except OSError:
      return None

  def exists(self, path: str) -> bool:
    return os.path.lexists(self.at(path))

  def processes(self) -> list[int]:
    return [int(name) for name in self.names('/proc') if name.isdecimal()]
