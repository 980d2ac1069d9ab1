"""torch loads what we write, with no warning, mapped or not."""

import subprocess
import zipfile

import ml_dtypes
import numpy as np
import pytest

from llamax.convert.pth import open_pth
from llamax.convert.pth_write import PthFile, PthLayout
from llamax.convert.target import Wanted

RNG = np.random.default_rng(0)
ARRAYS = {
  'layers.0.w': RNG.standard_normal((300, 11)).astype(ml_dtypes.bfloat16),
  'norm': RNG.standard_normal(7).astype(np.float32),
  'ü': RNG.standard_normal((2, 3, 5)).astype(np.float16),
}


def wanted(arrays=ARRAYS):
  return [Wanted(name, array.shape, array.dtype) for name, array in arrays.items()]


def write(path, order, arrays=ARRAYS):
  file = PthFile(path, PthLayout(path.stem, wanted(arrays)))
  for name, start, stop in order:
    array = arrays[name]
    file.write(name, start * array[0].nbytes, np.ascontiguousarray(array[start:stop]))
  return file


ORDER = [
  ('ü', 0, 2),
  ('layers.0.w', 200, 300),
  ('norm', 0, 7),
  ('layers.0.w', 0, 120),
  ('layers.0.w', 120, 200),
]


@pytest.fixture
def written(tmp_path):
  path = tmp_path / 'consolidated.00.pth'
  write(path, ORDER).finish()
  return path


@pytest.mark.parametrize('mmap', [False, True])
def test_torch_loads_it(written, mmap):
  torch = pytest.importorskip('torch')
  tensors = torch.load(written, weights_only=True, mmap=mmap)
  assert type(tensors) is dict and list(tensors) == list(ARRAYS)
  for name, array in ARRAYS.items():
    tensor = tensors[name]
    assert tuple(tensor.shape) == array.shape and str(tensor.dtype) == f'torch.{array.dtype.name}'
    assert tensor.is_contiguous() and not tensor.requires_grad
    assert tensor.view(torch.uint8).numpy().tobytes() == array.tobytes()


def test_torch_finds_the_places_that_it_calculates(written, monkeypatch):
  """It can compute where each storage lies, as its own writer would have put it."""
  torch = pytest.importorskip('torch')
  from torch.utils.serialization import config

  monkeypatch.setenv('TORCH_SERIALIZATION_DEBUG', '1')
  with config.patch('load.calculate_storage_offsets', True):
    assert len(torch.load(written, weights_only=True, mmap=True)) == len(ARRAYS)


def test_checksums_are_right(written):
  with zipfile.ZipFile(written) as file:
    assert file.testzip() is None
    assert file.namelist()[0] == 'consolidated.00/data.pkl'


def test_unzip_finds_no_fault(written):
  import shutil

  if not shutil.which('unzip'):
    pytest.skip('needs unzip')
  subprocess.run(['unzip', '-tq', written], check=True, capture_output=True)


def test_our_reader_reads_it(written):
  entries = open_pth(written)
  assert {name: entry.read(0, len(ARRAYS[name])).tobytes() for name, entry in entries.items()} == {
    name: array.tobytes() for name, array in ARRAYS.items()
  }


def test_the_bytes_do_not_depend_on_the_order(written, tmp_path):
  other = tmp_path / 'other' / 'consolidated.00.pth'
  write(other, ORDER[::-1]).finish()
  assert other.read_bytes() == written.read_bytes()


def test_a_file_that_was_left_is_gone_on_with(written, tmp_path):
  """What an earlier process wrote is read again for its checksum."""
  other = tmp_path / 'other' / 'consolidated.00.pth'
  write(other, ORDER[:3]).sync()
  write(other, ORDER[3:]).finish()
  assert other.read_bytes() == written.read_bytes()


def test_tensors_over_4_gigabytes(tmp_path):
  """A hole on the disk; only its ends are looked at."""
  torch = pytest.importorskip('torch')
  path = tmp_path / 'large.pth'
  large = {'before': np.arange(5, dtype=np.float32), 'after': np.arange(6, dtype=np.float32)}
  tensors = wanted(large)
  tensors.insert(1, Wanted('large', (2**31 + 3, 1), np.dtype(ml_dtypes.bfloat16)))
  layout = PthLayout('large', tensors)
  file = PthFile(path, layout)
  for name, array in large.items():
    file.write(name, 0, array)
  file.write('large', 2**32 + 4, np.ones(1, ml_dtypes.bfloat16))
  file._read_crc = lambda record: 0  # It would read the hole.
  file.finish()
  assert open_pth(path)['large'].read(2**31 + 1, 2**31 + 3).tolist() == [[0], [1]]
  loaded = torch.load(path, weights_only=True, mmap=True)
  assert loaded['after'].tolist() == large['after'].tolist()
  assert loaded['large'].shape == (2**31 + 3, 1) and loaded['large'][-2:, 0].tolist() == [0, 1]
