"""GGUF files of llama.cpp: architectures llama (LLaMA, Mistral), qwen2, qwen3.

Vectors (norms, biases) are always float32 there; a key of our own tells what they were, so that a checkpoint in
bfloat16 comes back bit for bit.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamax.convert import gguf_model
from llamax.convert.errors import FormatError, printable
from llamax.convert.gguf_file import Gguf, is_gguf, open_gguf
from llamax.convert.gguf_layout import lay_out
from llamax.convert.gguf_types import BY_NAME, OF_DTYPE, Kind, entry, pack_q8_0
from llamax.convert.json_file import parse
from llamax.convert.source import DTYPES, Entry, Source
from llamax.convert.target import FileTarget, Model, Wanted
from llamax.convert.vocabulary import as_files
from llamax.core.errors import UserError
from llamax.data.tokenizer import Tokenizer, tokenizer_of_gguf

recognise = is_gguf
_FLOAT = np.dtype(np.float32)
# Keys of our own; llama.cpp passes over them.
_FAMILY, _VECTORS, _GENERATION = 'llamax.family', 'llamax.vector_dtypes', 'llamax.generation'
_MAX_JSON = 1 << 22
# llama.cpp's name for a file by the type of most of its matrices.
_FILE_TYPES = {'F32': 0, 'F16': 1, 'Q8_0': 7, 'BF16': 32}
_QUANTISATION_VERSION = 2
_PACKED_AT_A_TIME = 1 << 20  # numbers; packing holds several copies of them
_NO_TOKENIZER = {'tokenizer.ggml.model': 'no_vocab'}


def open_source(path: Path, tokenizer: Tokenizer | None) -> Source:
  """Opens a file, or all shards of one by any of them; reads no matrices.

  Raises:
    FormatError: the file is damaged, lies, or asks for what llamax does not compute.
  """
  found = open_gguf(path)
  table = found.tensors.get('token_embd.weight')
  if table is None or len(table.shape) != 2:
    raise FormatError(path, 'token_embd.weight', 'is missing, or is no matrix')
  entries: dict[str, Entry] = {
    name: entry(tensor.file, tensor.at, tensor.kind, tensor.shape, name)
    for name, tensor in found.tensors.items()
  }
  factors = entries.pop(gguf_model.ROPE_FACTORS, None)
  if factors is not None and (len(factors.shape) != 1 or factors.dtype != _FLOAT or factors.shape[0] > 1 << 16):
    raise FormatError(path, gguf_model.ROPE_FACTORS, f'is {factors.dtype.name} {list(factors.shape)}')
  cfg, architecture = gguf_model.read_model(
    path, found.keys, entries, table.shape[0], None if factors is None else factors.read(0, factors.shape[0])
  )
  notes: list[str] = []
  if tokenizer is None:
    tokenizer = _tokenizer(found, notes)
  return Source(
    format='gguf',
    path=path,
    cfg=cfg,
    family=_family(found, architecture, cfg.sliding_window),
    rows=gguf_model.rows(architecture),
    entries=_with_vectors(found, entries),
    tokenizer=tokenizer,
    generation=_generation(found),
    notes=notes,
    files=found.files,
  )


def _family(found: Gguf, architecture: str, sliding_window: int) -> str:
  if architecture != 'llama':
    return architecture
  return 'mistral' if sliding_window or found.keys.get(_FAMILY) == 'mistral' else 'llama'


def _generation(found: Gguf) -> dict[str, Any]:
  told = found.keys.get(_GENERATION)
  if isinstance(told, str):
    return _json(found, _GENERATION, told)
  ids = {}
  for name in ('bos', 'eos'):
    value = found.keys.get(f'tokenizer.ggml.{name}_token_id')
    if type(value) is int:
      ids[f'{name}_token_id'] = value
  return ids


def _json(found: Gguf, key: str, text: str) -> dict[str, Any]:
  if len(text) > _MAX_JSON:
    raise FormatError(found.path, key, f'has {len(text):,} characters; want at most {_MAX_JSON:,}')
  try:
    return parse(text.encode(), found.path)
  except FormatError as error:
    raise FormatError(found.path, key, str(error)) from None


def _tokenizer(found: Gguf, notes: list[str]) -> Tokenizer | None:
  values = {key: value for key, value in found.keys.items() if key.startswith('tokenizer.')}
  if not values or _NO_TOKENIZER.items() <= values.items():
    return None
  try:
    return tokenizer_of_gguf(values, str(found.path))
  except UserError as error:
    notes.append(f'its tokenizer is left out, give --tokenizer: {printable(error, 400)}')
    return None


@dataclasses.dataclass(frozen=True)
class _Vector:
  """A float32 vector that was of a narrower dtype; of that dtype again if all its numbers are."""

  stored: Entry
  narrow: np.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.stored.shape

  @functools.cached_property
  def dtype(self) -> np.dtype:
    return self.narrow if _is(self.stored.read(0, self.shape[0]), self.narrow) else _FLOAT

  def read(self, start: int, stop: int) -> np.ndarray:
    found = self.stored.read(start, stop)
    return found.astype(self.dtype)


def _is(numbers: np.ndarray, narrow: np.dtype) -> bool:
  with np.errstate(all='ignore'):
    again = numbers.astype(narrow).astype(_FLOAT)
  return np.array_equal(again.view(np.uint32), numbers.view(np.uint32))


def _with_vectors(found: Gguf, entries: Mapping[str, Entry]) -> dict[str, Entry]:
  """The tensors, vectors in the dtype that they had before they came here.

  Where no key tells, that is the dtype of the matrices: llama.cpp's converters widen every vector.
  """
  matrices = {tensor.kind for name, tensor in found.tensors.items() if len(tensor.shape) > 1}
  told = found.keys.get(_VECTORS)
  before: dict[str, str] = {}
  if isinstance(told, str):
    before = {name: dtype for dtype, names in _json(found, _VECTORS, told).items() for name in _texts(names)}
  elif len(matrices) == 1 and not min(matrices, key=str).quantised:
    before = dict.fromkeys(entries, next(iter(matrices)).dtype.name)
  result = {}
  for name, stored in entries.items():
    narrow = DTYPES.get(before.get(name, ''), _FLOAT)
    is_vector = len(stored.shape) == 1 and stored.dtype == _FLOAT
    result[name] = _Vector(stored, narrow) if is_vector and narrow != _FLOAT else stored
  return result


def _texts(value: Any) -> list[str]:
  return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


class Target(FileTarget):
  """One file of version 3. dtype: 'q8_0' packs all matrices; else each tensor stays what it is."""

  format = 'gguf'
  dtypes = ('float32', 'bfloat16', 'float16', 'q8_0')

  def __init__(self, model: Model, dtype: str | None = None):
    super().__init__(model)
    self._architecture = gguf_model.architecture_of(model.cfg, model.family)
    self.rows = gguf_model.rows(self._architecture)
    if model.cfg.sliding_window:
      self.notes.append(
        f'the sliding window of {model.cfg.sliding_window:,} is written, but llama.cpp computes this '
        'architecture without one: beyond that length it gives other logits'
      )
    self._shapes = {place.theirs: place.layout.shape for place in self.places.values()}
    self._quantise = dtype == 'q8_0'
    self._before: dict[str, np.dtype] = {}
    self._kinds: dict[str, Kind] = {}

  def dtype_of(self, name: str, dtype: np.dtype) -> np.dtype:
    super().dtype_of(name, dtype)
    self._before[name] = dtype
    if len(self._shapes[name]) == 1:
      return _FLOAT
    if not self._quantise:
      return dtype
    # Rows that blocks do not fill become float16, as in llama.cpp's converters.
    return _FLOAT if self._shapes[name][-1] % BY_NAME['Q8_0'].count == 0 else DTYPES['float16']

  def _kind(self, tensor: Wanted) -> Kind:
    packed = self._quantise and len(tensor.shape) > 1 and tensor.dtype == _FLOAT
    return BY_NAME['Q8_0'] if packed else OF_DTYPE[tensor.dtype.name]

  def _layout(self, tensors: Sequence[Wanted]) -> tuple[bytes, dict[str, int], int]:
    placed = [(tensor.name, self._kind(tensor), tensor.shape) for tensor in tensors]
    factors = gguf_model.factors_of(self.model.cfg)
    if factors is not None:
      placed.append((gguf_model.ROPE_FACTORS, BY_NAME['F32'], factors.shape))
    return lay_out(self._keys(tensors), placed)

  def _keys(self, tensors: Sequence[Wanted]) -> dict[str, Any]:
    cfg = self.model.cfg
    sizes: dict[str, int] = {}
    for tensor in tensors:
      if len(tensor.shape) > 1:
        name = self._kind(tensor).name
        sizes[name] = sizes.get(name, 0) + math.prod(tensor.shape)
    keys: dict[str, Any] = {
      'general.architecture': self._architecture,
      'general.type': 'model',
      'general.name': self.model.family if cfg.preset == 'none' else cfg.preset,
      'general.file_type': _FILE_TYPES['Q8_0' if self._quantise else max(sizes, key=lambda name: sizes[name])],
      'general.quantization_version': _QUANTISATION_VERSION,
    }
    keys |= gguf_model.write_keys(cfg, self._architecture)
    keys |= self._vocabulary()
    keys[_FAMILY] = self.model.family
    if self.model.generation:
      keys[_GENERATION] = json.dumps(dict(self.model.generation))
    # Numbers that were quantised are those of no dtype any more.
    narrow: dict[str, list[str]] = {}
    for name, dtype in self._before.items():
      if len(self._shapes[name]) == 1 and dtype != _FLOAT and not self._quantise:
        narrow.setdefault(dtype.name, []).append(name)
    return keys | {_VECTORS: json.dumps(narrow)}

  def _vocabulary(self) -> dict[str, Any]:
    if self.model.tokenizer is None:
      return _NO_TOKENIZER
    return as_files(self.model.tokenizer, 'gguf', self.model.cfg.vocab_size)

  def files(self, tensors: Sequence[Wanted]) -> dict[str, int]:
    return {self.result: self._layout(tensors)[2]}

  def lay_out(self, folder: Path, tensors: Sequence[Wanted]) -> None:
    self.folder = folder
    header, places, size = self._layout(tensors)
    pieces = [(0, header)]
    factors = gguf_model.factors_of(self.model.cfg)
    if factors is not None:
      pieces.append((places[gguf_model.ROPE_FACTORS], factors.tobytes()))
    self._kinds = {tensor.name: self._kind(tensor) for tensor in tensors}
    self.add_file(self.result, size, pieces, [(tensor, places[tensor.name]) for tensor in tensors])

  def write(self, name: str, start: int, block: np.ndarray) -> None:
    kind = self._kinds[name]
    if not kind.quantised:
      super().write(name, start, block)
      return
    file, at = self.extents[name]
    numbers = math.prod(self._shapes[name][1:])
    step = max(1, _PACKED_AT_A_TIME // numbers)
    for first in range(0, len(block), step):
      packed = pack_q8_0(block[first : first + step], name)
      file.write_array(at + kind.num_bytes((start + first) * numbers), packed)

  def finish(self) -> None:
    """All is in the file."""
