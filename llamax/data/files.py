"""What a corpus is read from: files, the ranges of them that are read at a time."""

import dataclasses

# A text file longer than this is no document of its own: it becomes many, cut at line ends.
LONG_TEXT_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
  """One thing to read. kind: text, topics, lines, parquet, tfds; type: its label in the report."""

  name: str  # relative to the input that it came from
  path: str
  kind: str
  type: str
  size: int  # bytes; of a tfds split, what its records take
  stamp: int  # changes when the content may have
  count: int = 0  # row groups of a parquet file, records of a tfds split
  split: str | None = None  # a tfds split keeps its name; None: cut by the hash of each document


@dataclasses.dataclass(frozen=True)
class Unit:
  """A range of a file, bytes or row groups or records from `start` up to `stop`, that fits in memory."""

  file: File
  start: int
  stop: int
  size: int  # bytes
