"""The .bin files of llama2.c (github.com/karpathy/llama2.c, export.py) in versions 0 and 1, both float32.

Version 0 is what its run.c reads: seven int32, then the tensors, each stacked over the layers; a negative
vocabulary means that the head is a matrix of its own. After the last norm it has the cosines, then the sines of
all positions. Version 1 begins with a magic, a version, a flag; it has no such tables. RoPE pairs are
neighbours, as in Meta's files. The 1e-5 in RMSNorm, the RoPE base 10,000 are constants of the program.
"""

import dataclasses
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from llamax.convert import meta
from llamax.convert.errors import FormatError, printable
from llamax.convert.layout import Layout
from llamax.convert.rows import sizes
from llamax.convert.source import Extent, File, Source
from llamax.convert.target import FileTarget, Model, Wanted
from llamax.convert.vocabulary import as_files
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError
from llamax.data.tokenizer import Tokenizer, open_tokenizer
from llamax.model.presets import LLAMA

_MAGIC = 0x616B3432  # 'ak42'
_HEADER_BYTES = {0: 28, 1: 256}
_FLOAT = np.dtype(np.float32)
_NORM_EPS, _ROPE_THETA = 1e-5, 10_000.0
# The header's counts, with what no model exceeds.
_COUNTS = {
  'dim': 1 << 18,
  'hidden_dim': 1 << 20,
  'n_layers': 1 << 12,
  'n_heads': 1 << 12,
  'n_kv_heads': 1 << 12,
  'vocab_size': 1 << 22,
  'seq_len': 1 << 24,
}
_TABLE_ROWS = 1 << 12  # positions whose cosines are made at a time
# float32 angles of late positions differ by some 1e-4 from one library to another; another base by far more.
_TABLE_ERROR = 1e-2

# Its model.py names tensors as Meta's checkpoints do, turns the same pairs.
ROWS = meta.ROWS
_ROW_OF = {row.theirs.removesuffix('.weight').removeprefix('layers.*.'): row for row in ROWS}
_WEIGHTS = (
  *(f'attention.{name}' for name in ('wq', 'wk', 'wv', 'wo')),
  *(f'feed_forward.{name}' for name in ('w1', 'w2', 'w3')),
)
_TABLES = 'freqs'
# What follows what.
_ORDER = {
  0: (
    *('tok_embeddings', 'attention_norm', *_WEIGHTS[:4], 'ffn_norm', *_WEIGHTS[4:]),
    *('norm', _TABLES, 'output'),
  ),
  1: ('attention_norm', 'ffn_norm', 'norm', 'tok_embeddings', *_WEIGHTS, 'output'),
}
# Fields that change nothing of what is computed, once the weights are there, without a rope_scaling.
_UNSAID = {
  *('preset', 'init', 'init_std', 'dropout', 'mup_base_width', 'rope_factor', 'rope_original_max_len'),
  *('rope_low_freq_factor', 'rope_high_freq_factor', 'rope_beta_fast', 'rope_beta_slow'),
}


def recognise(path: Path) -> bool:
  """Whether a file begins with one of the headers; version 0 has no magic, but counts that make a model."""
  if not path.is_file():
    return False
  try:
    _read_header(File(path))
  except FormatError as error:
    return error.field not in ('header', *_COUNTS)
  return True


def open_source(path: Path, tokenizer: Tokenizer | None) -> Source:
  """Raises FormatError: the header is impossible, or the file is not as long as it says."""
  file = File(path)
  version, cfg = _read_header(file)
  _require_size(file, cfg, version)
  places, tables, _ = _lay_out(cfg, version)
  notes = [] if tables is None else _compare_tables(file, tables, cfg)
  files = [path]
  if tokenizer is None and (beside := _tokenizer_of(path)):
    try:
      tokenizer = open_tokenizer(beside)
      files.append(beside)
    except UserError as error:
      notes.append(f'the tokenizer beside it is left out, give --tokenizer: {printable(error, 400)}')
  entries = {name: Extent(file, at, _FLOAT, shape, name) for name, (at, shape) in places.items()}
  return Source('llama2c', path, cfg, 'llama', ROWS, entries, tokenizer, notes=notes, files=files)


