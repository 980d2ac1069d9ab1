"""What is an accelerator, what only comes from the same maker."""

import pytest

from llamax.launch.checkup.hardware import hardware
from tests.launch.checkup.conftest import pci

V5E = {**pci(1, '0x1ae0', '0x0063'), **pci(2, '0x1ae0', '0x0063')}
VFIO = {'/dev/vfio/0': '', '/dev/vfio/10': '', '/dev/vfio/vfio': ''}
NVIDIA = {'/dev/nvidia0': '', '/dev/nvidiactl': '', '/dev/nvidia-uvm': ''}
H100 = pci(1, '0x10de', '0x2330', '0x030200')


@pytest.mark.parametrize(
  ('files', 'kind', 'chips', 'name', 'nodes'),
  [
    ({}, None, 0, '', ()),
    # The network card, the disk of every machine of Google's.
    ({**pci(1, '0x1ae0', '0x0042', '0x020000'), **pci(2, '0x1ae0', '0x001f', '0x010802')}, None, 0, '', ()),
    ({**V5E, '/dev/accel0': '', '/dev/accel1': ''}, 'tpu', 2, 'v5e', ('/dev/accel0', '/dev/accel1')),
    ({**V5E, **VFIO}, 'tpu', 2, 'v5e', ('/dev/vfio/0', '/dev/vfio/10')),
    ({'/dev/vfio/0': ''}, 'tpu', 0, '', ('/dev/vfio/0',)),  # a container that hides the bus
    ({**H100, **NVIDIA}, 'gpu', 1, '', ('/dev/nvidia0',)),
    ({**H100, '/dev/vfio/0': ''}, 'gpu', 1, '', ()),  # handed through to a guest
    (H100, 'gpu', 1, '', ()),  # no driver
    (pci(1, '0x10de', '0x22a3', '0x068000'), None, 0, '', ()),  # an NVSwitch
  ],
)  # fmt: skip
def test_is_what_bus_and_device_files_show(tree, files, kind, chips, name, nodes):
  found = hardware(tree(files))
  assert (found.kind, found.chips, found.name, found.nodes) == (kind, chips, name, nodes)


def test_says_it_in_words(tree):
  fake = tree({**V5E, '/dev/accel0': '', '/dev/accel1': ''})
  assert str(hardware(fake)) == '2 TPU v5e (/dev/accel0, /dev/accel1)'
  assert str(hardware(tree())) == 'no TPU, no GPU'
