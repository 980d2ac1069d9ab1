"""What the workers of `llamax prepare` do to one task: scan its documents, later write their tokens."""

import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from llamax.core.errors import UserError
from llamax.data.documents import Dropped, read_documents
from llamax.data.files import Unit
from llamax.data.format import RECORD_PAIRS, describe, read_json, serialize, sync, write_json, write_whole
from llamax.data.tokenizer import Tokenizer, open_tokenizer


@dataclasses.dataclass(frozen=True)
class Work:
  """What every task needs to know. Everything is written under `folder`, each file whole or not at all."""

  folder: str
  text_key: str
  tfds_data_dir: str | None

  def path(self, kind: str, index: int, suffix: str) -> str:
    return os.path.join(self.folder, f'{kind}-{index:05d}{suffix}')


@dataclasses.dataclass(frozen=True)
class Scan:
  """The valid documents of a task, in order. digests: uint64 [n, 2] of the text; sizes: int64 [n], bytes."""

  digests: np.ndarray
  sizes: np.ndarray
  units: np.ndarray  # int32 [n]: which unit of the task a document came from
  dropped: Counter


def digest_of(data: bytes) -> tuple[int, int]:
  """128 bits that stand for a document: equal texts are duplicates, the first 64 say which split it is in."""
  raw = hashlib.blake2b(data, digest_size=16, person=b'llamax').digest()
  return int.from_bytes(raw[:8], 'big'), int.from_bytes(raw[8:], 'big')


def scan(index: int, units: Sequence[Unit], work: Work) -> None:
  """Writes scan-INDEX.npz."""
  path = work.path('scan', index, '.npz')
  if os.path.exists(path):
    return
  digests: list[tuple[int, int]] = []
  sizes: list[int] = []
  origins: list[int] = []
  dropped: Counter = Counter()
  for origin, unit in enumerate(units):
    for text in read_documents(unit, work.text_key, work.tfds_data_dir):
      if isinstance(text, Dropped):
        dropped[text.reason] += 1
        continue
      data = text.encode()
      digests.append(digest_of(data))
      sizes.append(len(data))
      origins.append(origin)
  reasons = np.frombuffer(json.dumps(dropped).encode(), np.uint8)
  write_whole(
    path,
    lambda f: np.savez(
      f,
      digests=np.array(digests, np.uint64).reshape(-1, 2),
      sizes=np.array(sizes, np.int64),
      units=np.array(origins, np.int32),
      dropped=reasons,
    ),
  )


def load_scan(index: int, work: Work) -> Scan:
  with np.load(work.path('scan', index, '.npz'), allow_pickle=False) as saved:
    dropped = Counter(json.loads(saved['dropped'].tobytes()))
    return Scan(saved['digests'], saved['sizes'], saved['units'], dropped)


def read_sample(units: Sequence[Unit], positions: np.ndarray, max_chars: int, work: Work) -> list[str]:
  """The beginning of the documents at `positions`, ascending, among the valid ones of a task."""
  wanted, position = set(positions.tolist()), 0
  texts: list[str] = []
  for unit in units:
    for text in read_documents(unit, work.text_key, work.tfds_data_dir):
      if len(texts) == len(wanted):
        return texts
      if isinstance(text, Dropped):
        continue
      if position in wanted:
        texts.append(text[:max_chars])
      position += 1
  return texts


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
  return open_tokenizer(path)


class _Part:
  """The records of one split in one task, with what the report says of them."""

  def __init__(self, path: str, byte_lengths: np.ndarray, unk_id: int):
    from array_record.python.array_record_module import ArrayRecordWriter

    self._temporary, self._path = f'{path}.tmp-{os.getpid()}', path
    # Grain and tfds read single records at random: one record per compressed chunk.
    self._writer = ArrayRecordWriter(self._temporary, 'group_size:1')
    self._byte_lengths, self._unk_id = byte_lengths, unk_id
    self.lengths: list[int] = []
    self.facts = {'records': 0, 'example_bytes': 0, 'bytes': 0, 'max_token_id': 0, 'unknown': 0}

  def add(self, ids: np.ndarray, num_bytes: int) -> None:
    """ids: int32 [n] of a whole document, n at least 2."""
    for start in range(0, len(ids) - 1, RECORD_PAIRS):
      tokens = ids[start : start + RECORD_PAIRS + 1]
      spelled = int(self._byte_lengths[tokens[1:]].sum())
      example = serialize(tokens, spelled)
      self._writer.write(example)
      self.facts['records'] += 1
      self.facts['example_bytes'] += len(example)
    self.lengths.append(len(ids))
    self.facts['bytes'] += num_bytes
    self.facts['max_token_id'] = max(self.facts['max_token_id'], int(ids.max()))
    self.facts['unknown'] += int((ids == self._unk_id).sum())

  def close(self) -> dict[str, Any]:
    self._writer.close()
    sync(self._temporary)
    os.replace(self._temporary, self._path)
    write_whole(f'{self._path}.npy', lambda f: np.save(f, np.array(self.lengths, np.int64), allow_pickle=False))
    return self.facts | describe(self._path)


def write_part(
  index: int, units: Sequence[Unit], codes: np.ndarray, splits: Sequence[str], tokenizer: str, work: Work
) -> dict[str, Any]:
  """Writes the tokens of a task: part-INDEX-SPLIT with its lengths per split, then part-INDEX.json, the facts.

  codes: int8, for each valid document its place in `splits`, or -1: leave it out. UserError when a document is
  another one than when it was scanned.
  """
  summary = work.path('part', index, '.json')
  if os.path.exists(summary):
    return read_json(summary)
  digests = load_scan(index, work).digests
  model = _tokenizer(tokenizer)
  parts: dict[int, _Part] = {}
  types: dict[str, list[int]] = {}
  position = 0
  for unit in units:
    for text in read_documents(unit, work.text_key, work.tfds_data_dir):
      if isinstance(text, Dropped):
        continue
      data = text.encode()
      if position >= len(codes) or digest_of(data) != tuple(int(x) for x in digests[position]):
        raise _changed(unit)
      code = int(codes[position])
      position += 1
      if code < 0:
        continue
      if code not in parts:
        path = work.path('part', index, f'-{splits[code]}')
        parts[code] = _Part(path, model.byte_lengths, model.unk_id)
      ids = np.array(model.encode(text, bos=True, eos=True), np.int32)
      parts[code].add(ids, len(data))
      row = types.setdefault(unit.file.type, [0, 0, 0])
      types[unit.file.type] = [row[0] + 1, row[1] + len(data), row[2] + len(ids)]
  if position != len(codes):
    raise _changed(units[-1])
  facts = {'splits': {splits[code]: parts[code].close() for code in sorted(parts)}, 'types': types}
  write_json(summary, facts)
  return facts


def _changed(unit: Unit) -> UserError:
  return UserError(f'{unit.file.path} changed while it was being prepared; run the command again')
