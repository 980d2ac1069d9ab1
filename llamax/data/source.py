"""Tokenised documents by random access, their lengths known beforehand."""

import hashlib
import os
import re
from typing import Any

import numpy as np

from llamax.core.config import DataConfig
from llamax.core.errors import UserError
from llamax.data.format import MANIFEST, check_files, files_of, read_manifest
from llamax.data.prepare import Settings, prepare
from llamax.data.records import Records
from llamax.data.tfds_text import TFDS_PREFIX, open_builder
from llamax.data.tokenizer import Tokenizer, open_tokenizer
from llamax.data.verify import digest, verify

# (which process this is, of how many): each one verifies a part of the shards.
Share = tuple[int, int]


class DocumentSource:
  """One split of a prepared folder.

  lengths: np.int64 [documents], tokens of each document, <s> with </s> included. num_bytes: UTF-8 bytes of the
  split's text. fingerprint, tokenizer_fingerprint: hex, of the split's files in order, of the tokenizer.
  """

  def __init__(self, folder: str, split: str, *, digests: bool = True, share: Share = (0, 1)):
    """
    Args:
      digests: compare the files of the split with their recorded SHA-256: the small ones in each process, the
        shards by `share` (of which all processes are taken to see the same ones).

    Raises:
      UserError: no prepared folder, files missing or of another size or content, another tokenizer, no such
        split.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if split not in manifest['splits']:
      raise UserError(f'{folder!r} has no documents in split {split!r}; it has {", ".join(manifest["splits"])}')
    self.folder, self.split = folder, split
    self.tokenizer_path = os.path.join(folder, manifest['tokenizer']['name'])
    for file in (manifest['tokenizer'], *manifest.get('tokenizer_beside', ())):
      path = os.path.join(folder, file['name'])
      if (found := digest(path)) != file['sha256']:
        raise UserError(
          f'{path} has sha256 {found[:12]}, {MANIFEST} records {file["sha256"][:12]}: the ids in this folder '
          'were made by another tokenizer'
        )
    # Of most kinds it is that of the file; where it is not, the manifest says so.
    self.tokenizer_fingerprint: str = manifest.get('tokenizer_fingerprint', manifest['tokenizer']['sha256'])
    facts = manifest['splits'][split]
    if digests:
      index, count = share
      verify(folder, [facts['lengths'], *facts['files'][index::count]], files_of(manifest))
    # What prepare.json says of itself is not enough: it could have been written anew over other files.
    content = [
      manifest['fingerprint'],
      facts['lengths']['sha256'],
      *(file['sha256'] for file in facts['files']),
    ]
    self.fingerprint = hashlib.sha256(' '.join(content).encode()).hexdigest()
    self.vocab_size: int = manifest['vocab_size']
    self.max_token_id: int = manifest['max_token_id']
    self.num_bytes: int = facts['bytes']
    self.lengths = _read_lengths(os.path.join(folder, facts['lengths']['name']), facts)
    self._record_pairs: int = manifest['record_pairs']
    self._records = Records(folder, facts['files'], self.max_token_id)
    counts = -(-(self.lengths - 1) // self._record_pairs)
    self._first_record = np.cumsum(counts) - counts
    if int(counts.sum()) != len(self._records):
      raise UserError(
        f'{folder!r} split {split!r} has {len(self._records)} records, {facts["lengths"]["name"]} tells of '
        f'{int(counts.sum())}; prepare again with --overwrite'
      )

  def __len__(self) -> int:
    return len(self.lengths)

  def read(self, document: int, start: int, stop: int) -> np.ndarray:
    """Tokens start..stop of a document, int32 [stop - start], at least two of them."""
    step = self._record_pairs
    first, last = start // step, (stop - 2) // step
    base, length = int(self._first_record[document]), int(self.lengths[document])
    pieces = [self._records.read(base + i, min(step + 1, length - i * step)) for i in range(first, last + 1)]
    # A record shares its last token with the next one, which therefore counts once.
    pieces[:-1] = [piece[:-1] for piece in pieces[:-1]]
    tokens = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return tokens[start - first * step : stop - first * step]

  def name_of(self, document: int) -> str:
    """For a message: the folder, the document's index, the file that its first record is in."""
    shard, _ = self._records.place_of(int(self._first_record[document]))
    return f'{self.folder} document {document} of split {self.split!r} ({os.path.basename(shard)})'

  def check_ids(self, vocab_size: int) -> None:
    """UserError when the documents hold ids that a model of `vocab_size` has no embedding for."""
    if self.max_token_id >= vocab_size:
      raise UserError(
        f'{self.folder!r} holds ids up to {self.max_token_id}, the model has model.vocab_size={vocab_size}, '
        f'the tokenizer {self.vocab_size}: set model.vocab_size to at least {self.vocab_size}, or prepare with '
        f'--vocab_size={vocab_size}'
      )


