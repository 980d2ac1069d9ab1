"""torch.save'd tensors are read as torch reads them; what is no plain tensor is refused."""

import io
import threading
import zipfile

import numpy as np
import pytest

from llamax.convert.errors import FormatError
from llamax.convert.pth import open_pth
from llamax.core.errors import UserError

torch = pytest.importorskip('torch')

DTYPES = [
  torch.float32,
  torch.float16,
  torch.bfloat16,
  torch.float64,
  torch.int64,
  torch.int32,
  torch.int16,
  torch.int8,
  torch.uint8,
  torch.bool,
]


def bits(tensor):
  return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else bits(tensor[None])


def save(path, value, **options):
  torch.save(value, path, **options)
  return path


def numbers(*shape):
  return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def views():
  """Of one storage, in many ways; strides, offsets, dims of size 1, of none, of no dims."""
  base = numbers(6, 5, 7)
  wide = numbers(40, 3000)
  return {
    'whole': base,
    'transposed': base.transpose(0, 2),
    'permuted': base.permute(1, 2, 0),
    'part': base[2:4, 1:, 3],
    'every third': base[::3, :, ::2],
    'row': base[3],
    'one': base[1:2, 2:3, 4:5],
    'scalar': base[1, 2, 3],
    'none': base[:0],
    'apart': wide[:, ::1000],
    'columns': wide[:, 17:20],
    'wide, transposed': wide.t(),
    'parameter': torch.nn.Parameter(numbers(3, 2)),
    'diagonal': numbers(9, 9).diagonal(),
  }


