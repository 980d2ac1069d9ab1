"""Parameters on their devices, out of a checkpoint of any format: each host reads what its devices hold."""

import concurrent.futures
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from llamax.convert.layout import BLOCK_BYTES, Layout, fill, rearranged
from llamax.convert.native import Part
from llamax.convert.rows import our_layouts
from llamax.convert.source import Source
from llamax.core.types import PyTree
from llamax.parallel.rules import path_of

_THREADS = 4  # each holds a block of one tensor
_STACKED = 'layers/'

Range = tuple[int, int]


def load_params(source: Source, target: PyTree) -> PyTree:
  """The parameters like `target`, one leaf after the other: a host holds no more than its part of one.

  Args:
    target: pytree of jax.ShapeDtypeStruct with shardings; a tensor of another dtype is cast.

  Raises:
    UserError: a file is damaged.
  """
  layouts = our_layouts(source.cfg)
  with concurrent.futures.ThreadPoolExecutor(_THREADS, 'init_from') as pool:

    def load(key_path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
      path, sharding = path_of(key_path), leaf.sharding
      assert sharding is not None
      where = sharding.addressable_devices_indices_map(leaf.shape)
      cuts = {device: _ranges(index, leaf.shape) for device, index in where.items()}
      # Devices with the same part share it.
      parts = {cut: np.empty([stop - start for start, stop in cut], leaf.dtype) for cut in cuts.values()}
      for done in [
        pool.submit(_fill, source, ours, layouts[ours], shards)
        for ours, shards in _tensors(path, leaf.shape, parts)
      ]:
        done.result()
      arrays = [jax.device_put(parts[cut], device) for device, cut in cuts.items()]
      return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)

    return jax.tree_util.tree_map_with_path(load, target)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A part of one tensor. ranges: in each of its dims. out: what is to be filled, in our layout."""

  ranges: tuple[Range, ...]
  out: np.ndarray


def _ranges(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[Range, ...]:
  return tuple((at.indices(size)[0], at.indices(size)[1]) for at, size in zip(index, shape, strict=True))


def _tensors(
  path: str, shape: tuple[int, ...], parts: dict[tuple[Range, ...], np.ndarray]
) -> Iterator[tuple[str, list[_Shard]]]:
  """The tensors that a leaf is made of, each with what it has to fill."""
  if not path.startswith(_STACKED):
    yield path, [_Shard(cut, part) for cut, part in parts.items()]
    return
  assert all(cut[0] == (0, shape[0]) for cut in parts), 'no mesh cuts the layers'
  for layer in range(shape[0]):
    ours = path.replace(_STACKED, f'{_STACKED}{layer}/', 1)
    yield ours, [_Shard(cut[1:], part[layer]) for cut, part in parts.items()]


def _fill(source: Source, ours: str, wanted: Layout, shards: list[_Shard]) -> None:
  entry = source.entry(ours)
  if isinstance(entry, Part):  # In our layout: any part of it is read by itself.
    for shard in shards:
      _put(shard.out, entry.part(tuple(slice(*cut) for cut in shard.ranges)))
    return
  for letter, start, stop, view in _blocks(entry, source.places[ours].layout, wanted, shards):
    for shard in shards:
      _put_block(shard, wanted, letter, start, stop, view)


def _blocks(
  entry: Any, theirs: Layout, wanted: Layout, shards: list[_Shard]
) -> Iterator[tuple[str, int, int, np.ndarray]]:
  """What the shards need of a tensor, as rows of the file: (first letter, its range, a view in our order).

  Only a cut along the first dim of the file saves reading.
  """
  letter = theirs.letters[0]
  needed = [cut for shard in shards for cut in [_cuts(shard, wanted).get(letter, (0, theirs.sizes[letter]))]]
  first, last = min(start for start, _ in needed), max(stop for _, stop in needed)
  row_bytes = math.prod(entry.shape[1:]) * entry.dtype.itemsize * theirs.row_unit
  # What H is to the file, our letters p, h are: there are no rows of it to cut.
  at_a_time = max(1, BLOCK_BYTES // max(1, row_bytes)) if letter in wanted.letters else last - first
  for start in range(first, last, at_a_time):
    stop = min(last, start + at_a_time)
    sizes = {**theirs.sizes, letter: stop - start}
    block = entry.read(start * theirs.row_unit, stop * theirs.row_unit)
    yield letter, start, stop, rearranged(block, Layout(theirs.text, sizes), Layout(wanted.text, sizes))


def _cuts(shard: _Shard, wanted: Layout) -> dict[str, Range]:
  """Letter -> range, for the dims of ours that are one letter; only those are ever cut."""
  groups = zip(wanted.groups, shard.ranges, strict=True)
  return {group[0]: cut for group, cut in groups if len(group) == 1}


def _put_block(shard: _Shard, wanted: Layout, letter: str, start: int, stop: int, view: np.ndarray) -> None:
  cuts = _cuts(shard, wanted)
  into, out_of, shape = [], [], []
  for name in wanted.letters:
    low, high = cuts.get(name, (0, wanted.sizes[name]))
    shape.append(high - low)
    begin, end = (max(low, start), min(high, stop)) if name == letter else (low, high)
    if begin >= end:
      return
    offset = start if name == letter else 0
    into.append(slice(begin - low, end - low))
    out_of.append(slice(begin - offset, end - offset))
  _put(shard.out.reshape(shape)[tuple(into)], view[tuple(out_of)])


def _put(out: np.ndarray, numbers: np.ndarray) -> None:
  if out.dtype == numbers.dtype:
    # As integers: numpy moves those several times faster than bfloat16.
    word = np.dtype(f'u{out.dtype.itemsize}')
    out, numbers = out.view(word), numbers.view(word)
  fill(out, numbers)