def _read_lengths(path: str, facts: dict[str, Any]) -> np.ndarray:
  try:
    lengths = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f'{path} cannot be read ({error}); prepare again with --overwrite') from None
  wanted = (facts['documents'], facts['tokens'])
  if lengths.dtype != np.int64 or lengths.ndim != 1 or (len(lengths), int(lengths.sum())) != wanted:
    raise UserError(
      f'{path} does not hold the lengths of {wanted[0]} documents with {wanted[1]} tokens, as {MANIFEST} '
      'records; prepare again with --overwrite'
    )
  if (lengths < 1).any():
    raise UserError(f'{path} holds a length of {lengths.min()}; prepare again with --overwrite')
  return lengths


def find_tokenizer(cfg: DataConfig) -> Tokenizer:
  """cfg.tokenizer, else the one in the first prepared folder; UserError when there is neither."""
  if cfg.tokenizer is not None:
    return open_tokenizer(cfg.tokenizer)
  for spec in cfg.sources:
    if not spec.startswith(TFDS_PREFIX):
      folder = os.path.expanduser(spec)
      read_manifest(folder)
      return open_tokenizer(folder)
  raise UserError(
    f'data.sources={cfg.sources} have no tokenizer: set data.tokenizer to a tokenizer file, or run '
    f'`llamax prepare {cfg.sources[0]} --out=DIR`, which trains one, then name DIR as the source'
  )


def open_source(
  spec: str, split: str, cfg: DataConfig, tokenizer: Tokenizer, share: Share = (0, 1)
) -> DocumentSource:
  """A prepared folder, or `tfds:NAME` tokenised once into cfg.cache_dir.

  UserError: it cannot be opened, or its ids were made by another tokenizer.
  """
  from_tfds = spec.startswith(TFDS_PREFIX)
  folder = _tokenised(spec, cfg, tokenizer) if from_tfds else os.path.expanduser(spec)
  source = DocumentSource(folder, split, digests=cfg.verify_digests, share=share)
  if source.tokenizer_fingerprint != tokenizer.fingerprint:
    raise UserError(
      f'{spec!r} was made with tokenizer {source.tokenizer_fingerprint[:12]}, this run uses {tokenizer.path!r} '
      f'({tokenizer.fingerprint[:12]}); all sources of a run share one: prepare it again with '
      f'--tokenizer={tokenizer.path}'
    )
  return source


def _tokenised(spec: str, cfg: DataConfig, tokenizer: Tokenizer) -> str:
  """The folder of a tfds dataset's tokens. Rows need the length of every document, so it is made beforehand."""
  builder = open_builder(spec, cfg.tfds_data_dir)
  # Two data_dirs may hold different datasets of one name.
  place = hashlib.sha256(str(builder.data_dir).encode()).hexdigest()[:8]
  name = re.sub('[^A-Za-z0-9.]+', '_', f'{builder.info.full_name}-{cfg.text_feature}')
  folder = os.path.join(os.path.expanduser(cfg.cache_dir), f'{name}-{place}-{tokenizer.fingerprint[:12]}')
  settings = Settings(
    out=folder,
    inputs=(spec,),
    tokenizer=tokenizer.path,
    text_key=cfg.text_feature,
    tfds_data_dir=cfg.tfds_data_dir,
  )
  report = prepare(settings)
  if not report.complete_before:
    print(report)
  return folder
