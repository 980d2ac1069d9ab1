"""Files of JSON objects, one per line, that survive a kill at any byte."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamax.core.errors import UserError

METRICS_FILE = 'metrics.jsonl'  # of a workdir: a line for each step that was logged, each evaluation

# JSON has no such numbers; float() reads these three words back.
_NON_FINITE = ('NaN', 'Infinity', '-Infinity')
_BLOCK = 1 << 16


class JsonLines:
  """An append-only file of objects, each with a number `step`.

  A line is one write() to the operating system, so it outlives this process. Opening repairs a last line
  that was torn. Raises UserError when the file cannot be opened.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = Path(path)
    self._open()

  def _open(self) -> None:
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self.path, 'a+b', buffering=0)  # noqa: SIM115
      self._repair()
    except OSError as error:
      raise UserError(
        f'cannot write {self.path}: {error.strerror}; give a --workdir that this user may write to'
      ) from None

  def _repair(self) -> None:
    end = self._file.seek(0, os.SEEK_END)
    start, block, tail = end, _BLOCK, b''
    while start and b'\n' not in tail:
      start, block = max(0, start - block), 2 * block
      self._file.seek(start)
      tail = self._file.read(end - start)
    torn = tail[tail.rfind(b'\n') + 1 :]
    if torn and _parse(torn) is not None:
      self._append(b'\n')  # Only the newline was lost.
    elif torn:
      self._file.truncate(end - len(torn))

  def _append(self, data: bytes, durable: bool = False) -> None:
    size = self._file.seek(0, os.SEEK_END)
    try:
      while data:
        data = data[self._file.write(data) :]
      if durable:
        os.fsync(self._file.fileno())
    except OSError:
      self._file.truncate(size)  # A full disk must not glue half a line to the next one.
      raise

  def append(self, record: Mapping[str, Any], durable: bool = False) -> None:
    """Adds one line. Numbers that JSON lacks become the strings 'NaN', 'Infinity', '-Infinity'.

    Args:
      durable: returns once the disk has it, so that it outlives a power cut.

    Raises:
      OSError: the line is not there.
    """
    self._append(json.dumps(_to_json(record), allow_nan=False).encode() + b'\n', durable)

  def truncate_after(self, step: int) -> int:
    """Atomically drops the lines whose `step` is larger, with any that are not JSON; returns how many.

    Raises UserError when the file cannot be rewritten.
    """
    new = self.path.with_name(f'.{self.path.name}.tmp')
    try:
      with open(self.path, 'rb') as lines:
        dropped = sum(not _is_kept(line, step) for line in lines)
      if not dropped:
        return 0
      with open(self.path, 'rb') as lines, open(new, 'wb') as kept:
        kept.writelines(line for line in lines if _is_kept(line, step))
        kept.flush()
        os.fsync(kept.fileno())
      os.replace(new, self.path)
    except OSError as error:
      raise UserError(
        f'cannot drop the lines after step {step} from {self.path}: {error.strerror}; '
        'make room or give write permission there, then run the same command'
      ) from None
    self._file.close()
    self._open()
    return dropped

  def close(self) -> None:
    if not self._file.closed:
      os.fsync(self._file.fileno())
      self._file.close()


def _to_json(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _to_json(inner) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_to_json(inner) for inner in value]
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  return value


def _parse(line: bytes) -> dict[str, Any] | None:
  try:
    record = json.loads(line)
  except ValueError:
    return None
  return record if isinstance(record, dict) else None


def _is_kept(line: bytes, step: int) -> bool:
  record = _parse(line)
  return record is not None and record.get('step', 0) <= step


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The objects of a JsonLines file, in order; a missing file has none, a torn line is left out."""
  return [record for _, record in numbered_lines(path)]


def numbered_lines(path: str | os.PathLike[str]) -> list[tuple[int, dict[str, Any]]]:
  """`read_lines`, each with the number of its line in the file, from 1 on."""
  try:
    with open(path, 'rb') as lines:
      return [(n, record) for n, line in enumerate(lines, 1) if (record := _parse(line)) is not None]
  except FileNotFoundError:
    return []


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
  """`read_lines` of numbers, the non-finite ones as floats again."""
  return [_numbers(record) for record in read_lines(path)]


def parse_metrics(line: bytes) -> dict[str, float] | None:
  """One line as `read_metrics` has it, for who follows a file; None: it is torn."""
  record = _parse(line)
  return None if record is None else _numbers(record)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
  return {key: float(v) if v in _NON_FINITE else v for key, v in record.items()}
