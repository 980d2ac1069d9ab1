"""The endless stream of training rows: shuffled, repeated, mixed by weight, each a function of its index."""

import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from llamax.core.types import Batch
from llamax.data.packing import PackedRows

# Batches left out of the run, as (step that would have read the first of them, how many): see `batch_of_step`.
Skips = Sequence[tuple[int, int]]


def batch_of_step(step: int, skips: Skips) -> int:
  """Which global batch of the stream makes update `step` + 1: each skip moves the steps from it on further."""
  return step + sum(count for at, count in skips if step >= at)


def row_stream(epochs: Sequence[Any], weights: Sequence[float], seed: int) -> grain.MapDataset:
  """Row i of the stream, for any i: the sources' rows in the proportion of `weights`, interleaved evenly.

  Each source repeats without end, its rows in a new order every epoch; a source of weight 0 is never read.

  Args:
    epochs: one pass over each source: `PackedRows`, or as many of anything else, in the same order then.
  """
  streams, shares = [], []
  for index, (rows, weight) in enumerate(zip(epochs, weights, strict=True)):
    if weight > 0:
      own_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
      streams.append(grain.MapDataset.source(rows).shuffle(seed=own_seed).repeat())
      shares.append(weight)
  return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights=shares)


class Places:
  """Where the rows of one pass come from, for `row_stream` in place of the rows: (index of the source, row)."""

  def __init__(self, source: int, rows: PackedRows):
    self._source, self._count = source, len(rows)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, row: int) -> tuple[int, int]:
    return self._source, int(row)


class HostRows:
  """The rows that one host reads, step by step: the same `rows` of every global batch, from `start_step` on.

  Global batch s is rows s * batch_size .. (s + 1) * batch_size of the stream, whatever the number of hosts.
  Step s reads batch s, or a later one when batches before it are left out.
  """

  def __init__(
    self,
    stream: grain.MapDataset,
    *,
    batch_size: int,
    start_step: int,
    rows: Sequence[int],
    skips: Skips = (),
  ):
    assert all(0 <= row < batch_size for row in rows), (rows, batch_size)
    self._stream, self._batch_size, self._start, self._skips = stream, batch_size, start_step, tuple(skips)
    self._rows = tuple(rows)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Batch:
    step, place = divmod(index, len(self._rows))
    batch = batch_of_step(self._start + step, self._skips)
    return self._stream[batch * self._batch_size + self._rows[place]]
