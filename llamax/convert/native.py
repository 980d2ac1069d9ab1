"""llamax's own workdirs: weights out of any run's checkpoint, into a folder that runs start from."""

import dataclasses
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamax.checkpoint import reading
from llamax.checkpoint import steps as folder_of_steps
from llamax.checkpoint.claim import CONFIG_FILE, CONVERTED
from llamax.checkpoint.digests import MANIFEST
from llamax.checkpoint.pieces import Pieces
from llamax.checkpoint.streaming import StreamedParams
from llamax.convert import target
from llamax.convert.errors import FormatError, printable
from llamax.convert.layout import halved
from llamax.convert.rows import Row
from llamax.convert.source import DTYPES, Entry, Source
from llamax.convert.target import Model, Wanted
from llamax.core import storage
from llamax.core.config import Config, ModelConfig
from llamax.core.errors import UserError, nearest
from llamax.data.tokenizer import NAMES, Tokenizer, open_tokenizer
from llamax.model.llama import dim_sizes, param_dims
from llamax.parallel.mesh import AXES
from llamax.parallel.rules import check_fits, parts_of

_CHECKPOINTS = 'checkpoints'
_STEP = 0  # of what is converted: no update was made
_MOST_LAYERS = 10_000  # of a checkpoint that is to be believed
_PARAMS = 'params/'


def rows(cfg: ModelConfig) -> tuple[Row, ...]:
  """The names of this model's tensors are our own, whatever parts it is made of."""
  found = []
  for path, letters in param_dims(cfg).items():
    stacked = path.startswith('layers/')
    name = path.replace('layers/', 'layers/*/', 1) if stacked else path
    found.append(Row(name, name, halved(letters[1:] if stacked else letters)))
  return tuple(found)


def recognise(path: Path) -> bool:
  return path.is_dir() and bool(folder_of_steps.steps(path / _CHECKPOINTS))


@dataclasses.dataclass(frozen=True)
class Part:
  """One tensor of a checkpoint: a leaf, or one layer of it."""

  pieces: Pieces
  leaf: str
  layer: tuple[int, ...]

  @property
  def dtype(self) -> np.dtype:
    return self.pieces.arrays[self.leaf].dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.pieces.arrays[self.leaf].shape[len(self.layer) :]

  @property
  def rows_together(self) -> int:
    """How many rows lie in one file."""
    return (*self.pieces.arrays[self.leaf].chunk[len(self.layer) :], 1)[0]

  def read(self, start: int, stop: int) -> np.ndarray:
    return self.part((slice(start, stop),))

  def part(self, index: tuple[slice, ...]) -> np.ndarray:
    """tensor[index], C-contiguous; reads little else. Raises FormatError."""
    try:
      return self.pieces.read(self.leaf, (*self.layer, *index))
    except reading.DamagedCheckpoint as error:
      raise FormatError(self.pieces.folder, printable(self.leaf), str(error)) from None


def open_source(
  path: Path, tokenizer: Tokenizer | None, step: int | None = None, digests: bool = True
) -> Source:
  """Opens the checkpoint of `step` of a run, or of a conversion; None: the newest one whose files are whole.

  Args:
    digests: whether each file is compared with its digest: of a conversion as it is read, of a run (where files
      hold several arrays together) before; False: sizes alone are.

  Raises:
    UserError: there is no such step. FormatError: it (or each one) is damaged, or contradicts itself.
  """
  found, notes = whole_step(path, step, digests=False)
  pieces = _pieces(path, found)
  if digests and not pieces.check_as_read():
    found, notes = whole_step(path, step)
    pieces = _pieces(path, found)
  folder = pieces.folder
  cfg = _model(folder, pieces.meta)
  own = tokenizer or _tokenizer(path, notes)
  told = pieces.meta.get(CONVERTED)
  told = told if isinstance(told, dict) else {}
  family, generation = told.get('family'), told.get('generation')
  if any(not name.startswith(_PARAMS) for name in pieces.meta['leaves']):
    notes.append(f'{folder}: the state of the optimizer is left out; weights are all that is converted')
  return Source(
    format='llamax',
    path=path,
    cfg=cfg,
    family=family if isinstance(family, str) else _family(cfg),
    rows=rows(cfg),
    entries=_entries(folder, pieces, cfg),
    tokenizer=own,
    generation=generation if isinstance(generation, dict) else {},
    notes=notes,
    files=[folder / MANIFEST, *([Path(own.path)] if own else [])],
  )


