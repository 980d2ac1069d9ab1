"""Checkpoints of EasyLM: a stream of tensors, [in, out], whose rotary pairs are neighbours.

Follows StreamingCheckpointer with FlaxLLaMAForCausalLM of github.com/young-geng/EasyLM. A stream holds tensors
alone: what model it is of says NAME.config.json beside NAME, in the words of Hugging Face, or --preset; its
tokenizer is in the folder NAME.tokenizer. EasyLM itself reads neither.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamax.convert import easylm_frame, easylm_stream
from llamax.convert.errors import FormatError
from llamax.convert.hf_config import read_model, write_model
from llamax.convert.json_file import Fields, read_json
from llamax.convert.layout import BLOCK_BYTES
from llamax.convert.rows import Row
from llamax.convert.source import Entry, File, Source
from llamax.convert.target import FileTarget, Model, Wanted
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError, pick
from llamax.data.tokenizer import Tokenizer, open_tokenizer
from llamax.model.presets import PRESETS

_EMBED, _HEAD = 'transformer/wte/embedding', 'lm_head/kernel'
_FIRST_GATE = 'transformer/h/0/feed_forward/w1/kernel'
ROWS = (
  Row('embed/table', _EMBED, 'V D'),
  Row('layers/*/attn_norm/scale', 'transformer/h/*/attention_norm/kernel', 'D'),
  Row('layers/*/attn/wq', 'transformer/h/*/attention/wq/kernel', 'D (N h p)'),
  Row('layers/*/attn/wk', 'transformer/h/*/attention/wk/kernel', 'D (K h p)'),
  Row('layers/*/attn/wv', 'transformer/h/*/attention/wv/kernel', 'D (K H)'),
  Row('layers/*/attn/wo', 'transformer/h/*/attention/wo/kernel', '(N H) D'),
  Row('layers/*/mlp_norm/scale', 'transformer/h/*/ffn_norm/kernel', 'D'),
  Row('layers/*/mlp/w_gate', 'transformer/h/*/feed_forward/w1/kernel', 'D F'),
  Row('layers/*/mlp/w_up', 'transformer/h/*/feed_forward/w3/kernel', 'D F'),
  Row('layers/*/mlp/w_down', 'transformer/h/*/feed_forward/w2/kernel', 'F D'),
  Row('final_norm/scale', 'transformer/ln_f/kernel', 'D'),
  Row('lm_head/kernel', _HEAD, 'D V'),
)
_WEIGHTS = ('transformer', 'lm_head')  # first part of a weight's key, below the prefix
_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
_ROPE_THETA = 10_000.0  # that EasyLM's attention has as a default, which nothing overrides
_PREFIX = 'params'  # of a whole train state twice, of some exports once


def recognise(path: Path) -> bool:
  """Whether a file begins with a pair of key and bytes."""
  if not path.is_file():
    return False
  try:
    return next(easylm_stream.entries(File(path)), None) is not None
  except FormatError:
    return False


def open_source(path: Path, tokenizer: Tokenizer | None, preset: str | None = None) -> Source:
  """Opens a stream of parameters or of a whole train state; reads headers, and a head that may be a copy.

  Args:
    preset: a name of llamax.model.presets, or a config.json of Hugging Face; None: the one beside the stream.

  Raises:
    FormatError: the stream is damaged. UserError: nothing says what model it is of.
  """
  values, notes = _weights(path)
  tensors = {name: value.tensor() for name, value in values.items()}
  cfg, family, generation, said = _config(path, tensors, preset)
  cfg, apart = _tie(cfg, path, tensors)
  config, folder = _beside(path, 'config.json'), _beside(path, 'tokenizer')
  beside = [config] if config.is_file() else []
  if tokenizer is None and folder.is_dir():
    tokenizer = open_tokenizer(folder)
    beside += sorted(folder.iterdir())
  return Source(
    format='easylm',
    path=path,
    cfg=cfg,
    family=family,
    rows=ROWS,
    entries={name: one for name, one in tensors.items() if name != _HEAD or not cfg.tie_embeddings},
    tokenizer=tokenizer,
    generation=generation,
    notes=[*notes, *said, *apart],
    files=[path, *beside],
  )


def _weights(path: Path) -> tuple[dict[str, easylm_stream.Value], list[str]]:
  """(name without prefix -> value, notes)."""
  found: dict[str, easylm_stream.Value] = {}
  left_out: set[str] = set()
  for key, value in easylm_stream.entries(File(path)):
    below = key
    while below[0] == _PREFIX and len(below) > 1 and len(key) - len(below) < 2:
      below = below[1:]
    if below[0] not in _WEIGHTS:
      left_out.add(key[0])
      continue
    name = '/'.join(below)
    if name in found:
      raise FormatError(path, name, 'stands there twice')
    found[name] = value
  if not found:
    raise FormatError(
      path, 'stream', f'has no key under {" or ".join(_WEIGHTS)}: these are no weights of a LLaMA'
    )
  return found, [f'{path}: not used: {", ".join(sorted(left_out))}'] if left_out else []


def _config(
  path: Path, tensors: Mapping[str, Entry], preset: str | None
) -> tuple[ModelConfig, str, dict[str, Any], list[str]]:
  """(config, family, special ids, notes): what tensors cannot say is never guessed."""
  beside = _beside(path, 'config.json')
  generation: dict[str, Any] = {}
  notes: list[str] = []
  if preset is None and not beside.is_file():
    raise UserError(
      f'{path}: a stream of EasyLM says neither how wide a head is nor its rotary base. Give --preset=NAME'
      f'{_fitting(tensors)}, or --preset=FILE, a config.json of Hugging Face; or put that at {beside}'
    )
  if preset is not None and not preset.endswith('.json'):
    cfg, family = ModelConfig(preset=preset, **pick(PRESETS, preset, '--preset')), 'llama'
  else:
    file = beside if preset is None else Path(preset).expanduser()
    fields = Fields(file, read_json(file))
    cfg, family, notes = read_model(fields)
    generation = {name: fields.raw(name) for name in _IDS if fields.raw(name) is not None}
  rows = tensors[_EMBED].shape[0] if _EMBED in tensors else cfg.vocab_size
  if preset is not None and rows != cfg.vocab_size:
    notes.append(f'{path}: {rows:,} ids, as its tensors have; --preset={preset} has {cfg.vocab_size:,}')
    cfg = dataclasses.replace(cfg, vocab_size=rows)
  if cfg.num_heads * cfg.head_dim != cfg.d_model:
    raise UserError(
      f'{path}: EasyLM has heads of d_model / num_heads = {cfg.d_model / cfg.num_heads:g}; the config says '
      f'head_dim={cfg.head_dim}: it is of another model'
    )
  return cfg, family, generation, notes


def _fitting(tensors: Mapping[str, Entry]) -> str:
  """' (of these sizes: llama_7b, ...)' for the presets that could have made these tensors."""
  gate = tensors.get(_FIRST_GATE)
  layers = sum(name.endswith('/feed_forward/w1/kernel') for name in tensors)
  names = [
    name
    for name, model in PRESETS.items()
    if gate is not None and (*gate.shape, layers) == (model['d_model'], model['d_ff'], model['num_layers'])
  ]
  return f' (of these sizes: {", ".join(names)})' if names else ''


def _tie(cfg: ModelConfig, path: Path, tensors: Mapping[str, Entry]) -> tuple[ModelConfig, list[str]]:
  """(config, notes). EasyLM of today stores a head in any case: where the config ties it, it must be a copy."""
  head, table = tensors.get(_HEAD), tensors.get(_EMBED)
  if not cfg.tie_embeddings or head is None or table is None or _is_transposed(head, table):
    return cfg, []
  apart = f'{path}: {_HEAD} is not {_EMBED} transposed, although the config ties them: kept apart'
  return dataclasses.replace(cfg, tie_embeddings=False), [apart]


def _is_transposed(head: Entry, table: Entry) -> bool:
  """Whether head [D, V] is table [V, D] the other way round, each read once.

  Neither is ever whole in memory: compared is, for each id, the sum of its D bit patterns times random numbers.
  """
  if tuple(head.shape) != tuple(reversed(table.shape)) or len(head.shape) != 2 or head.dtype != table.dtype:
    return False
  width, count = head.shape
  bits = np.dtype(f'u{head.dtype.itemsize}')
  weights = np.random.default_rng().integers(1 << 64, size=width, dtype=np.uint64) | 1  # odd: none hides a bit
  from_table = [
    (rows.view(bits).astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64) for _, rows in _pieces(table)
  ]
  from_head = np.zeros(count, np.uint64)
  for start, rows in _pieces(head):
    scaled = rows.view(bits).astype(np.uint64) * weights[start : start + len(rows), None]
    from_head += scaled.sum(axis=0, dtype=np.uint64)
  return bool(np.array_equal(np.concatenate(from_table), from_head))


def _pieces(entry: Entry) -> Iterator[tuple[int, np.ndarray]]:
  step = max(1, BLOCK_BYTES // 4 // (entry.shape[1] * entry.dtype.itemsize))
  for start in range(0, entry.shape[0], step):
    yield start, entry.read(start, min(start + step, entry.shape[0]))


def _beside(path: Path, what: str) -> Path:
  """NAME.WHAT for NAME, NAME.msgpack, NAME.stream."""
  name = path.name.removesuffix('.msgpack').removesuffix('.stream')
  return path.with_name(f'{name}.{what}')


class Target(FileTarget):
  """A stream, with NAME.config.json and the folder NAME.tokenizer beside it: EasyLM has no place for them."""

  format = 'easylm'
  rows = ROWS

  def __init__(self, model: Model):
    super().__init__(model)
    cfg, wrong = model.cfg, []
    if cfg.num_heads * cfg.head_dim != cfg.d_model:
      wrong.append(f'model.head_dim={cfg.head_dim} (it has d_model / num_heads)')
    if cfg.rope_scaling != 'none':
      wrong.append(f'model.rope_scaling={cfg.rope_scaling!r}')
    if cfg.sliding_window:
      wrong.append(f'model.sliding_window={cfg.sliding_window}')
    if wrong:
      raise UserError(f'EasyLM cannot compute this model: {", ".join(wrong)}; write another format')
    if cfg.rope_theta != _ROPE_THETA:
      self.notes.append(
        f'EasyLM (its last commit, of 2024) rotates with the base {_ROPE_THETA:g} whatever rope_theta says; '
        f'this model has {cfg.rope_theta:g}'
      )
    self._chunks: dict[str, list[tuple[int, int]]] = {}  # name -> (byte in the file, size) of its numbers

  def _objects(self, tensors: Sequence[Wanted]) -> list[Wanted]:
    """The tensors with the head that EasyLM wants of a tied model, too."""
    table = next((tensor for tensor in tensors if tensor.name == _EMBED), None)
    if not self.model.cfg.tie_embeddings or table is None:
      return list(tensors)
    return [*tensors, Wanted(_HEAD, (table.shape[1], table.shape[0]), table.dtype)]

  def files(self, tensors: Sequence[Wanted]) -> dict[str, int]:
    frames = [easylm_frame.frame(one.name, one.dtype, one.shape) for one in self._objects(tensors)]
    return {self.result: sum(frame.size for frame in frames)}

  def lay_out(self, folder: Path, tensors: Sequence[Wanted]) -> None:
    self.folder, self._dtype = folder, max(tensors, key=lambda one: one.num_bytes).dtype.name
    self._companions()
    at, headers, placed = 0, [], []
    for one in self._objects(tensors):
      frame = easylm_frame.frame(one.name, one.dtype, one.shape)
      headers += [(at + offset, content) for offset, content in frame.headers]
      self._chunks[one.name] = [(at + offset, size) for offset, size in frame.pieces]
      placed.append((one, at))
      at += frame.size
    self.add_file(self.result, at, headers, placed)

  def write(self, name: str, start: int, block: np.ndarray) -> None:
    self._put(name, start * self._row_bytes[name], block)
    if name == _EMBED and self.model.cfg.tie_embeddings:
      item = block.dtype.itemsize
      for i, column in enumerate(block.view(f'u{item}').T):
        self._put(_HEAD, i * self._row_bytes[_HEAD] + start * item, np.ascontiguousarray(column))

  def _put(self, name: str, offset: int, block: np.ndarray) -> None:
    """Numbers that begin `offset` bytes into a tensor, which lies in one piece or several."""
    flat, first = block.reshape(-1).view(np.uint8), 0
    for at, size in self._chunks[name]:
      low, high = max(offset, first), min(offset + len(flat), first + size)
      if low < high:
        self.placed[self.result].write_array(at + low - first, flat[low - offset : high - offset])
      first += size

  def finish(self) -> None:
    for path, content in self._companions().items():
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(content)

  def _companions(self) -> dict[Path, bytes]:
    """What lies beside the stream; UserError where something else is there already."""
    assert self.folder
    destination = self.folder.with_name(self.folder.name.removesuffix('.incomplete'))
    ids = {name: self.model.generation[name] for name in _IDS if name in self.model.generation}
    config = write_model(self.model.cfg, self.model.family, self._dtype, ids)
    found = {_beside(destination, 'config.json'): (json.dumps(config, indent=2) + '\n').encode()}
    if self.model.tokenizer is not None:
      from llamax.convert.vocabulary import as_files

      files = as_files(self.model.tokenizer, 'llamax')
      found |= {_beside(destination, 'tokenizer') / name: content for name, content in files.items()}
    for path, content in found.items():
      if path.exists() and path.read_bytes() != content:
        raise UserError(f'{path} exists already, with another content; remove it, or give another name')
    return found
