"""How far a run is, by the metrics that it writes."""

import contextlib
import math
import os
import re
from pathlib import Path

from llamax.observe.jsonl import METRICS_FILE, parse_metrics
from llamax.sweep.plan import run_folder

_CONTROL = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]')


class Watched:
  """Follows one run's metrics.jsonl, also where the run cuts it back as it goes on from a checkpoint.

  curve: (step, tokens seen, loss) as logged; a loss that is not finite is there as such. evals: {step: value}
  of the objective. latest: the newest value of every metric. judged_after: a step; what was logged up to there
  has had the run given up once.
  """

  def __init__(self, folder: str | os.PathLike[str], name: str, objective: str):
    self.name = name
    self._path = run_folder(folder, name) / METRICS_FILE
    self._objective = objective
    self.judged_after = 0
    self._forget()

  def _forget(self) -> None:
    self._inode, self._at = 0, 0
    self.curve: list[tuple[int, float, float]] = []
    self.evals: dict[int, float] = {}
    self.latest: dict[str, float] = {}

  def look(self) -> bool:
    """Reads what is new; False: nothing is."""
    try:
      with open(self._path, 'rb') as file:
        found = os.fstat(file.fileno())
        if found.st_ino != self._inode or found.st_size < self._at:
          self._forget()  # Written anew, cut back to a checkpoint.
          self._inode = found.st_ino
        file.seek(self._at)
        new = file.read()
    except FileNotFoundError:
      return False
    whole = new[: new.rfind(b'\n') + 1]  # The rest is just being written.
    self._at += len(whole)
    for line in whole.splitlines():
      record = parse_metrics(line)
      if record is not None:
        self._take(record)
    return bool(whole)

  def _take(self, record: dict[str, float]) -> None:
    step = int(record.get('step', 0))
    if 'loss' in record:
      self.curve.append((step, record.get('tokens_seen', math.nan), record['loss']))
    if self._objective in record:
      self.evals[step] = record[self._objective]
    self.latest |= record

  @property
  def step(self) -> int:
    return int(self.latest.get('step', 0))

  @property
  def result(self) -> float | None:
    """The objective as it was last told, None where it never was."""
    return self.evals[max(self.evals)] if self.evals else None


def last_words(path: Path, lines: int) -> list[str]:
  """The last lines of a log that say something; none where there is no log."""
  with contextlib.suppress(OSError), open(path, 'rb') as file:
    file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
    text = file.read().decode(errors='replace')
    # A bar redraws its line: what it ended with counts. Control sequences would play with the screen.
    said = [_CONTROL.sub('', line.rstrip('\r').rpartition('\r')[2]) for line in text.split('\n')]
    return [line.rstrip() for line in said if line.strip()][-lines:]
  return []
