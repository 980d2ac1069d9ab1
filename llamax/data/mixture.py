"""The endless stream of training rows: shuffled, repeated, mixed by weight, each a function of its index."""

import sys
from collections.abc import Sequence

import grain
import numpy as np

from llamax.core.types import Batch
from llamax.data.packing import PackedRows


def row_stream(epochs: Sequence[PackedRows], weights: Sequence[float], seed: int) -> grain.MapDataset:
  """Row i of the stream, for any i: the sources' rows in the proportion of `weights`, interleaved evenly.

  Each source repeats without end, its rows in a new order every epoch; a source of weight 0 is never read.
  """
  streams, shares = [], []
  for index, (rows, weight) in enumerate(zip(epochs, weights, strict=True)):
    if weight > 0:
      own_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
      streams.append(grain.MapDataset.source(rows).shuffle(seed=own_seed).repeat())
      shares.append(weight)
  return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights=shares)


class HostRows:
  """The rows that one host reads, step by step: its slice of every global batch, from `start_step` on.

  Global batch s is rows s * batch_size .. (s + 1) * batch_size of the stream, whatever the number of hosts.
  """

  def __init__(
    self, stream: grain.MapDataset, *, batch_size: int, start_step: int, process_index: int, process_count: int
  ):
    if batch_size % process_count:
      raise ValueError(f'a batch of {batch_size} rows does not divide by {process_count} processes')
    self._stream, self._batch_size = stream, batch_size
    self.rows_per_step = batch_size // process_count
    self._offset = start_step * batch_size + process_index * self.rows_per_step

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Batch:
    step, row = divmod(index, self.rows_per_step)
    return self._stream[self._offset + step * self._batch_size + row]