def _read_header(file: File) -> tuple[int, ModelConfig]:
  """(version, config)."""
  head, version = file.read(0, _HEADER_BYTES[0], 'header'), 0
  if struct.unpack_from('<I', head)[0] == _MAGIC:
    version = struct.unpack_from('<i', head, 4)[0]
    if version != 1:
      raise FormatError(file.path, 'version', f'is {version}; 0 and 1 are read, 2 is quantised')
    head = file.read(0, _HEADER_BYTES[1], 'shared_classifier')
  values = dict(zip(_COUNTS, struct.unpack_from('<7i', head, 8 if version else 0), strict=True))
  shared = values['vocab_size'] > 0
  if version:
    shared = bool(head[36])
    if head[36] > 1:
      raise FormatError(file.path, 'shared_classifier', f'is {head[36]}; want 0 or 1')
  else:
    values['vocab_size'] = abs(values['vocab_size'])
  for name, most in _COUNTS.items():
    if not 1 <= values[name] <= most:
      raise FormatError(
        file.path, name, f'is {values[name]:,}; want 1 to {most:,}: is this a .bin of llama2.c?'
      )
  width, heads, kv_heads = values['dim'], values['n_heads'], values['n_kv_heads']
  if width % heads or width // heads % 2:
    raise FormatError(file.path, 'n_heads', f'is {heads}: dim={width} does not give each an even width')
  if heads % kv_heads:
    raise FormatError(file.path, 'n_kv_heads', f'is {kv_heads}, which does not divide n_heads={heads}')
  return version, _config(values, shared)


def _require_size(file: File, cfg: ModelConfig, version: int) -> None:
  # Before names are made for each layer: it has two norms at least.
  if cfg.num_layers * cfg.d_model * 2 * _FLOAT.itemsize > file.size:
    raise FormatError(file.path, 'n_layers', f'is {cfg.num_layers:,}, more than fits into {file.size:,} bytes')
  wanted = _lay_out(cfg, version)[2]
  if file.size != wanted:
    raise FormatError(
      file.path, 'header', f'asks for {wanted:,} bytes; the file has {file.size:,}: is it whole?'
    )


def _config(values: Mapping[str, int], shared: bool) -> ModelConfig:
  return ModelConfig(
    **LLAMA
    | {
      'preset': 'none',
      'vocab_size': values['vocab_size'],
      'd_model': values['dim'],
      'num_layers': values['n_layers'],
      'num_heads': values['n_heads'],
      'num_kv_heads': values['n_kv_heads'],
      'head_dim': values['dim'] // values['n_heads'],
      'd_ff': values['hidden_dim'],
      'max_seq_len': values['seq_len'],
      'norm_eps': _NORM_EPS,
      'tie_embeddings': shared,
      'rope_theta': _ROPE_THETA,
      'rope_original_max_len': values['seq_len'],
    }
  )


