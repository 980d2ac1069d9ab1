"""A /proc, /dev, /sys of the test's own making."""

import tempfile
from pathlib import Path

import pytest

from llamax.launch.checkup.tree import Tree


@pytest.fixture
def tree(tmp_path):
  """({path: text, or ('link', target)}) -> Tree with these files."""

  def make(files=()):
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    for path, content in dict(files).items():
      place = root / path.lstrip('/')
      place.parent.mkdir(parents=True, exist_ok=True)
      if isinstance(content, tuple):
        place.symlink_to(content[1])
      else:
        place.write_text(content)
    return Tree(root)

  return make


def pci(index, vendor, device, kind='0x088000'):
  folder = f'/sys/bus/pci/devices/0000:00:{index:02x}.0'
  return {f'{folder}/vendor': vendor + '\n', f'{folder}/device': device + '\n', f'{folder}/class': kind + '\n'}
