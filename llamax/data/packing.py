"""Documents -> rows of exactly T (input, target) pairs, any row found without reading the ones before."""

from typing import Protocol

import numpy as np

from llamax.core.types import Batch

FIELDS = ('tokens', 'targets', 'segment_ids', 'positions')


class Documents(Protocol):
  """What packing needs of a source: lengths int64 [documents]; `read` gives int32 [stop - start] tokens."""

  lengths: np.ndarray

  def read(self, document: int, start: int, stop: int) -> np.ndarray: ...


class PackedRows:
  """Random access to the rows of one pass over the documents.

  A document of n tokens gives n - 1 pairs of a token with the one after it. The pairs of all documents, in an
  order drawn from `seed` (None: as stored), stand in one line that is cut every `seq_len`: each pair is in
  exactly one row, at no cost but the padding of the last. What one document has in a row is a segment.
  """

  def __init__(self, documents: Documents, seq_len: int, seed: int | None):
    self._documents, self._seq_len = documents, seq_len
    pairs = documents.lengths.astype(np.int64) - 1
    count = len(pairs)
    # RandomState, whose numbers no numpy release may change: a run goes on under another one.
    random = np.random.RandomState(np.random.MT19937(seed or 0))
    self._order = np.arange(count) if seed is None else random.permutation(count)
    # _ends[i]: pairs in the first i + 1 documents of the order.
    self._ends = np.cumsum(pairs[self._order])
    self.num_pairs: int = int(self._ends[-1]) if count else 0
    self._positions = np.arange(seq_len, dtype=np.int32)

  def __len__(self) -> int:
    return -(-self.num_pairs // self._seq_len)

  def __getitem__(self, row: int) -> Batch:
    """tokens, targets, segment_ids (from 1; 0: padding), positions: int32 [T] each."""
    start, stop = self._span(row)
    out = np.zeros((4, self._seq_len), np.int32)
    tokens, targets, segment_ids, positions = out
    at, segment = start, 0
    place = int(np.searchsorted(self._ends, start, side='right'))
    while at < stop:
      document = int(self._order[place])
      end = int(self._ends[place])
      first = at - (end - int(self._documents.lengths[document]) + 1)
      count = min(end, stop) - at
      if count:
        ids = self._documents.read(document, first, first + count + 1)
        here = slice(at - start, at - start + count)
        segment += 1
        tokens[here], targets[here] = ids[:-1], ids[1:]
        segment_ids[here], positions[here] = segment, self._positions[:count]
      at += count
      place += 1
    return Batch(tokens=tokens, targets=targets, segment_ids=segment_ids, positions=positions)

  def documents(self, row: int) -> list[int]:
    """The documents that have a segment in the row, in its order."""
    start, stop = self._span(row)
    first, last = np.searchsorted(self._ends, (start, stop - 1), side='right')
    return [int(i) for i in self._order[first : last + 1] if self._documents.lengths[i] > 1]

  def _span(self, row: int) -> tuple[int, int]:
    """The pairs of the row within the line of all pairs."""
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)}')
    return row * self._seq_len, min((row + 1) * self._seq_len, self.num_pairs)
