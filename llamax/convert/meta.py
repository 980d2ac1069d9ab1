"""Meta's checkpoints: consolidated.00.pth and so on, one for each model-parallel rank, with params.json."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from llamax.convert.errors import FormatError, printable
from llamax.convert.json_file import Fields, read_json
from llamax.convert.meta_params import (
  Found,
  frequencies,
  is_llama3,
  read_model,
  write_beside,
  write_params,
)
from llamax.convert.pth import open_pth
from llamax.convert.pth_write import PthFile, PthLayout
from llamax.convert.rows import Row
from llamax.convert.shards import Cut, Joined
from llamax.convert.source import Entry, Source
from llamax.convert.target import Model, Wanted
from llamax.convert.target import Target as AnyTarget
from llamax.core import storage
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError, divisors_near
from llamax.data.tokenizer import Tokenizer, open_tokenizer

# Meta turns neighbours (h p) by one angle, llamax the two halves of a head (p h).
ROWS = (
  Row('embed/table', 'tok_embeddings.weight', 'V D'),
  Row('layers/*/attn_norm/scale', 'layers.*.attention_norm.weight', 'D'),
  Row('layers/*/attn/wq', 'layers.*.attention.wq.weight', '(N h p) D'),
  Row('layers/*/attn/wk', 'layers.*.attention.wk.weight', '(K h p) D'),
  Row('layers/*/attn/wv', 'layers.*.attention.wv.weight', '(K H) D'),
  Row('layers/*/attn/wo', 'layers.*.attention.wo.weight', 'D (N H)'),
  Row('layers/*/mlp_norm/scale', 'layers.*.ffn_norm.weight', 'D'),
  Row('layers/*/mlp/w_gate', 'layers.*.feed_forward.w1.weight', 'F D'),
  Row('layers/*/mlp/w_up', 'layers.*.feed_forward.w3.weight', 'F D'),
  Row('layers/*/mlp/w_down', 'layers.*.feed_forward.w2.weight', 'D F'),
  Row('final_norm/scale', 'norm.weight', 'D'),
  Row('lm_head/kernel', 'output.weight', 'V D'),
)
_PARAMS, _BESIDE, _TOKENIZER = 'params.json', 'llamax.json', 'tokenizer.model'
_EMBEDDING, _HEAD = 'tok_embeddings.weight', 'output.weight'
# fairscale's ColumnParallelLinear cuts what comes out, RowParallelLinear what goes in; the rest is not cut.
_CUT = re.compile(r'(?P<out>(wq|wk|wv|w1|w3)\.weight|^output\.weight)$|(?P<into>(wo|w2)\.weight)$')
_KEYS = re.compile(r'attention\.w[kv]\.weight$')
_FREQUENCIES = re.compile(r'(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs')
_COMPARED_ROWS = 1 << 10
_MAX_FILES = 256


def recognise(path: Path) -> bool:
  return path.is_dir() and (path / _PARAMS).is_file() and (path / 'consolidated.00.pth').is_file()


def open_source(path: Path, tokenizer: Tokenizer | None) -> Source:
  """Opens a folder; reads the directories of its files, of the weights only a copy of the embedding.

  Raises:
    FormatError: a file is missing, damaged, contradicts another, or is of a model that llamax does not compute.
  """
  fields = Fields(path / _PARAMS, read_json(path / _PARAMS))
  beside = Fields(path / _BESIDE, read_json(path / _BESIDE)) if (path / _BESIDE).is_file() else None
  files = _files(path)
  shards = [open_pth(file) for file in files]
  tables = [{name: shard.pop(name) for name in list(shard) if _FREQUENCIES.fullmatch(name)} for shard in shards]
  entries = _joined(files, shards, fields)
  _require_all(path, files, entries, fields)
  found = _found(files[0], entries, any(name.startswith('layers.') for name in tables[0]))
  cfg, family, notes = read_model(fields, beside, found)
  if cfg.num_layers > len(entries):
    raise fields.wrong('n_layers', f'is {cfg.num_layers:,}; there are {len(entries):,} tensors')
  if cfg.tie_embeddings:
    entries.pop(_HEAD, None)
  for file, table in zip(files, tables, strict=True):
    notes += _compare_frequencies(file, table, cfg, fields)
  if tokenizer is None:
    tokenizer, more = _open_tokenizer(path, cfg, notes)
    files += more
  known = [file for file in (path / _PARAMS, path / _BESIDE) if file.is_file()]
  return Source('meta', path, cfg, family, ROWS, entries, tokenizer, notes=notes, files=known + files)


def _files(path: Path) -> list[Path]:
  found = [file.name for file in path.iterdir() if re.fullmatch(r'consolidated\.\d\d+\.pth', file.name)]
  found.sort(key=lambda name: (len(name), name))
  wanted = [f'consolidated.{index:02d}.pth' for index in range(len(found))]
  if found != wanted:
    missing = next((name for name in wanted if name not in found), 'consolidated.00.pth')
    raise FormatError(path / missing, 'file', f'is missing; there are {", ".join(found[:4])} ...')
  if len(found) > _MAX_FILES:
    raise FormatError(path, 'files', f'{len(found)} of them; at most {_MAX_FILES} are read')
  return [path / name for name in found]


def _require_all(path: Path, files: Sequence[Path], entries: Mapping[str, Entry], fields: Fields) -> None:
  """FormatError where the last of the files are missing, which the tensors alone can tell."""
  heads = fields.count('n_heads')
  wanted = heads * fields.count('head_dim', max(1, fields.count('dim') // heads))
  out = entries.get('layers.0.attention.wo.weight')
  found = out.shape[-1] if out and out.shape else 0
  if found and found < wanted and wanted % found == 0:
    total = len(files) * wanted // found
    missing = path / f'consolidated.{len(files):02d}.pth'
    raise FormatError(missing, 'file', f'is missing; there are {len(files)} files of {total}')


def _joined(files: Sequence[Path], shards: Sequence[Mapping[str, Entry]], fields: Fields) -> dict[str, Entry]:
  """Name -> tensor of the whole model."""
  first = shards[0]
  for file, shard in zip(files, shards, strict=True):
    other = next((name for name in [*first, *shard] if (name in first) != (name in shard)), None)
    if other:
      raise FormatError(file, other, f'is not in each of the {len(files)} files')
    for name, entry in shard.items():
      if (entry.shape, entry.dtype) != (first[name].shape, first[name].dtype):
        raise FormatError(file, name, f'is {entry.dtype}{list(entry.shape)} here, another in {files[0].name}')
  if len(files) == 1:
    return dict(first)
  width, heads = fields.count('dim'), fields.count('n_heads')
  kv_heads = fields.count('n_kv_heads', heads)
  found: dict[str, Entry] = {}
  for name, entry in first.items():
    cut = _cut(name, len(files), kv_heads, by_vocabulary=entry.shape[-1:] == (width,))
    if len(entry.shape) <= cut.dim:
      raise FormatError(files[0], name, f'has the shape {list(entry.shape)}; want a matrix')
    copies = [
      tuple(shard[name] for shard in shards[at : at + cut.copies]) for at in range(0, len(files), cut.copies)
    ]
    found[name] = Joined(str(files[0]), name, cut, tuple(copies))
  return found


def _cut(name: str, num_files: int, kv_heads: int, *, by_vocabulary: bool) -> Cut:
  """Where the files part a tensor. by_vocabulary: of the embedding: since Llama 3; before, by width."""
  found = _CUT.search(name)
  if name == _EMBEDDING:
    return Cut(0 if by_vocabulary else 1, num_files, 1)
  if not found:
    return Cut(0, 1, num_files)
  # With more files than key heads, neighbours hold the same head.
  shared = _KEYS.search(name) and num_files % kv_heads == 0
  copies = num_files // kv_heads if shared else 1
  return Cut(1 if found['into'] else 0, num_files // copies, copies)


def _found(file: Path, entries: Mapping[str, Entry], table_per_layer: bool) -> Found:
  embedding, gate = (entries.get(name) for name in (_EMBEDDING, 'layers.0.feed_forward.w1.weight'))
  for name, entry in ((_EMBEDDING, embedding), ('layers.0.feed_forward.w1.weight', gate)):
    if entry is None or len(entry.shape) != 2 or 0 in entry.shape:
      raise FormatError(file, name, 'is missing, or is no matrix: is this a checkpoint of Meta?')
  assert embedding and gate
  head = entries.get(_HEAD)
  tied = head is None or _equal(embedding, head)
  return Found(embedding.shape[0], gate.shape[0], tied, table_per_layer)


def _equal(first: Entry, second: Entry) -> bool:
  """Whether two tensors are the same bytes; where they are not, the first rows tell."""
  if (first.shape, first.dtype) != (second.shape, second.dtype):
    return False
  starts = range(0, first.shape[0], _COMPARED_ROWS)
  return all(_rows(first, start) == _rows(second, start) for start in starts)


def _rows(entry: Entry, start: int) -> bytes:
  return entry.read(start, min(start + _COMPARED_ROWS, entry.shape[0])).tobytes()


def _compare_frequencies(file: Path, table: Mapping[str, Entry], cfg: ModelConfig, fields: Fields) -> list[str]:
  """Notes. Raises FormatError: `rope.freqs` are those of another model."""
  notes = []
  for name, entry in table.items():
    if tuple(entry.shape) != (cfg.head_dim // 2,):
      raise FormatError(file, name, f'has the shape {list(entry.shape)}; want [{cfg.head_dim // 2}]')
    found = entry.read(0, entry.shape[0]).astype(np.float64)
    # Rounded to a dtype of few bits, or to a multiple of float16's smallest number.
    rough = 2.0**-7 if entry.dtype.itemsize == 2 else 1e-5
    if np.allclose(found, frequencies(cfg.rope_theta, cfg.head_dim), rtol=rough, atol=1e-7):
      continue
    usual = np.allclose(found, frequencies(10_000.0, cfg.head_dim), rtol=rough, atol=1e-7)
    if not usual or fields.raw('rope_theta') is None:
      raise FormatError(
        file,
        name,
        f'is not what rope_theta={cfg.rope_theta:g} makes: does params.json belong to these weights?',
      )
    notes.append(
      f"{file}: {name} is of rope_theta=10000; as in Meta's code, params.json decides: {cfg.rope_theta:g}"
    )
  return notes


def _open_tokenizer(path: Path, cfg: ModelConfig, notes: list[str]) -> tuple[Tokenizer | None, list[Path]]:
  """Beside the weights; LLaMA 1 and 2 came with one for all sizes, in the folder above."""
  for place in (path / _TOKENIZER, path.resolve().parent / _TOKENIZER):
    if not place.is_file():
      continue
    try:
      tokenizer = open_tokenizer(place)
    except UserError as error:
      notes.append(f'{place} is left out, give --tokenizer: {printable(error, 400)}')
      continue
    if place.parent == path or tokenizer.vocab_size == cfg.vocab_size:
      return tokenizer, [place]
  return None, []


class Target(AnyTarget):
  """A folder that Meta's code loads on `shards` devices."""

  format = 'meta'
  rows = ROWS

  def __init__(self, model: Model, shards: int = 1):
    super().__init__(model)
    self._params = write_params(model.cfg, model.family)
    self._count = shards
    _require_even(model.cfg, shards)
    self._wanted: dict[str, Wanted] = {}
    self._files: list[PthFile] = []

  def files(self, tensors: Sequence[Wanted]) -> dict[str, int]:
    layout = self._layout('consolidated.00', tensors)
    return {f'consolidated.{index:02d}.pth': layout.size for index in range(self._count)}

  def lay_out(self, folder: Path, tensors: Sequence[Wanted]) -> None:
    self._wanted = {tensor.name: tensor for tensor in tensors}
    self._files = []
    for index in range(self._count):
      stem = f'consolidated.{index:02d}'
      self._files.append(PthFile(folder / self.result / f'{stem}.pth', self._layout(stem, tensors)))
    for tensor in self._tables(tensors):
      table = np.array(frequencies(self.model.cfg.rope_theta, self.model.cfg.head_dim)).astype(tensor.dtype)
      for file in self._files:
        file.write(tensor.name, 0, table)

  def write(self, name: str, start: int, block: np.ndarray) -> None:
    wanted = self._wanted[name]
    for file, at, piece in self._cut(name).pieces(wanted, start, block):
      self._files[file].write(name, at, piece)

  def sync(self) -> None:
    for file in self._files:
      file.sync()

  def finish(self) -> None:
    assert self.folder
    for file in self._files:
      file.finish()
    folder = self.folder / self.result
    storage.write_json(folder / _PARAMS, self._params)
    storage.write_json(folder / _BESIDE, write_beside(self.model.cfg))
    if self.model.tokenizer is not None:
      from llamax.convert.vocabulary import as_files

      for name, content in as_files(self.model.tokenizer, 'meta', self.model.cfg.vocab_size).items():
        (folder / name).write_bytes(content)

  def _cut(self, name: str) -> Cut:
    cfg = self.model.cfg
    # A tied head is the embedding itself, so both are cut alike.
    return _cut(name, self._count, cfg.num_kv_heads, by_vocabulary=is_llama3(cfg) or cfg.tie_embeddings)

  def _layout(self, stem: str, tensors: Sequence[Wanted]) -> PthLayout:
    parts = [Wanted(one.name, self._cut(one.name).shape(one.shape), one.dtype) for one in tensors]
    same = {_HEAD: _EMBEDDING} if self.model.cfg.tie_embeddings else {}
    return PthLayout(stem, [*parts, *self._tables(tensors)], same)

  def _tables(self, tensors: Sequence[Wanted]) -> Iterator[Wanted]:
    """`rope.freqs`, which the code for LLaMA 1 and 2 wants to find, in the dtype of the weights."""
    if not is_llama3(self.model.cfg) and self.model.family != 'mistral':
      largest = max(tensors, key=lambda tensor: tensor.num_bytes)
      yield Wanted('rope.freqs', (self.model.cfg.head_dim // 2,), largest.dtype)


def _require_even(cfg: ModelConfig, shards: int) -> None:
  if not 1 <= shards <= _MAX_FILES:
    raise UserError(f'--shards={shards}: want 1 to {_MAX_FILES}')
  for name in ('num_heads', 'd_ff', 'vocab_size', 'd_model'):
    if getattr(cfg, name) % shards:
      near = divisors_near(getattr(cfg, name), shards)
      raise UserError(f'--shards={shards} does not divide {name}={getattr(cfg, name)}; give {near}')
  if cfg.num_kv_heads % shards and shards % cfg.num_kv_heads:
    raise UserError(
      f'--shards={shards}: each file has some of the {cfg.num_kv_heads} key/value heads, or some files have '
      'the same one; want one of the two numbers to divide the other'
    )
