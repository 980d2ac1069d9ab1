"""Hugging Face directories: config.json, safetensors in shards (.bin through the safe reader), a tokenizer."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from llamax.convert.errors import FormatError, printable
from llamax.convert.hf_config import family_of, read_model, write_model
from llamax.convert.json_file import Fields, parse, read_json
from llamax.convert.rows import Row
from llamax.convert.source import DTYPES, Entry, Extent, File, Source
from llamax.convert.target import FileTarget, Model, Wanted
from llamax.core import storage
from llamax.core.errors import UserError
from llamax.data.tokenizer import Tokenizer, open_tokenizer, tokenizer_path

ROWS = (
  Row('embed/table', 'model.embed_tokens.weight', 'V D'),
  Row('layers/*/attn_norm/scale', 'model.layers.*.input_layernorm.weight', 'D'),
  Row('layers/*/attn/wq', 'model.layers.*.self_attn.q_proj.weight', '(N H) D'),
  Row('layers/*/attn/wk', 'model.layers.*.self_attn.k_proj.weight', '(K H) D'),
  Row('layers/*/attn/wv', 'model.layers.*.self_attn.v_proj.weight', '(K H) D'),
  Row('layers/*/attn/wo', 'model.layers.*.self_attn.o_proj.weight', 'D (N H)'),
  Row('layers/*/attn/bq', 'model.layers.*.self_attn.q_proj.bias', '(N H)'),
  Row('layers/*/attn/bk', 'model.layers.*.self_attn.k_proj.bias', '(K H)'),
  Row('layers/*/attn/bv', 'model.layers.*.self_attn.v_proj.bias', '(K H)'),
  Row('layers/*/attn/bo', 'model.layers.*.self_attn.o_proj.bias', 'D'),
  Row('layers/*/attn/q_norm/scale', 'model.layers.*.self_attn.q_norm.weight', 'H'),
  Row('layers/*/attn/k_norm/scale', 'model.layers.*.self_attn.k_norm.weight', 'H'),
  Row('layers/*/mlp_norm/scale', 'model.layers.*.post_attention_layernorm.weight', 'D'),
  Row('layers/*/mlp/w_gate', 'model.layers.*.mlp.gate_proj.weight', 'F D'),
  Row('layers/*/mlp/w_up', 'model.layers.*.mlp.up_proj.weight', 'F D'),
  Row('layers/*/mlp/w_down', 'model.layers.*.mlp.down_proj.weight', 'D F'),
  Row('layers/*/mlp/b_gate', 'model.layers.*.mlp.gate_proj.bias', 'F'),
  Row('layers/*/mlp/b_up', 'model.layers.*.mlp.up_proj.bias', 'F'),
  Row('layers/*/mlp/b_down', 'model.layers.*.mlp.down_proj.bias', 'D'),
  Row('final_norm/scale', 'model.norm.weight', 'D'),
  Row('lm_head/kernel', 'lm_head.weight', 'V D'),
)
_TAGS = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
_TAG_OF = {name: tag for tag, name in _TAGS.items()}
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library
_MAX_INDEX = 1 << 28
# Tables of rotary frequencies that old exporters stored: they follow from the config.
_DERIVED = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')


def recognise(path: Path) -> bool:
  return path.is_dir() and (path / 'config.json').is_file() and bool(_weights(path))


def _weights(path: Path) -> str | None:
  names = (
    'model.safetensors.index.json',
    'model.safetensors',
    'pytorch_model.bin.index.json',
    'pytorch_model.bin',
  )
  return next((name for name in names if os.path.lexists(path / name)), None)


def open_source(path: Path, tokenizer: Tokenizer | None) -> Source:
  """Opens a directory; reads headers, no weights.

  Raises:
    FormatError: a file is missing, damaged, or lies. UserError: llamax does not compute this model.
  """
  fields = Fields(path / 'config.json', read_json(path / 'config.json'))
  cfg, family, notes = read_model(fields)
  entries, files = _entries(path)
  for name in [name for name in entries if _DERIVED.fullmatch(name)]:
    del entries[name]
  if cfg.tie_embeddings and 'lm_head.weight' in entries:
    _drop_copy(path, entries)
  generation = _generation(path, fields)
  if tokenizer is None and os.path.exists(tokenizer_path(path)):
    tokenizer = open_tokenizer(path)
  return Source(
    format='hf',
    path=path,
    cfg=cfg,
    family=family,
    rows=ROWS,
    entries=entries,
    tokenizer=tokenizer,
    generation=generation,
    notes=notes,
    files=[path / 'config.json', *files],
  )


def _generation(path: Path, fields: Fields) -> dict[str, Any]:
  file = path / 'generation_config.json'
  found = read_json(file) if file.is_file() else {}
  ids = {name: fields.raw(name) for name in ('bos_token_id', 'eos_token_id', 'pad_token_id')}
  return {name: value for name, value in ids.items() if value is not None} | found


def _entries(path: Path) -> tuple[dict[str, Entry], list[Path]]:
  """(name -> tensor, the files they are in)."""
  weights = _weights(path)
  assert weights
  if not weights.endswith('.index.json'):
    only = _within(path, weights, weights)
    return _open_shard(only), [only]
  index = path / weights
  found = Fields(index, read_json(index, _MAX_INDEX))
  table = found.raw('weight_map')
  if not isinstance(table, dict) or not table:
    raise found.wrong('weight_map', 'is missing or empty; want {tensor name: file name}')
  shards: dict[str, Path] = {}
  for name, file in table.items():
    if not isinstance(file, str):
      raise found.wrong(f'weight_map.{printable(name)}', f'is {printable(repr(file))}; want a file name')
    if file not in shards:
      shards[file] = _within(path, file, weights)
  entries: dict[str, Entry] = {}
  for file, shard in shards.items():
    inside = _open_shard(shard)
    for name, entry in inside.items():
      if table.get(name) != file:
        where = f'{printable(table[name])} for it' if name in table else 'no such tensor'
        raise FormatError(shard, printable(name), f'is in this file; {index.name} knows {where}')
      entries[name] = entry
  missing = [name for name in table if name not in entries]
  if missing:
    raise FormatError(index, f'weight_map.{printable(missing[0])}', f'is not in {printable(table[missing[0]])}')
  _check_total(found, entries)
  return entries, [index, *shards.values()]


def _check_total(found: Fields, entries: Mapping[str, Entry]) -> None:
  meta = found.inner('metadata')
  total = meta.raw('total_size') if meta else None
  if meta is None or total is None:
    return
  real = sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in entries.values())
  # Some exporters count a tied table twice.
  if not isinstance(total, int) or isinstance(total, bool) or total < real:
    raise meta.wrong('total_size', f'is {printable(repr(total))}; the tensors have {real:,} bytes')


def _within(folder: Path, name: str, index: str) -> Path:
  """The regular file `name` of the folder, or of the cache of huggingface_hub that the folder is a view of."""
  where = f'file name {printable(name)!r}'
  if (
    not name or name != os.path.basename(name) or name in ('.', '..') or not name.isprintable() or '\\' in name
  ):
    raise FormatError(folder / index, where, 'is not a plain file name: nothing outside the folder is read')
  path = folder / name
  if not path.is_file():
    raise FormatError(path, 'file', f'is missing, or is no regular file; {index} names it')
  real, home = path.resolve(), folder.resolve()
  cache = home.parent.parent / 'blobs' if home.parent.name == 'snapshots' else home
  if real.parent not in (home, cache):
    raise FormatError(path, 'file', 'is a link that leads out of the folder; put the file itself there')
  return path


def _open_shard(path: Path) -> dict[str, Entry]:
  if path.suffix == '.bin':
    from llamax.convert.pth import open_pth

    return dict(open_pth(path))
  return open_safetensors(path)


def open_safetensors(path: Path) -> dict[str, Entry]:
  """Name -> tensor of one file. Raises FormatError unless its tensors fill it exactly, without a gap."""
  file = File(path)
  try:
    # The library's own checks come first; it maps the file, so the numbers are not read through it.
    with safetensors.safe_open(path, framework='np'):
      pass
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise FormatError(path, 'header', f'is not one of safetensors ({printable(error)})') from None
  size = int.from_bytes(file.read(0, 8, 'header size'), 'little')
  if size > min(_MAX_HEADER, file.size - 8):
    raise FormatError(path, 'header size', f'is {size:,}; the file has {file.size:,} bytes')
  header = parse(file.read(8, size, 'header'), path)
  notes = header.pop('__metadata__', {})
  if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
    raise FormatError(path, '__metadata__', 'want texts by name')
  entries: dict[str, Entry] = {}
  ends = []
  for name, told in header.items():
    dtype, shape, begin, end = _tensor(path, name, told)
    entries[name] = Extent(file, 8 + size + begin, dtype, shape, name)
    ends.append((begin, end, name))
  at = 0
  for begin, end, name in sorted(ends):
    if begin != at:
      raise FormatError(path, printable(name), f'begins at {begin:,}; the tensor before it ends at {at:,}')
    at = end
  if at != file.size - 8 - size:
    raise FormatError(
      path, 'data', f'has {file.size - 8 - size:,} bytes; the header describes {at:,}: is the file whole?'
    )
  return entries


def _tensor(path: Path, name: str, told: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
  where = printable(name)
  if not name.isprintable() or not isinstance(told, dict) or set(told) != {'dtype', 'shape', 'data_offsets'}:
    raise FormatError(path, where, 'want a name with dtype, shape, data_offsets')
  if told['dtype'] not in _TAGS:
    raise FormatError(
      path, f'{where}.dtype', f'is {printable(repr(told["dtype"]))}; want {", ".join(_TAGS)}: is it quantised?'
    )
  shape, offsets = told['shape'], told['data_offsets']
  for what, numbers in (('shape', shape), ('data_offsets', offsets)):
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
      raise FormatError(path, f'{where}.{what}', f'is {printable(repr(numbers))}; want whole numbers')
  dtype = DTYPES[_TAGS[told['dtype']]]
  if not shape or len(shape) > 8 or not all(shape):
    raise FormatError(path, f'{where}.shape', f'is {printable(repr(shape))}; want 1 to 8 dims of 1 or more')
  if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
    raise FormatError(
      path,
      f'{where}.data_offsets',
      f'are {offsets}; {told["dtype"]} {shape} has {math.prod(shape) * dtype.itemsize:,} bytes',
    )
  return dtype, tuple(shape), offsets[0], offsets[1]


def _drop_copy(path: Path, entries: dict[str, Entry]) -> None:
  """Tied models store the head again at times; it must be the same."""
  head, table = entries['lm_head.weight'], entries.get('model.embed_tokens.weight')
  if table is None or not _same(head, table):
    raise UserError(
      f'{path}: config.json says tie_word_embeddings, but lm_head.weight is not model.embed_tokens.weight; '
      'set it to false there, if these weights are right'
    )
  del entries['lm_head.weight']


def _same(first: Entry, second: Entry) -> bool:
  if first.shape != second.shape or first.dtype != second.dtype:
    return False
  count, rows = first.shape[0], 1 << 12
  ranges = [(start, min(start + rows, count)) for start in range(0, count, rows)]
  return all(first.read(*some).tobytes() == second.read(*some).tobytes() for some in ranges)


class Target(FileTarget):
  """A directory that current transformers loads; its files are no larger than `max_shard_bytes`."""

  format = 'hf'
  rows = ROWS

  def __init__(self, model: Model, max_shard_bytes: int = 5 * 10**9):
    super().__init__(model)
    family_of(model.cfg, model.family)
    self._max = max_shard_bytes
    self._tensors: Sequence[Wanted] = ()

  def _shards(self, tensors: Sequence[Wanted]) -> dict[str, list[Wanted]]:
    groups: list[list[Wanted]] = [[]]
    size = 0
    for tensor in tensors:
      if groups[-1] and size + tensor.num_bytes > self._max:
        groups.append([])
        size = 0
      groups[-1].append(tensor)
      size += tensor.num_bytes
    count = len(groups)
    if count == 1:
      return {'model.safetensors': groups[0]}
    return {f'model-{i:05d}-of-{count:05d}.safetensors': group for i, group in enumerate(groups, 1)}

  def files(self, tensors: Sequence[Wanted]) -> dict[str, int]:
    return {
      name: len(_header(group)) + sum(tensor.num_bytes for tensor in group)
      for name, group in self._shards(tensors).items()
    }

  def lay_out(self, folder: Path, tensors: Sequence[Wanted]) -> None:
    self._tensors = tensors
    for name, group in self._shards(tensors).items():
      header = _header(group)
      at, places = len(header), []
      for tensor in _ordered(group):
        places.append((tensor, at))
        at += tensor.num_bytes
      self.add_file(f'{self.result}/{name}', at, [(0, header)], places)

  def finish(self) -> None:
    assert self.folder
    folder = self.folder / self.result
    shards = self._shards(self._tensors)
    if len(shards) > 1:
      total = sum(tensor.num_bytes for tensor in self._tensors)
      table = {tensor.name: name for name, group in shards.items() for tensor in group}
      index = {'metadata': {'total_size': total}, 'weight_map': dict(sorted(table.items()))}
      storage.write_json(folder / 'model.safetensors.index.json', index)
    largest = max(self._tensors, key=lambda tensor: tensor.num_bytes)
    ids = self._ids()
    config = write_model(self.model.cfg, self.model.family, largest.dtype.name, ids)
    storage.write_json(folder / 'config.json', config)
    storage.write_json(folder / 'generation_config.json', {**ids, **dict(self.model.generation)})
    for name, content in self._tokenizer_files().items():
      (folder / name).write_bytes(content)

  def _ids(self) -> dict[str, Any]:
    """Special ids: as the source had them, else the tokenizer's."""
    tokenizer, told = self.model.tokenizer, self.model.generation
    own = {'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eos_id} if tokenizer else {}
    return own | {name: told[name] for name in ('bos_token_id', 'eos_token_id', 'pad_token_id') if name in told}

  def _tokenizer_files(self) -> dict[str, bytes]:
    if self.model.tokenizer is None:
      return {}
    from llamax.convert.vocabulary import as_files

    return as_files(self.model.tokenizer, 'hf', self.model.cfg.vocab_size)


def _ordered(group: Sequence[Wanted]) -> list[Wanted]:
  """As the safetensors library: wide numbers first, so that each begins at a multiple of its size."""
  return sorted(group, key=lambda tensor: -tensor.dtype.itemsize)


def _header(group: Sequence[Wanted]) -> bytes:
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  at = 0
  for tensor in _ordered(group):
    end = at + tensor.num_bytes
    header[tensor.name] = {
      'dtype': _TAG_OF[tensor.dtype.name],
      'shape': list(tensor.shape),
      'data_offsets': [at, end],
    }
    at = end
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text
