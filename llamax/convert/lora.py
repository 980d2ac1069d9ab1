"""LoRA adapters in PEFT's layout, merged into the weights while these are read (Hu et al. 2021).

An adapter names modules of Hugging Face's model, with two matrices for each: W + scale * B A is computed in the
order of numbers of whatever format W lies in, a few rows at a time.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from llamax.convert import hf
from llamax.convert.layout import Layout
from llamax.convert.lora_config import AdapterConfig
from llamax.convert.rows import Place, bind, require_fit
from llamax.convert.source import Entry, Source
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError

_WEIGHTS, _PICKLED = 'adapter_model.safetensors', 'adapter_model.bin'
_PREFIX = 'base_model.model.'
_EMBED, _HEAD = 'model.embed_tokens', 'lm_head'
_READ = 1 << 24  # numbers of a tensor that are read at a time
_NUMBERS = 1 << 20  # ... that are merged


@dataclasses.dataclass(frozen=True)
class Factors:
  """scale * b [out, r] times a [r, in], for one module."""

  a: Entry
  b: Entry
  scale: float
  embedding: bool  # its weight is [in, out]

  def matrices(self) -> tuple[np.ndarray, np.ndarray]:
    """float64 (x, y) whose product is the change of the module's weight, as Hugging Face has that."""
    with np.errstate(invalid='ignore', over='ignore'):
      a, b = (one.read(0, one.shape[0]).astype(np.float32).astype(np.float64) for one in (self.a, self.b))
    return (a.T * self.scale, b.T) if self.embedding else (b * self.scale, a)


