"""Batches for training and evaluation, read ahead by threads."""

import contextlib
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Generator, Sequence
from typing import Any

import grain
import numpy as np

from llamax.core.config import DataConfig
from llamax.core.errors import UserError
from llamax.core.types import Batch
from llamax.data.mixture import HostRows, Places, Skips, batch_of_step, row_stream
from llamax.data.packing import FIELDS, PackedRows
from llamax.data.source import DocumentSource, Share, find_tokenizer, open_source
from llamax.data.tokenizer import Tokenizer

_TRAIN = 'train'


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """The opened sources of a run. fingerprint: hex, of the content of all of them in order."""

  cfg: DataConfig
  tokenizer: Tokenizer
  sources: tuple[DocumentSource, ...]
  epochs: tuple[PackedRows, ...]
  fingerprint: str

  @property
  def vocab_size(self) -> int:
    """Of the tokenizer; the model's may be larger."""
    return self.tokenizer.vocab_size

  @property
  def num_rows_per_epoch(self) -> int:
    """Rows that hold every pair of every source once."""
    return sum(len(rows) for rows in self.epochs)

  def check_ids(self, vocab_size: int) -> None:
    """UserError when a source holds ids past the model's vocabulary."""
    for source in self.sources:
      source.check_ids(vocab_size)

  def batches(
    self, *, batch_size: int, start_step: int, rows: Sequence[int] | None = None, skips: Skips = ()
  ) -> Generator[Batch, None, None]:
    """The host's part of the batch of step start_step, start_step + 1, ...: int32 [len(rows), T].

    A batch is a function of its step, with the skips, alone: nothing needs to be saved to go on, hosts may come
    or go. Close the iterator to end its threads.

    Args:
      start_step: updates done before.
      rows: which ones of the global batch this host holds (parallel.rows.host_rows); None: all.
      skips: ((step, batches), ...): from `step` on, so many batches further on in the stream are read.
    """
    rows = range(batch_size) if rows is None else rows
    stream = HostRows(
      row_stream(self.epochs, self.cfg.weights, self.cfg.seed),
      batch_size=batch_size,
      start_step=start_step,
      rows=rows,
      skips=skips,
    )
    return _batches(stream, len(rows), self.cfg)

  def documents(self, step: int, batch_size: int, skips: Skips = ()) -> list[str]:
    """What the whole batch of a step is made of: of each document the folder, index, first shard."""
    places = [Places(i, rows) for i, rows in enumerate(self.epochs)]
    stream = row_stream(places, self.cfg.weights, self.cfg.seed)
    start = batch_of_step(step, skips) * batch_size
    found: dict[str, None] = {}
    for i in range(start, start + batch_size):
      source, row = stream[i]
      for document in self.epochs[source].documents(row):
        found[self.sources[source].name_of(document)] = None
    return list(found)


@dataclasses.dataclass(frozen=True)
class EvalData:
  """One named held-out split. num_tokens: the pairs that bear loss."""

  cfg: DataConfig
  name: str
  source: DocumentSource
  rows: PackedRows

  @property
  def num_tokens(self) -> int:
    return self.rows.num_pairs

  def num_batches(self, batch_size: int, limit: int | None) -> int:
    whole = -(-len(self.rows) // batch_size)
    return whole if limit is None else min(limit, whole)

  def batches(self, *, batch_size: int, num_batches: int | None) -> Generator[Batch, None, None]:
    """Global batches in stored order, int32 [batch_size, T]; rows past the end are padding (segment id 0)."""
    limit = self.num_batches(batch_size, num_batches) * batch_size
    return _batches(self.rows, batch_size, self.cfg, limit)


def open_training(cfg: DataConfig, share: Share = (0, 1)) -> TrainingData:
  """Opens, verifies every source; UserError names the one that will not do.

  Args:
    share: (which process this is, of how many), each of which verifies some of the shards.
  """
  tokenizer = find_tokenizer(cfg)
  sources = tuple(open_source(spec, _TRAIN, cfg, tokenizer, share) for spec in cfg.sources)
  epochs = tuple(PackedRows(source, cfg.seq_len, cfg.seed) for source in sources)
  fingerprint = hashlib.sha256(' '.join(source.fingerprint for source in sources).encode()).hexdigest()
  return TrainingData(cfg, tokenizer, sources, epochs, fingerprint)


def open_eval(entry: str, cfg: DataConfig, tokenizer: Tokenizer, share: Share = (0, 1)) -> EvalData:
  """`NAME=SOURCE:SPLIT` -> the split, `share` as of `open_training`; UserError when it cannot be had."""
  parsed = re.fullmatch(r'(?P<name>[^=]+)=(?P<source>.+):(?P<split>[^:/]+)', entry)
  if not parsed:
    raise UserError(f'eval.splits entry {entry!r}: want NAME=SOURCE:SPLIT, as in valid=data/stdlib:validation')
  source = open_source(parsed['source'], parsed['split'], cfg, tokenizer, share)
  return EvalData(cfg, parsed['name'], source, PackedRows(source, cfg.seq_len, None))


def train_batches(
  cfg: DataConfig, *, batch_size: int, start_step: int, rows: Sequence[int] | None = None
) -> Generator[Batch, None, None]:
  """`open_training(cfg).batches(...)`, for one use."""
  return open_training(cfg).batches(batch_size=batch_size, start_step=start_step, rows=rows)


def eval_batches(
  entry: str, cfg: DataConfig, batch_size: int, num_batches: int | None
) -> Generator[Batch, None, None]:
  """`open_eval(entry, ...).batches(...)` with the run's tokenizer, for one use."""
  data = open_eval(entry, cfg, find_tokenizer(cfg))
  return data.batches(batch_size=batch_size, num_batches=num_batches)


def _batches(rows: Any, size: int, cfg: DataConfig, limit: int | None = None) -> Generator[Batch, None, None]:
  """Rows 0, 1, ... up to `limit` in batches of `size`, cfg.prefetch_rows read ahead; the last one is padded."""
  options = grain.ReadOptions(num_threads=cfg.read_threads, prefetch_buffer_size=cfg.prefetch_rows)
  iterator = iter(grain.MapDataset.source(_InThread(rows))[:limit].to_iter_dataset(options))
  with contextlib.closing(iterator):
    while group := list(itertools.islice(iterator, size)):
      yield _stack(group, size, cfg.seq_len)


class _InThread:
  """Rows as the reader threads ask for them: whatever goes wrong there is an error here, with its row."""

  def __init__(self, rows: Any):
    self._rows = rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Batch:
    try:
      return self._rows[index]
    except (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
      # The first one would pass for the end of the data, the others for somebody's wish to end the program.
      raise RuntimeError(f'the thread that read row {index} of this host died: {error!r}') from error


def _stack(rows: Sequence[Batch], size: int, seq_len: int) -> Batch:
  batch = {name: np.zeros((size, seq_len), np.int32) for name in FIELDS}
  for index, row in enumerate(rows):
    for name in FIELDS:
      batch[name][index] = row[name]  # type: ignore[literal-required]
  return Batch(**batch)  # type: ignore[typeddict-item]
