"""The tables that name each tensor in a format, bound to the sizes of one model."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llamax.convert.layout import Layout, halved
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError
from llamax.model.llama import dim_sizes, param_dims

_LISTED = 20  # tensors that one message names


class Row(NamedTuple):
  """ours: a parameter path, its layer as '*'. theirs: the format's name, likewise. layout: of their array."""

  ours: str
  theirs: str
  layout: str


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one tensor of ours is in a format."""

  ours: str
  theirs: str
  layout: Layout


def sizes(cfg: ModelConfig) -> dict[str, int]:
  """Letter -> size, for layouts."""
  return {**dim_sizes(cfg), 'p': 2, 'h': cfg.head_dim // 2}


def our_layouts(cfg: ModelConfig) -> dict[str, Layout]:
  """Path with its layer spelled out ('layers/3/attn/wq') -> layout in memory, as a forward pass goes."""
  found, letters = {}, sizes(cfg)
  dims = param_dims(cfg)
  stacked = {path.removeprefix('layers/'): ours for path, ours in dims.items() if path.startswith('layers/')}
  found['embed/table'] = Layout(halved(dims['embed/table']), letters)
  for layer in range(cfg.num_layers):
    for path, ours in stacked.items():
      found[f'layers/{layer}/{path}'] = Layout(halved(ours[1:]), letters)
  for path, ours in dims.items():
    if not path.startswith(('layers/', 'embed/')):
      found[path] = Layout(halved(ours), letters)
  return found


def bind(rows: Sequence[Row], cfg: ModelConfig, format_name: str) -> dict[str, Place]:
  """Our path -> its place in the format, for each tensor of the model.

  Raises:
    UserError: the format has no place for one of them.
  """
  by_path, letters = {row.ours: row for row in rows}, sizes(cfg)
  places, homeless = {}, []
  for path in our_layouts(cfg):
    layer = re.match(r'layers/(\d+)/', path)
    row = by_path.get(re.sub(r'^layers/\d+/', 'layers/*/', path))
    if row is None:
      homeless.append(path)
      continue
    theirs = row.theirs.replace('*', layer[1]) if layer else row.theirs
    places[path] = Place(path, theirs, Layout(row.layout, letters))
  if homeless:
    raise UserError(
      f'the format {format_name} has no place for {", ".join(homeless[:4])}'
      f'{" ..." if len(homeless) > 4 else ""}: write another format'
    )
  return places


class Misfit(NamedTuple):
  name: str
  wanted: str
  found: str


def misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[Misfit]:
  """Tensors that are missing, too many, or of another shape. Both: name -> shape."""
  names = [*wanted, *(name for name in found if name not in wanted)]
  return [
    Misfit(name, shown(wanted.get(name)), shown(found.get(name)))
    for name in names
    if wanted.get(name) != found.get(name)
  ]


def require_fit(
  wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str, hint: str
) -> None:
  """UserError with a table of the misfits, where there are any. wanted, found: name -> shape."""
  bad = misfits(wanted, found)
  if not bad:
    return
  width = max(len(one.name) for one in bad[:_LISTED])
  columns = max(len(one.wanted) for one in bad[:_LISTED])
  lines = [f'  {one.name:{width}}  wanted {one.wanted:{columns}}  found {one.found}' for one in bad[:_LISTED]]
  more = [f'  ... {len(bad) - _LISTED} more'] if len(bad) > _LISTED else []
  raise UserError('\n'.join([f'{where}: {len(bad)} tensor(s) do not fit the model:', *lines, *more, hint]))


def shown(shape: tuple[int, ...] | None) -> str:
  return 'nothing' if shape is None else f'[{", ".join(map(str, shape))}]'


def num_bytes(layout: Layout, dtype: np.dtype) -> int:
  return math.prod(layout.shape) * dtype.itemsize
