"""What happened to a run beside its steps: resumed, skipped, rolled back, fenced."""

import contextlib
import datetime
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamax.core.errors import UserError
from llamax.core.storage import sync
from llamax.observe.jsonl import JsonLines, numbered_lines, read_lines

LEDGER_FILE = 'ledger.jsonl'


class Ledger:
  """Appends to WORKDIR/ledger.jsonl; each line is on the disk before `record` returns.

  A disk that is full does not end the run: what could not be written is kept, then written with the next
  record. Any thread may record.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, enabled: bool = True, name: str = LEDGER_FILE):
    """
    Args:
      enabled: False on all hosts but the first, whose events count for all: then nothing is written.
    """
    self._path = Path(workdir, name)
    self._enabled = enabled
    self._lines: JsonLines | None = None
    self._waiting: list[dict[str, Any]] = []
    self._lock = threading.Lock()

  def record(self, event: str, **facts: Any) -> bool:
    """Adds {time: ISO 8601 in UTC, event, **facts}; False: kept, but not on the disk yet.

    Args:
      facts: anything JSON, NaN too; TypeError for anything else.
    """
    if not self._enabled:
      return True
    json.dumps(facts)  # A record that can never be written must not wait in front of the others.
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    with self._lock:
      self._waiting.append({'time': now, 'event': event, **facts})
      try:
        if self._lines is None:
          self._lines = JsonLines(self._path)
          sync(self._path.parent)  # The file's name, should it be new.
        while self._waiting:
          self._lines.append(self._waiting[0], durable=True)
          self._waiting.pop(0)
      except (OSError, UserError):
        return False
    return True

  def close(self) -> None:
    with self._lock, contextlib.suppress(OSError):
      if self._lines is not None:
        self._lines.close()
        self._lines = None


def read_ledger(workdir: str | os.PathLike[str], name: str = LEDGER_FILE) -> list[dict[str, Any]]:
  """The events of a run, oldest first; none where there is no ledger. NaN reads as 'NaN'."""
  return read_lines(Path(workdir, name))


def events(
  workdir: str | os.PathLike[str], event: str, fields: Mapping[str, type | tuple[type, ...]]
) -> list[dict[str, Any]]:
  """Those of one kind that a run goes by, oldest first; UserError for a line that lacks one of `fields`."""
  path, found = Path(workdir, LEDGER_FILE), []
  for number, line in numbered_lines(path):
    if line.get('event') != event:
      continue
    for name, kind in fields.items():
      if name not in line or not isinstance(line[name], kind):
        told = f'{name}={line[name]!r}' if name in line else f'no {name!r}'
        raise UserError(
          f'{path}, line {number}: an event {event!r} with {told}. Was it edited? Restore that line, or delete '
          'it to go by the newest checkpoint'
        )
    found.append(line)
  return found
