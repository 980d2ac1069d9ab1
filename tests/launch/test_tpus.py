"""Names, shapes, machines of TPU slices."""

import math

import pytest

from llamax.core.errors import UserError
from llamax.launch import tpus
from llamax.plan import topology


@pytest.mark.parametrize(
  ('text', 'shape', 'chips', 'hosts', 'accelerator', 'machine'),
  [
    # Published sizes: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e.
    ('v4-8', '2x2x1', 4, 1, 'v4-8', 'ct4p-hightpu-4t'),
    ('v4-32', '2x2x4', 16, 4, 'v4-32', 'ct4p-hightpu-4t'),
    ('v4-512', '4x8x8', 256, 64, 'v4-512', 'ct4p-hightpu-4t'),
    ('v5litepod-1', '1x1', 1, 1, 'v5litepod-1', 'ct5lp-hightpu-1t'),
    ('v5litepod-8', '2x4', 8, 1, 'v5litepod-8', 'ct5lp-hightpu-8t'),
    ('v5litepod-16', '4x4', 16, 4, 'v5litepod-16', 'ct5lp-hightpu-4t'),
    ('v5e-16', '4x4', 16, 4, 'v5litepod-16', 'ct5lp-hightpu-4t'),
    ('v5e:16x16', '16x16', 256, 64, 'v5litepod-256', 'ct5lp-hightpu-4t'),
    ('v5p-8', '2x2x1', 4, 1, 'v5p-8', 'ct5p-hightpu-4t'),
    ('v5p-64', '2x4x4', 32, 8, 'v5p-64', 'ct5p-hightpu-4t'),
    ('v5p:4x4x4', '4x4x4', 64, 16, 'v5p-128', 'ct5p-hightpu-4t'),
    ('v5p-2048', '8x8x16', 1024, 256, 'v5p-2048', 'ct5p-hightpu-4t'),
    ('v5p-12288', '16x16x24', 6144, 1536, 'v5p-12288', 'ct5p-hightpu-4t'),
    ('v6e-4', '2x2', 4, 1, 'v6e-4', 'ct6e-standard-4t'),
    ('v6e-256', '16x16', 256, 64, 'v6e-256', 'ct6e-standard-4t'),
  ],
)
def test_a_slice_by_its_name(text, shape, chips, hosts, accelerator, machine):
  found = tpus.parse(text)
  assert (found.topology, found.chips, found.hosts) == (shape, chips, hosts)
  assert (found.accelerator, found.machine) == (accelerator, machine)


def test_newer_chips_are_gkes():
  ironwood = tpus.parse('tpu7x:4x4x8')
  assert (ironwood.chips, ironwood.hosts, ironwood.machine) == (128, 32, 'tpu7x-standard-4t')
  assert tpus.parse('tpu7x-256').topology == '4x4x8'
  with pytest.raises(UserError, match='served by GKE: llamax launch gke --tpu=tpu7x:4x4x8'):
    _ = ironwood.accelerator


def test_a_shape_of_its_own_is_gkes():
  with pytest.raises(UserError, match='256 chips come as 4x8x8'):
    _ = tpus.parse('v5p:4x4x16').accelerator


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('v5f-16', "Did you mean 'v5"),
    ('v5litepod-12', 'no slice that there is; Those of v5e: 1x1'),
    ('v5p-7', 'no slice'),
    ('v5p-96', 'v5p:4x4x4'),
    ('v5e:4x4x4', '2 sides'),
    ('v5p:4x4', '3 sides'),
    ('v5e:4x2', 'no slice of that shape'),
    ('v5p:8x4x4', 'the shortest first'),
    ('v5p:4x4x6', 'multiples of 4'),
    ('v5p:24x24x24', 'up to 8960 chips'),
    ('v5p:1x1x1', 'Those of v5p: 2x2x1'),
    ('v4:0x4x4', 'no slice of that shape'),
    ('v6e', 'v6e-256'),
    ('', 'for instance'),
    ("v6e-4'; rm", 'no TPU slice'),
  ],
)
def test_what_is_no_slice_is_refused(text, says):
  with pytest.raises(UserError, match=says):
    tpus.parse(text)


def test_eight_chips_on_one_machine_or_on_two():
  assert (tpus.parse('v6e-8').hosts, tpus.parse('v6e-8', 4).hosts) == (1, 2)
  assert tpus.parse('v6e-8', 4).machine == 'ct6e-standard-4t'
  with pytest.raises(UserError, match='with 16 chips have 4'):
    tpus.parse('v6e-16', 8)
  with pytest.raises(UserError, match='have 4'):
    tpus.parse('v5p-8', 1)


def test_the_compiler_knows_the_same_generations():
  ours = {name: (table.dims, table.most_chips) for name, table in tpus.GENERATIONS.items()}
  assert ours == {name: (kind.dims, kind.most_chips) for name, kind in topology.GENERATIONS.items()}
  for example in topology.EXAMPLES:
    assert tpus.parse(example).chips == topology.num_chips(example)


@pytest.mark.parametrize('name', ['v4', 'v5p', 'tpu7x'])
def test_every_count_has_the_shape_nearest_to_a_cube(name):
  table = tpus.GENERATIONS[name]
  for cubes in range(1, table.most_chips // 64 + 1):
    shape = tpus._shape(name, 64 * cubes)
    assert math.prod(shape) == 64 * cubes and sorted(shape) == list(shape)
    # No other one has a longer shortest side.
    sides = range(shape[0] // 4 + 1, round(cubes ** (1 / 3)) + 1)
    assert not any(
      cubes % a == 0 and any(cubes // a % b == 0 for b in range(a, math.isqrt(cubes // a) + 1)) for a in sides
    )