def _pieces(path: Path, step: int) -> Pieces:
  folder = path / _CHECKPOINTS / str(step)
  try:
    return Pieces(folder)
  except reading.DamagedCheckpoint as error:
    raise FormatError(folder, 'state', str(error)) from None


def whole_step(path: Path, step: int | None, digests: bool = True) -> tuple[int, list[str]]:
  """(the step to read, why not a newer one). Arguments, errors as of `open_source`."""
  folder = path / _CHECKPOINTS
  present = folder_of_steps.steps(folder)
  if step is not None and step not in present:
    raise UserError(f'--step={step}: {folder} has the steps {", ".join(map(str, present)) or "none"}')
  notes: list[str] = []
  for candidate in [step] if step is not None else present[::-1]:
    try:
      reading.require_whole(folder, candidate, sizes_only=not digests)
      return candidate, notes
    except reading.DamagedCheckpoint as error:
      notes.append(str(error))
  raise FormatError(folder, 'digests', '; '.join(notes) or 'there is no checkpoint')


def _model(folder: Path, meta: Mapping[str, Any]) -> ModelConfig:
  try:
    cfg = Config.from_mapping(meta.get('config')).model  # type: ignore[arg-type]
    param_dims(cfg)  # Its parts have names that are known.
  except ValueError as error:
    raise FormatError(folder, 'config', f'{printable(error, 400)}') from None
  if cfg.num_layers > _MOST_LAYERS:
    raise FormatError(
      folder, 'config', f'model.num_layers is {cfg.num_layers}; at most {_MOST_LAYERS} are read'
    )
  return cfg


def _family(cfg: ModelConfig) -> str:
  """What Hugging Face would call it; of a model that it does not have, the nearest."""
  if cfg.qk_norm:
    return 'qwen3'
  if cfg.qkv_bias and not cfg.out_bias:
    return 'qwen2'
  return 'mistral' if cfg.sliding_window else 'llama'


def _entries(folder: Path, pieces: Pieces, cfg: ModelConfig) -> dict[str, Entry]:
  entries: dict[str, Entry] = {}
  for leaf, array in pieces.arrays.items():
    path = leaf.removeprefix(_PARAMS)
    if array.dtype not in DTYPES.values():
      raise FormatError(folder, printable(leaf), f'is of {printable(array.dtype)}; want {", ".join(DTYPES)}')
    if not path.startswith('layers/'):
      entries[path] = Part(pieces, leaf, ())
      continue
    if array.shape[:1] != (cfg.num_layers,):
      raise FormatError(
        folder, printable(leaf), f'is {list(array.shape)}; its config has {cfg.num_layers} layers'
      )
    for layer in range(cfg.num_layers):
      entries[path.replace('layers/', f'layers/{layer}/', 1)] = Part(pieces, leaf, (layer,))
  return entries


def _tokenizer(path: Path, notes: list[str]) -> Tokenizer | None:
  if not any((path / name).exists() for name in NAMES):
    notes.append(f'{path} has no tokenizer: give --tokenizer=FILE')
    return None
  return open_tokenizer(path)


