"""Which documents are kept, in which split: decided by what each document says, not by where it stands."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from llamax.core.errors import UserError
from llamax.data.files import Unit
from llamax.data.format import TRAIN, VALIDATION
from llamax.data.shards import Scan

_BY_HASH = -2


@dataclasses.dataclass(frozen=True)
class Plan:
  splits: tuple[str, ...]  # train, validation, then what tfds datasets brought
  codes: list[np.ndarray]  # int8 per task: each valid document's place in `splits`; -1: dropped
  dropped: Counter
  documents: dict[str, int]  # per split

  def fingerprint(self, scans: Sequence[Scan], tokenizer: str) -> str:
    """Hex: the same texts in the same order, in the same splits, by the same tokenizer give the same one."""
    digest = hashlib.sha256(tokenizer.encode())
    for code, split in enumerate(self.splits):
      digest.update(split.encode())
      for scan, codes in zip(scans, self.codes, strict=True):
        digest.update(np.ascontiguousarray(scan.digests[codes == code]).tobytes())
    return digest.hexdigest()

  def sample(self, scans: Sequence[Scan], max_bytes: int) -> tuple[list[np.ndarray], int]:
    """Train documents to learn a vocabulary from, by second hash, up to `max_bytes` or one document more.

    Returns their positions in each task, ascending, with the bytes that count of each: no document fills the
    sample while there are others.
    """
    train = [np.flatnonzero(codes == 0) for codes in self.codes]
    task = np.repeat(np.arange(len(train)), [len(t) for t in train])
    position = np.concatenate(train)
    most = max(1 << 20, max_bytes // max(1, len(position)))
    sizes = np.concatenate([s.sizes[t] for s, t in zip(scans, train, strict=True)])
    draws = np.concatenate([s.digests[t, 1] for s, t in zip(scans, train, strict=True)])
    order = np.argsort(draws, kind='stable')
    count = int(np.searchsorted(np.cumsum(np.minimum(sizes[order], most)), max_bytes)) + 1
    chosen = np.sort(order[:count])
    return [position[chosen[task[chosen] == i]] for i in range(len(train))], most


def make_plan(
  tasks: Sequence[Sequence[Unit]],
  scans: Sequence[Scan],
  fraction: float,
  max_documents: int | None,
  passed_over: Counter,
) -> Plan:
  """Drops exact duplicates but the first, then puts each document where its hash says.

  Two documents or more never leave validation empty while `fraction` is above 0: the lowest hash goes there.
  passed_over: what the walk left out, by reason. UserError when no document is left.
  """
  named = {u.file.split for task in tasks for u in task if u.file.split}
  splits = (TRAIN, VALIDATION, *sorted(named - {TRAIN, VALIDATION}))
  fixed = [[_BY_HASH if u.file.split is None else splits.index(u.file.split) for u in task] for task in tasks]
  none = np.zeros(0, np.int8)
  origin = np.concatenate([none] + [np.array(f, np.int8)[s.units] for f, s in zip(fixed, scans, strict=True)])
  digests = np.concatenate([np.zeros((0, 2), np.uint64)] + [s.digests for s in scans])
  dropped: Counter = sum((s.dropped for s in scans), Counter(passed_over))
  keep = _first_of_each(digests)
  dropped['exact duplicate'] += int((~keep).sum())
  if max_documents is not None:
    late = np.flatnonzero(keep)[max_documents:]
    keep[late] = False
    dropped['past --max_documents'] += len(late)
  if not keep.any():
    seen = ', '.join(f'{count} {reason}' for reason, count in (+dropped).most_common()) or 'no file at all'
    hint = '; --text_key names the key of the text' if any(r.startswith('no key') for r in dropped) else ''
    raise UserError(f'no document found: {seen}; want at least one UTF-8 text with more than spaces{hint}')
  codes = np.where(keep, origin, np.int8(-1))
  _cut_by_hash(codes, digests[:, 0], fraction)
  counts = {name: int((codes == i).sum()) for i, name in enumerate(splits)}
  bounds = np.cumsum([len(s.sizes) for s in scans])[:-1]
  return Plan(splits, np.split(codes, bounds), +dropped, {name: n for name, n in counts.items() if n})


def _first_of_each(digests: np.ndarray) -> np.ndarray:
  order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: among equals the first stays first
  new = np.ones(len(order), bool)
  new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
  keep = np.zeros(len(order), bool)
  keep[order[new]] = True
  return keep


def _cut_by_hash(codes: np.ndarray, hashes: np.ndarray, fraction: float) -> None:
  """Replaces _BY_HASH in `codes` by train (0) or validation (1), in place."""
  free = np.flatnonzero(codes == _BY_HASH)
  if not len(free):
    return
  share = hashes[free].astype(np.float64) / 2.0**64
  codes[free] = (share < fraction).astype(np.int8)
  if fraction > 0 and (codes >= 0).sum() >= 2:
    if not (codes == 1).any():
      codes[free[np.argmin(hashes[free])]] = 1
    if not (codes == 0).any():
      codes[free[np.argmax(hashes[free])]] = 0
  elif not (codes == 0).any():
    codes[free[np.argmax(hashes[free])]] = 0
