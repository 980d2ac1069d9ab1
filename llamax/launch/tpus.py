"""What a TPU slice is called, how many machines it has, by generation."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llamax.core.errors import UserError, nearest


@dataclass(frozen=True)
class Generation:
  """
  Args:
    accelerator: the Cloud TPU API calls a slice `accelerator-N`; '' where that API does not serve it.
    cores: what N counts for each chip: TensorCores on v4, v5p, chips on v5e, v6e.
    runtime: the system image of its virtual machines that jax is installed on.
    gke: label of its nodes.
    machines: chips of one virtual machine -> its type on GKE.
    dims: of the network that joins the chips of a slice.
    most_chips: of one slice.
  """

  accelerator: str
  cores: int
  runtime: str
  gke: str
  machines: Mapping[int, str]
  dims: int
  most_chips: int


# cloud.google.com/tpu/docs: a page per version, runtimes; GKE's own page: concepts/plan-tpus.
GENERATIONS = {
  'v4': Generation('v4', 2, 'tpu-ubuntu2204-base', 'tpu-v4-podslice', {4: 'ct4p-hightpu-4t'}, 3, 4096),
  'v5e': Generation(
    'v5litepod',
    1,
    'v2-alpha-tpuv5-lite',
    'tpu-v5-lite-podslice',
    {1: 'ct5lp-hightpu-1t', 4: 'ct5lp-hightpu-4t', 8: 'ct5lp-hightpu-8t'},
    2,
    256,
  ),
  'v5p': Generation('v5p', 2, 'v2-alpha-tpuv5', 'tpu-v5p-slice', {4: 'ct5p-hightpu-4t'}, 3, 8960),
  'v6e': Generation(
    'v6e',
    1,
    'v2-alpha-tpuv6e',
    'tpu-v6e-slice',
    {1: 'ct6e-standard-1t', 4: 'ct6e-standard-4t', 8: 'ct6e-standard-8t'},
    2,
    256,
  ),
  # The Cloud TPU API ends with v6e.
  'tpu7x': Generation('', 2, '', 'tpu7x', {1: 'tpu7x-standard-1t', 4: 'tpu7x-standard-4t'}, 3, 9216),
}

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Below one cube of 4x4x4; above, each side is a multiple of 4, none shorter than the one before.
_SMALL = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_EXAMPLES = 'v5e:4x4 (or v5litepod-16), v5p:4x4x4 (v5p-128), v6e:16x16 (v6e-256)'


@dataclass(frozen=True)
class Slice:
  """Chips joined by their own network. shape: of that network; per_host: chips of one virtual machine."""

  generation: str
  shape: tuple[int, ...]
  per_host: int

  @property
  def chips(self) -> int:
    return math.prod(self.shape)

  @property
  def hosts(self) -> int:
    return self.chips // self.per_host

  @property
  def topology(self) -> str:
    return 'x'.join(map(str, self.shape))

  @property
  def table(self) -> Generation:
    return GENERATIONS[self.generation]

  @property
  def accelerator(self) -> str:
    """As --accelerator-type of gcloud has it; UserError where it has none for this slice."""
    if not self.table.accelerator:
      raise UserError(
        f'--tpu={self.generation}:{self.topology}: the Cloud TPU API (gcloud compute tpus) serves TPUs up to '
        f'v6e; {self.generation} is served by GKE: llamax launch gke --tpu={self.generation}:{self.topology}'
      )
    usual = _shape(self.generation, self.chips)
    if self.shape != usual:
      raise UserError(
        f'--tpu={self.generation}:{self.topology}: {self.chips} chips come as '
        f'{"x".join(map(str, usual or ()))} from the Cloud TPU API; take that, or llamax launch gke'
      )
    return f'{self.table.accelerator}-{self.chips * self.table.cores}'

  @property
  def machine(self) -> str:
    """Type of its virtual machines on GKE."""
    return self.table.machines[self.per_host]


def parse(text: str, per_host: int | None = None) -> Slice:
  """'v5e:4x4' as `llamax train --topology` has it, or 'v5litepod-16' as gcloud has it.

  Args:
    per_host: chips of one virtual machine where there is a choice (8 chips of v5e, v6e: one machine or two).

  Raises:
    UserError: no such slice.
  """
  if found := re.fullmatch(r'([a-z0-9]+):([0-9]{1,3}(?:x[0-9]{1,3})*)', text):
    name, shape = found[1], tuple(int(side) for side in found[2].split('x'))
    _known(name, text)
  elif found := re.fullmatch(r'([a-z0-9]+)-([0-9]{1,6})', text):
    names = {table.accelerator or name: name for name, table in GENERATIONS.items()}
    name = names.get(found[1], found[1])
    table = _known(name, text)
    made = _shape(name, int(found[2]) // table.cores) if int(found[2]) % table.cores == 0 else None
    if made is None:
      raise UserError(
        f'--tpu={text} is no slice that there is; {_sizes(name)} Its shape may be given instead: '
        f'{name}:{"x".join("4" * table.dims)}'
      )
    shape = made
  else:
    raise UserError(f'--tpu={text!r} is no TPU slice; want for instance {_EXAMPLES}')
  _check(name, shape, text)
  return Slice(name, shape, _per_host(name, shape, per_host))


def _known(name: str, text: str) -> Generation:
  if name not in GENERATIONS:
    raise UserError(f'--tpu={text}: {name!r} is no generation of TPUs.{nearest(name, GENERATIONS)}')
  return GENERATIONS[name]


def _check(name: str, shape: tuple[int, ...], text: str) -> None:
  table = GENERATIONS[name]
  chips = math.prod(shape)
  if len(shape) != table.dims:
    raise UserError(
      f'--tpu={text}: a slice of {name} has {table.dims} sides, such as {"x".join("4" * table.dims)}'
    )
  if table.dims == 2:
    fits = shape in _FLAT
  else:
    cubes = all(side and side % 4 == 0 for side in shape) and tuple(sorted(shape)) == shape
    fits = (shape in _SMALL or cubes) and chips <= table.most_chips
  if not fits or not any(chips % count == 0 for count in table.machines):
    raise UserError(f'--tpu={text}: {name} has no slice of that shape. {_sizes(name)}')


def _sizes(name: str) -> str:
  table = GENERATIONS[name]
  if table.dims == 2:
    return f'Those of {name}: ' + ', '.join('x'.join(map(str, shape)) for shape in _FLAT) + '.'
  small = ', '.join('x'.join(map(str, shape)) for shape in _SMALL if math.prod(shape) >= min(table.machines))
  return (
    f'Those of {name}: {small}, then sides that are multiples of 4, the shortest first (4x4x8), up to '
    f'{table.most_chips} chips.'
  )


def _shape(name: str, chips: int) -> tuple[int, ...] | None:
  """The shape that the Cloud TPU API gives to so many chips: the one nearest to a cube."""
  table = GENERATIONS[name]
  if table.dims == 2:
    return next((shape for shape in _FLAT if math.prod(shape) == chips), None)
  small = next((shape for shape in _SMALL if math.prod(shape) == chips and chips >= min(table.machines)), None)
  if small or chips % 64 or chips > table.most_chips:
    return small
  cubes = chips // 64
  sides = [
    (a, b, cubes // (a * b))
    for a in range(1, round(cubes ** (1 / 3)) + 1)
    if cubes % a == 0
    for b in range(a, math.isqrt(cubes // a) + 1)
    if cubes // a % b == 0
  ]
  a, b, c = max(sides)
  return 4 * a, 4 * b, 4 * c


def _per_host(name: str, shape: tuple[int, ...], wanted: int | None) -> int:
  """All chips on one machine where one can hold them, else 4."""
  machines, chips = GENERATIONS[name].machines, math.prod(shape)
  usual = chips if chips in machines else 4
  if wanted is None:
    return usual
  if wanted not in machines or chips % wanted or (wanted != 4 and wanted != chips):
    choices = sorted({usual, 4} if chips % 4 == 0 else {usual})
    raise UserError(
      f'--chips_per_host={wanted}: the machines of a slice of {name} with {chips} chips have '
      f'{" or ".join(map(str, choices))}'
    )
  return wanted