class Target(target.Target):
  """A folder like that of a run: config, tokenizer, a checkpoint of step 0 that holds weights alone."""

  format = 'llamax'
  dtypes = ('float32', 'bfloat16')

  def __init__(self, model: Model, mesh: str | None = None):
    """mesh: 'data=1,fsdp=8,tensor=2': each device of it reads files of its own. Raises UserError."""
    super().__init__(model)
    self.rows = rows(model.cfg)
    self._sizes = _mesh_sizes(mesh, model.cfg) if mesh else {}
    self._dtype: np.dtype | None = None
    self._streamed: StreamedParams | None = None

  def dtype_of(self, name: str, dtype: np.dtype) -> np.dtype:
    kept = super().dtype_of(name, dtype)
    self._dtype = self._dtype or kept
    if kept != self._dtype:
      raise UserError(
        f'{name} is {kept.name}, others are {self._dtype.name}; llamax keeps all weights in one dtype '
        '(compute.param_dtype): give --dtype=float32 or --dtype=bfloat16'
      )
    return kept

  def files(self, tensors: Sequence[Wanted]) -> dict[str, int]:
    return {
      f'{_CHECKPOINTS}/{_STEP}/state/{leaf.replace("/", ".")}/': math.prod(shape) * dtype.itemsize
      for leaf, (shape, dtype) in self._leaves(tensors).items()
    }

  def _leaves(self, tensors: Sequence[Wanted]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    found = {}
    for tensor in tensors:
      leaf, layer = _leaf_of(tensor.name)
      stack = (self.model.cfg.num_layers,) if layer else ()
      found[leaf] = ((*stack, *tensor.shape), tensor.dtype)
    return found

  def lay_out(self, folder: Path, tensors: Sequence[Wanted]) -> None:
    # The config first: what it refuses is not to be refused after hours of copying.
    self._config()
    place = folder / self.result / _CHECKPOINTS / str(_STEP)
    parts = {
      _PARAMS + path: parts_of(letters, self._sizes) for path, letters in param_dims(self.model.cfg).items()
    }
    if place.exists():  # Killed after its last rename.
      storage.move(place, StreamedParams.writer_of(place))
    self._streamed = StreamedParams(place, self._leaves(tensors), parts)

  def write(self, name: str, start: int, block: np.ndarray) -> None:
    assert self._streamed
    leaf, layer = _leaf_of(name)
    self._streamed.write(leaf, (*layer, slice(start, start + len(block))), block)

  def sync(self) -> None:
    assert self._streamed
    self._streamed.sync()

  def finish(self) -> None:
    assert self.folder and self._streamed
    folder, tokenizer, config = self.folder / self.result, self.model.tokenizer, self._config()
    if tokenizer is not None:
      tokenizer.save(folder)
    storage.write_json(folder / CONFIG_FILE, config)
    self._streamed.finish(
      {
        'config': config,
        'tokenizer_fingerprint': tokenizer.fingerprint if tokenizer else None,
        'tokens_seen': 0,
        'mesh': self._sizes,
        CONVERTED: {'family': self.model.family, 'generation': dict(self.model.generation)},
      }
    )

  def _config(self) -> dict[str, Any]:
    """A whole config of llamax: that of configs/base.py with this model. Raises UserError."""
    assert self._dtype
    # By name: configs are programs, which the layer above runs.
    mapping = importlib.import_module('llamax.cli.configure').defaults().to_mapping()
    mapping['model'] = dataclasses.asdict(self.model.cfg)
    mapping['compute']['param_dtype'] = self._dtype.name
    mapping['data']['seq_len'] = min(mapping['data']['seq_len'], self.model.cfg.max_seq_len)
    return Config.from_mapping(mapping).to_mapping()


def _leaf_of(name: str) -> tuple[str, tuple[int, ...]]:
  """'layers/3/attn/wq' -> ('params/layers/attn/wq', (3,))."""
  first, _, rest = name.partition('/')
  if first != 'layers':
    return _PARAMS + name, ()
  layer, _, path = rest.partition('/')
  return f'{_PARAMS}layers/{path}', (int(layer),)


def _mesh_sizes(text: str, cfg: ModelConfig) -> dict[str, int]:
  sizes = dict.fromkeys(AXES, 1)
  for word in text.replace(' ', '').split(','):
    axis, equals, count = word.partition('=')
    if axis not in AXES:
      raise UserError(f'--mesh={text}: there is no axis {axis!r}.{nearest(axis, AXES)}')
    if not equals or not count.isdecimal() or int(count) < 1:
      raise UserError(f'--mesh={text}: {word!r}: want {axis}=NUMBER, from 1; name all devices of the mesh')
    sizes[axis] = int(count)
  check_fits(sizes, math.prod(sizes.values()), 1, dim_sizes(cfg))
  return sizes
