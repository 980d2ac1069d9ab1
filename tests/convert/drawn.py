"""Random weights of a config as a source of the streaming copy, in llamax's own layout."""

from pathlib import Path
from typing import Any

import numpy as np

from llamax.convert.copy import copy, make_plan
from llamax.convert.rows import Row, our_layouts
from llamax.convert.source import DTYPES, Source
from llamax.convert.target import Target
from llamax.core.config import ModelConfig
from tests.convert.families import InMemory


def draw(cfg: ModelConfig, dtype: str = 'float32', seed: int = 0) -> dict[str, np.ndarray]:
  """Our path, the layer spelled out -> array in our layout."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for path, layout in our_layouts(cfg).items():
    noise = rng.standard_normal(layout.shape)
    if path.endswith('scale'):
      noise = 1 + 0.3 * noise
    elif len(layout.shape) > 1 and not path.startswith('embed'):
      noise /= cfg.d_model**0.5
    arrays[path] = noise.astype(DTYPES[dtype])
  return arrays


def source(cfg: ModelConfig, arrays: dict[str, np.ndarray], family: str = 'llama', **more: Any) -> Source:
  rows = tuple(Row(path, path, layout.text) for path, layout in our_layouts(cfg).items())
  rows = tuple({row.ours.replace(f'/{layer(row.ours)}/', '/*/'): row for row in rows}.values())
  rows = tuple(
    Row(*(text.replace(f'/{layer(row.ours)}/', '/*/') for text in row[:2]), row.layout) for row in rows
  )
  entries = {path: InMemory(array) for path, array in arrays.items()}
  return Source('drawn', Path('drawn'), cfg, family, rows, entries, **more)


def layer(path: str) -> str:
  return path.split('/')[1] if path.startswith('layers/') else '-'


def write(from_: Source, target: Target, destination: Path, dtype: str | None = None) -> Path:
  steps = make_plan(from_, target, dtype)
  copy(from_, target, steps, destination, {}, threads=2, progress=lambda _: None, say=lambda _: None)
  return destination


def read(found: Source) -> dict[str, np.ndarray]:
  """All tensors, by our path, as their file has them."""
  return {ours: found.entry(ours).read(0, found.entry(ours).shape[0]) for ours in found.places}


def read_ours(found: Source, scratch: Path) -> dict[str, np.ndarray]:
  """All tensors in our own layout, through the streaming copy."""
  target = Kept(found)
  write(found, target, scratch)
  return target.arrays


class Kept(Target):
  """Keeps what is written, in our layout."""

  format = 'kept'

  def __init__(self, found: Source):
    self.rows = source(found.cfg, {}).rows
    super().__init__(found)
    self.arrays: dict[str, np.ndarray] = {}

  def files(self, tensors):
    return {}

  def lay_out(self, folder, tensors):
    self.folder = folder
    (folder / self.result).touch()
    self.arrays = {tensor.name: np.empty(tensor.shape, tensor.dtype) for tensor in tensors}

  def write(self, name, start, block):
    self.arrays[name][start : start + len(block)] = block

  def sync(self):
    pass

  def finish(self):
    pass