def _lay_out(cfg: ModelConfig, version: int) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int | None, int]:
  """(their name -> (byte, shape), the byte of the tables, the size of the file)."""
  places: dict[str, tuple[int, tuple[int, ...]]] = {}
  letters, tables, at = sizes(cfg), None, _HEADER_BYTES[version]
  for name in _ORDER[version]:
    if name == _TABLES:
      tables, at = at, at + 2 * _FLOAT.itemsize * cfg.max_seq_len * (cfg.head_dim // 2)
    elif name != 'output' or not cfg.tie_embeddings:
      row = _ROW_OF[name]
      shape = Layout(row.layout, letters).shape
      for layer in range(cfg.num_layers if '*' in row.theirs else 1):
        places[row.theirs.replace('*', str(layer))] = (at, shape)
        at += _FLOAT.itemsize * math.prod(shape)
  return places, tables, at


def _table_pieces(cfg: ModelConfig, at: int) -> Iterator[tuple[int, np.ndarray]]:
  """(byte, float32 [positions, H / 2]) of the cosines and sines: the arithmetic of llama2.c's model.py."""
  exponents = np.arange(0, cfg.head_dim, 2, dtype=np.float32) / np.float32(cfg.head_dim)
  frequencies = np.float32(1) / np.float32(_ROPE_THETA) ** exponents
  row = _FLOAT.itemsize * (cfg.head_dim // 2)
  for first in range(0, cfg.max_seq_len, _TABLE_ROWS):
    positions = np.arange(first, min(cfg.max_seq_len, first + _TABLE_ROWS), dtype=np.float32)
    angles = positions[:, None] * frequencies
    yield at + row * first, np.cos(angles)
    yield at + row * (cfg.max_seq_len + first), np.sin(angles)


def _compare_tables(file: File, at: int, cfg: ModelConfig) -> list[str]:
  """Notes; FormatError where the file turns its pairs in another way than its program. The first rows tell."""
  pieces = _table_pieces(cfg, at)
  wanted = [next(pieces), next(pieces)]
  found = [file.array(place, _FLOAT, table.shape, 'freq_cis') for place, table in wanted]
  if not any(table.view(np.uint32).any() for table in found):
    return [f'{file.path}: its rotary tables are empty; the base is taken as {_ROPE_THETA:g}']
  for have, (_, want) in zip(found, wanted, strict=True):
    if not np.allclose(have, want, rtol=0, atol=_TABLE_ERROR):
      problem = f'these rotary tables are not of the base {_ROPE_THETA:g}, which is all that llama2.c computes'
      raise FormatError(file.path, 'freq_cis', problem)
  return []


class Target(FileTarget):
  """A file of version 0, which run.c of llama2.c reads, or of version 1; a tokenizer beside it."""

  format = 'llama2c'
  rows = ROWS
  dtypes = ('float32',)

  def __init__(self, model: Model, version: int = 0):
    super().__init__(model)
    self._version = version
    cfg = model.cfg
    counts = (cfg.d_model, cfg.d_ff, cfg.num_layers, cfg.num_heads, cfg.num_kv_heads, cfg.vocab_size)
    self._counts = dict(zip(_COUNTS, (*counts, cfg.max_seq_len), strict=True))
    said = _config(self._counts, cfg.tie_embeddings)
    wrong = [field.name for field in dataclasses.fields(cfg) if field.name not in _UNSAID]
    wrong = [name for name in wrong if getattr(said, name) != getattr(cfg, name)]
    if not wrong and cfg.num_heads * cfg.head_dim != cfg.d_model:
      wrong = ['head_dim']
    if wrong:
      asked = ', '.join(
        f'model.{name}={getattr(cfg, name)!r} (it has {getattr(said, name)!r})' for name in wrong
      )
      raise UserError(f'the format llama2c cannot hold this model: {asked}; write another format')

  def files(self, tensors: Sequence[Wanted]) -> dict[str, int]:
    return {self.result: _lay_out(self.model.cfg, self._version)[2]}

  def lay_out(self, folder: Path, tensors: Sequence[Wanted]) -> None:
    self.folder = folder
    self._tokenizer_files()
    places, tables, size = _lay_out(self.model.cfg, self._version)
    placed = [(tensor, places[tensor.name][0]) for tensor in tensors]
    self.add_file(self.result, size, [(0, self._header())], placed)
    if tables is not None:
      for at, table in _table_pieces(self.model.cfg, tables):
        self.placed[self.result].write_array(at, table)

  def _header(self) -> bytes:
    counts, tied = dict(self._counts), self.model.cfg.tie_embeddings
    if self._version:
      head = struct.pack('<Ii7iB', _MAGIC, self._version, *counts.values(), tied)
      return head.ljust(_HEADER_BYTES[1], b'\0')
    if not tied:
      counts['vocab_size'] *= -1
    return struct.pack('<7i', *counts.values())

  def finish(self) -> None:
    for path, content in self._tokenizer_files().items():
      path.write_bytes(content)

  def _tokenizer_files(self) -> dict[Path, bytes]:
    """NAME.tokenizer.bin beside NAME.bin: the file of the weights has no place for one."""
    if self.model.tokenizer is None:
      return {}
    assert self.folder
    path = _own_tokenizer(self.folder.with_name(self.folder.name.removesuffix('.incomplete')))
    (content,) = as_files(self.model.tokenizer, 'llama2c', self.model.cfg.vocab_size).values()
    if path.exists() and path.read_bytes() != content:
      raise UserError(f'{path} exists already, with another tokenizer; remove it, or give another name')
    return {path: content}


def _own_tokenizer(path: Path) -> Path:
  return path.with_name(f'{path.name.removesuffix(".bin")}.tokenizer.bin')


def _tokenizer_of(path: Path) -> Path | None:
  """The tokenizer that lies beside a model: of its name, or of the name that run.c looks for."""
  return next(
    (found for found in (_own_tokenizer(path), path.with_name('tokenizer.bin')) if found.is_file()), None
  )
