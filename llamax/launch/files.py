"""Log files in a folder as one stream of lines, each with the name of its file."""

import contextlib
from pathlib import Path

from llamax.launch.gang import noise
from llamax.launch.lines import Lines, show

_BLOCK = 1 << 20


class Files:
  """Shows FOLDER/*.log as [NAME] line, 'task-3.log' as [3].

  whole: from their first byte on; else what comes from now on.
  """

  def __init__(self, folder: Path, whole: bool):
    self._folder = folder
    self._seen: dict[Path, tuple[int, Lines]] = {}
    if not whole:
      for path in self._folder.glob('*.log'):
        self._seen[path] = (path.stat().st_size, _lines(path))

  def read(self) -> None:
    """Shows what has been added since the last time, new files among it."""
    for path in sorted(self._folder.glob('*.log'), key=lambda path: (len(path.name), path.name)):
      at, lines = self._seen.get(path) or (0, _lines(path))
      with contextlib.suppress(FileNotFoundError), open(path, 'rb') as file:
        file.seek(at)
        while block := file.read(_BLOCK):
          lines.feed(block)
          at += len(block)
      self._seen[path] = (at, lines)

  def close(self) -> None:
    """The last lines, which may lack their ends."""
    for _, lines in self._seen.values():
      lines.close()


def _lines(path: Path) -> Lines:
  return Lines(show, path.stem.removeprefix('task-'), skip=noise)
