"""Names of TPU slices, their devices, what stands in the environment meanwhile."""

import importlib.util
import os

import pytest

from llamax.core.errors import UserError
from llamax.plan import topology
from llamax.plan.topology import EXAMPLES, GENERATIONS, num_chips, topology_devices

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='no libtpu here: pip install llamax[tpu]'
)


@pytest.mark.parametrize(
  ('name', 'chips'),
  [
    ('v5e:2x4', 8),
    ('v5e:16x16', 256),
    ('v5p:4x4x4', 64),
    ('v4:4x4x8', 128),
    ('v6e:8x8', 64),
    ('tpu7x:4x4x4', 64),
  ],
)
def test_chips_are_the_product_of_the_shape(name, chips):
  assert num_chips(name) == chips


@pytest.mark.parametrize(
  ('name', 'says'),
  [
    ('v5e', 'v5e:16x16'),
    ('16x16', 'GENERATION:SHAPE'),
    ('v5e:16x16:2', 'GENERATION:SHAPE'),
    ('v5f:4x4', "Did you mean 'v5"),
    ('v5e:2x2x2', '2 sides'),
    ('v5p:8x8', '3 sides'),
    ('v5e:32x32', 'at most 256 chips'),
    ('v5e:0x4', '0 chips'),
  ],
)
def test_other_names_are_refused_with_examples(name, says):
  with pytest.raises(UserError, match=says):
    num_chips(name)


def test_examples_are_of_every_generation():
  assert {example.partition(':')[0] for example in EXAMPLES} == set(GENERATIONS)
  for example in EXAMPLES:
    num_chips(example)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r'pip install llamax\[tpu\]'):
    topology_devices('v5e:2x4')


@needs_libtpu
@pytest.mark.parametrize(
  ('name', 'devices', 'kind'), [('v5e:2x4', 8, 'TPU v5 lite'), ('v4:2x2x1', 8, 'TPU v4')]
)
def test_devices(name, devices, kind):
  before = dict(os.environ)
  found = topology_devices(name)
  assert (len(found), found[0].platform, found[0].device_kind) == (devices, 'tpu', kind)
  assert dict(os.environ) == before


@needs_libtpu
def test_a_shape_that_no_machine_has_is_the_users_error():
  with pytest.raises(UserError, match=r'v5e:3x3 .*refuses.*v5e:16x16'):
    topology_devices('v5e:3x3')


def test_warnings_are_read_from_the_log_of_this_process(tmp_path, monkeypatch):
  monkeypatch.setattr(topology, '_log_folder', lambda: tmp_path)
  assert topology.compiler_warnings() is None
  (tmp_path / 'tpu_driver.host.user.log.INFO.1.2').write_text('I all\nW is well\n')
  assert topology.compiler_warnings() == ''
  (tmp_path / 'tpu_driver.host.user.log.WARNING.1.2').write_text('W is well\n')
  assert topology.compiler_warnings() == 'W is well\n'