@dataclasses.dataclass(frozen=True)
class Merged:
  """An Entry with the change of an adapter added. theirs: its layout in Hugging Face's order; here: its own."""

  base: Entry
  factors: Factors
  theirs: Layout
  here: Layout
  name: str

  @property
  def dtype(self) -> np.dtype:
    return self.base.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(self.base.shape)

  def read(self, start: int, stop: int) -> np.ndarray:
    """Rows [start:stop]; each sum is rounded once.

    Raises:
      UserError: a sum does not fit the dtype, or the adapter is not finite.
    """
    out = np.empty((stop - start, *self.shape[1:]), self.dtype)
    first, second = self._ordered()
    row = math.prod(self.shape[1:])
    for low, high in _cuts(start, stop, _READ // row):
      rows = self.base.read(low, high)
      for at, end in _cuts(low, high, _NUMBERS // row):
        self._add(rows[at - low : end - low], out[at - start : end - start], first, second, at)
    return out

  def _add(self, rows: np.ndarray, out: np.ndarray, first: np.ndarray, second: np.ndarray, at: int) -> None:
    """Writes to `out` the sum for `rows`, which begin at row `at`."""
    unit = first.shape[0] // self.shape[0]  # rows of the first factor that one row stands for
    before = rows.astype(np.float32)
    # In float64, so that the sum is the same however the rows are cut.
    change = first[at * unit : (at + len(rows)) * unit] @ second
    with np.errstate(over='ignore'):
      out[...] = (before + change.reshape(before.shape)).astype(np.float32).astype(out.dtype)
    if not np.array_equal(np.isfinite(out.astype(np.float32)), np.isfinite(before)):
      raise UserError(f'{self.name}: with the adapter it does not fit {out.dtype.name}; give another --dtype')

  def _ordered(self) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices whose product, reshaped, is the change in the order of this file."""
    x, y = self.factors.matrices()
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
      raise UserError(f'{self.name}: the adapter holds numbers for it that are not finite')
    theirs, here = ([_letters(group) for group in layout.groups] for layout in (self.theirs, self.here))
    rows, columns = theirs
    order = [letter for group in here for letter in group]
    x = _permuted(x, rows, [letter for letter in order if letter in rows], self.here)
    y = _permuted(y.T, columns, [letter for letter in order if letter in columns], self.here).T
    if order[: len(rows)] == [letter for letter in order if letter in rows]:
      return x, y
    assert order[: len(columns)] == [letter for letter in order if letter in columns], self.here.text
    return y.T, x.T


def _cuts(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
  step = max(1, step)
  for low in range(start, stop, step):
    yield low, min(low + step, stop)


def _letters(group: tuple[str, ...]) -> list[str]:
  return [part for letter in group for part in (('p', 'h') if letter == 'H' else (letter,))]


def _permuted(matrix: np.ndarray, have: list[str], want: list[str], layout: Layout) -> np.ndarray:
  """The rows of `matrix`, which run over the letters `have`, in the order of `want`."""
  split = matrix.reshape([*(layout.sizes[letter] for letter in have), -1])
  turned = split.transpose([*(have.index(letter) for letter in want), len(have)])
  return np.ascontiguousarray(turned).reshape(matrix.shape)


def merged(source: Source, folder: Path) -> Source:
  """`source` with the adapter in `folder` merged into its tensors as they are read.

  Raises:
    FormatError: a file of the adapter is missing or damaged, or asks for what is more than W + scale * B A.
    UserError: its tensors are missing, too many, misshapen (a table); the model shares what it changes.
  """
  config = AdapterConfig(folder)
  path, tensors = _open(folder)
  modules = _modules(source.cfg)
  ranks = config.ranks([module for module in modules if config.covers(module, _names(module)[0] in tensors)])
  shapes: dict[str, tuple[int, ...]] = {}
  for module, rank in ranks.items():
    shapes |= zip(_names(module), _shapes(module, rank, modules[module].layout), strict=True)
  found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
  hint = f'Wanted is what {config.path.name} says of this model: is the adapter made for it?'
  require_fit(shapes, found, str(path), hint)
  if source.cfg.tie_embeddings and (both := {_EMBED, _HEAD} & ranks.keys()):
    raise UserError(
      f'{path}: it changes {" and ".join(sorted(both))}, which this model shares between embedding and head; '
      'merged, the change would reach both'
    )
  entries = dict(source.entries)
  for module, rank in ranks.items():
    there, (a, b) = source.places[modules[module].ours], _names(module)
    factors = Factors(tensors[a], tensors[b], config.scale(module, rank), module == _EMBED)
    base = entries[there.theirs]
    entries[there.theirs] = Merged(base, factors, modules[module].layout, there.layout, there.theirs)
  return dataclasses.replace(
    source,
    entries=entries,
    notes=[*source.notes, f'{folder}: merged into {len(ranks)} tensors'],
    files=[*source.files, config.path, path],
  )


def _modules(cfg: ModelConfig) -> dict[str, Place]:
  """Module of Hugging Face's model -> its matrix."""
  places = bind(hf.ROWS, cfg, 'hf').values()
  return {place.theirs.removesuffix('.weight'): place for place in places if len(place.layout.groups) == 2}


def _open(folder: Path) -> tuple[Path, Mapping[str, Entry]]:
  if (folder / _WEIGHTS).is_file() or not (folder / _PICKLED).is_file():
    return folder / _WEIGHTS, hf.open_safetensors(folder / _WEIGHTS)
  from llamax.convert.pth import open_pth

  return folder / _PICKLED, open_pth(folder / _PICKLED)


def _names(module: str) -> tuple[str, str]:
  """The tensors of a module: A, B."""
  if module == _EMBED:
    return f'{_PREFIX}{module}.lora_embedding_A', f'{_PREFIX}{module}.lora_embedding_B'
  return f'{_PREFIX}{module}.lora_A.weight', f'{_PREFIX}{module}.lora_B.weight'


def _shapes(module: str, rank: int, layout: Layout) -> tuple[tuple[int, int], tuple[int, int]]:
  rows, columns = layout.shape
  return ((rank, rows), (columns, rank)) if module == _EMBED else ((rank, columns), (rows, rank))
