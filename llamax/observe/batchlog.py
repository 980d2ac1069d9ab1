"""Which rows each step trained on, with the bits of its loss: the proof that none is lost, doubled, swapped."""

import contextlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llamax.core.types import Batch
from llamax.observe.jsonl import JsonLines, read_lines

_FIELDS = ('tokens', 'targets', 'segment_ids', 'positions')
_PATTERN = 'batches-*.jsonl'

Rows = dict[int, dict[int, str]]  # step -> row of the global batch -> hash
Losses = dict[int, str]  # step -> float32 bits, hex


class BatchLog:
  """Appends to WORKDIR/batches-<process>.jsonl, across restarts: a step done again stands there again.

  A line is {step, skipped, rows: [[row of the global batch, xxh3_64 hex], ...], loss: float32 bits in hex}.
  step: as in metrics.jsonl, updates done with it. skipped: batches left out before it; a run that was rolled
  back does its steps again with more of them. Logging never stops a run: what the disk refuses is left out.
  """

  def __init__(self, workdir: str | os.PathLike[str], process: int):
    self._lines = JsonLines(Path(workdir, f'batches-{process}.jsonl'))
    self._waiting: dict[int, dict[str, Any]] = {}

  def follow(
    self,
    batches: Generator[Batch, None, None],
    start_step: int,
    rows: Sequence[int],
    skips: Sequence[tuple[int, int]] = (),
  ) -> Generator[Batch, None, None]:
    """The same batches; the hashes of each one's rows wait for its loss. Closing it closes them.

    Args:
      batches: this process's rows, int32 [len(rows), T], of the steps from `start_step` (updates done before).
      rows: which rows of the global batch they are.
      skips: those of `TrainingData.batches`.
    """
    with contextlib.closing(batches):
      for step, batch in enumerate(batches, start_step):
        skipped = sum(count for at, count in skips if step >= at)
        hashes = [[int(row), row_hash(batch, i)] for i, row in enumerate(rows)]
        self._waiting[step + 1] = {'step': step + 1, 'skipped': skipped, 'rows': hashes}
        yield batch

  def write(self, step: int, loss: Any) -> None:
    """Adds the line of `step`, once its loss (a float32 scalar) is known."""
    record = self._waiting.pop(step)
    with contextlib.suppress(OSError):
      self._lines.append(record | {'loss': np.float32(loss).tobytes().hex()})

  def close(self) -> None:
    self._lines.close()


def row_hash(batch: Batch, row: int) -> str:
  """xxh3_64 of the row's tokens, targets, segment_ids, positions in that order, hex."""
  digest = xxhash.xxh3_64()
  for name in _FIELDS:
    digest.update(batch[name][row].tobytes())  # type: ignore[literal-required]
  return digest.hexdigest()


def read_batches(workdir: str | os.PathLike[str]) -> tuple[Rows, Losses]:
  """({step: {row: hash}}, {step: loss bits}) of all processes; after a roll-back, of the last way.

  Raises ValueError when a step that was done again, or another process, tells otherwise.
  """
  rows: Rows = {}
  losses: Losses = {}
  skipped: dict[int, int] = {}
  lines = [line for path in sorted(Path(workdir).glob(_PATTERN)) for line in read_lines(path)]
  for line in sorted(lines, key=lambda line: line['skipped']):
    step = line['step']
    if skipped.get(step) != line['skipped']:
      rows[step], skipped[step] = {}, line['skipped']
      losses.pop(step, None)
    for row, found in line['rows']:
      if rows[step].setdefault(row, found) != found:
        raise ValueError(f'step {step} row {row} was read twice: {rows[step][row]}, then {found}')
    if losses.setdefault(step, line['loss']) != line['loss']:
      raise ValueError(f'step {step} was computed twice: loss bits {losses[step]}, then {line["loss"]}')
  return rows, losses