def same(entries, tensors):
  assert list(entries) == list(tensors)
  for name, tensor in tensors.items():
    entry = entries[name]
    assert entry.shape == tuple(tensor.shape)
    rows = tensor.shape[0] if tensor.ndim else 1
    array = entry.read(0, rows)
    assert array.flags.c_contiguous and array.dtype == entry.dtype and array.shape == entry.shape
    assert array.tobytes() == bits(tensor), name
    if tensor.ndim and rows > 1:
      assert entry.read(1, rows).tobytes() == bits(tensor[1:])
      assert entry.read(rows // 2, rows // 2).tobytes() == b''


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_every_dtype(tmp_path, dtype):
  tensors = {'a': (numbers(3, 4) * 100).to(dtype), 'b': torch.arange(5).to(dtype)}
  entries = open_pth(save(tmp_path / 'x.pth', tensors))
  same(entries, tensors)
  wanted = 'bfloat16' if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype.name
  assert entries['a'].dtype.name == wanted


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_views_of_one_storage(tmp_path, protocol):
  tensors = views()
  same(open_pth(save(tmp_path / 'x.pth', tensors, pickle_protocol=protocol)), tensors)


def test_a_state_dict_of_modules(tmp_path):
  tensors = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict()
  same(open_pth(save(tmp_path / 'x.pth', tensors)), tensors)


def test_dicts_in_dicts(tmp_path):
  path = save(tmp_path / 'x.pth', {'model': {'a': {'w': numbers(2)}, 'b': numbers(3)}})
  assert list(open_pth(path)) == ['model.a.w', 'model.b']


def test_tied_tensors_lie_at_one_place(tmp_path):
  shared = numbers(4, 3)
  entries = open_pth(save(tmp_path / 'x.pth', {'a': shared, 'b': shared}))
  assert entries['a'].at == entries['b'].at


def test_a_strided_tensor_is_read_in_parts_that_are_bounded(tmp_path, monkeypatch):
  """Rows of a transposed matrix lie apart: neither the whole storage at a time, nor a number at a time."""
  from llamax.convert import pth, source

  monkeypatch.setattr(pth, '_SPAN_BYTES', 1 << 12)
  monkeypatch.setattr(pth, '_GAP_BYTES', 1 << 8)
  reads = []
  array = source.File.array
  monkeypatch.setattr(
    source.File, 'array', lambda self, at, dtype, shape, field: (
      reads.append(int(np.prod(shape)) * dtype.itemsize), array(self, at, dtype, shape, field)
    )[1]
  )  # fmt: skip
  tensor = numbers(300, 500).t()
  entry = open_pth(save(tmp_path / 'x.pth', {'a': tensor}))['a']
  assert entry.read(100, 200).tobytes() == bits(tensor[100:200])
  assert max(reads) <= 1 << 12 and len(reads) <= 300 and sum(reads) <= 4 * 300 * 100 * 4


def test_threads_read_at_once(tmp_path):
  tensor = numbers(64, 1000)
  entry = open_pth(save(tmp_path / 'x.pth', {'a': tensor}))['a']
  found = [b''] * 64

  def read(row):
    found[row] = entry.read(row, row + 1).tobytes()

  threads = [threading.Thread(target=read, args=(row,)) for row in range(64)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert b''.join(found) == bits(tensor)


class Own(torch.nn.Module):
  pass


NO_STATE_DICTS = {
  'a list': (lambda: [numbers(2)], 'no dict of tensors but a list'),
  'a tensor alone': (lambda: numbers(2), 'no dict of tensors but a call of torch._utils._rebuild_tensor_v2'),
  'a number': (lambda: {'a': numbers(2), 'step': 3}, r'step: is no tensor but a int.*model.state_dict'),
  'a list inside': (lambda: {'a': [numbers(2)]}, 'a: is no tensor but a list'),
  'nothing': (lambda: {}, 'has no tensors'),
  'an integer key': (lambda: {3: numbers(2)}, '3: is no name'),
  'a NUL in the name': (lambda: {'a\0b': numbers(2)}, 'is no name'),
  'a long name': (lambda: {'a' * 2000: numbers(2)}, 'is no name'),
  'one name twice': (lambda: {'a.b': numbers(2), 'a': {'b': numbers(2)}}, 'a.b: is there twice'),
  'an expanded tensor': (lambda: {'a': numbers(2).expand(3, 2)}, 'use numbers of the storage twice'),
  'overlapping rows': (lambda: {'a': numbers(9).unfold(0, 5, 1)}, 'use numbers of the storage twice'),
  'a type that numpy lacks': (lambda: {'a': numbers(2).to(torch.float8_e4m3fn)}, '_rebuild_tensor_v3'),
  'a complex tensor': (lambda: {'a': torch.view_as_complex(numbers(3, 2))}, 'torch.ComplexFloatStorage'),
  'a module': (lambda: {'a': torch.nn.Linear(2, 3)}, 'torch.nn.modules.linear.Linear'),
  'nine dims': (lambda: {'a': numbers(2).view([1] * 8 + [2])}, 'are no sizes'),
}


@pytest.mark.parametrize('case', NO_STATE_DICTS)
def test_what_is_no_state_dict(tmp_path, case):
  make, words = NO_STATE_DICTS[case]
  with pytest.raises(FormatError, match=words):
    open_pth(save(tmp_path / 'x.pth', make()))


def test_a_dict_in_itself(tmp_path):
  value = {'a': numbers(2)}
  value['b'] = value
  with pytest.raises(FormatError, match='contains itself'):
    open_pth(save(tmp_path / 'x.pth', value))


def test_files_of_old_torch_say_how_to_save_them_again(tmp_path):
  path = save(tmp_path / 'x.pth', {'a': numbers(2)}, _use_new_zipfile_serialization=False)
  with pytest.raises(UserError, match=r'before 1\.6.*torch\.save\(torch\.load\(OLD'):
    open_pth(path)


def test_other_files(tmp_path):
  path = tmp_path / 'x.pth'
  for content, words in ((b'', 'torch.save did not write it'), (b'{"a": 1}', 'torch.save did not write it')):
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words):
      open_pth(path)
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('word/document.xml', b'<a/>')
  with pytest.raises(FormatError, match=r'data\.pkl: is there 0 times'):
    open_pth(path)


def again(raw, **changes):
  """A saved file with other records (None: without it)."""
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, 'w') as new:
    contents = {name.split('/', 1)[1]: old.read(name) for name in old.namelist()} | changes
    for name, content in contents.items():
      if content is not None:
        new.writestr(f'x/{name}', content)
  return out.getvalue()


RECORDS = {
  'big endian': ({'byteorder': b'big'}, 'byteorder: is not little'),
  'TorchScript': ({'constants.pkl': b'x'}, 'TorchScript'),
  'no storage': ({'data/0': None}, 'a: its storage data/0 is missing'),
  'a short storage': ({'data/0': b'x' * 23}, 'a: data/0 has 23 bytes, which are not 6 float32'),
  'a long storage': ({'data/0': b'x' * 25}, 'a: data/0 has 25 bytes'),
}


@pytest.mark.parametrize('case', RECORDS)
def test_records_that_are_wrong(tmp_path, case):
  changes, words = RECORDS[case]
  path = save(tmp_path / 'x.pth', {'a': numbers(2, 3)})
  raw = path.read_bytes()
  path.write_bytes(again(raw))
  assert open_pth(path)['a'].shape == (2, 3)
  path.write_bytes(again(raw, **changes))
  with pytest.raises(FormatError, match=words):
    open_pth(path)
