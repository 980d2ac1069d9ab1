"""Hostile .pth files: refused by name, nothing of them runs, in bounded time and memory."""

import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from llamax.convert.pth_write import PthFile, PthLayout
from llamax.convert.target import Wanted

READER = Path(__file__).with_name('hostile_reader.py')
BATCH = 10_000  # mutants that one process reads
MUTANTS = {'quick': 2_000, 'ci': 20_000, 'soak': 100_000}


def run(kind, folder, *args):
  done = subprocess.run(
    [sys.executable, READER, kind, folder, *map(str, args)],
    capture_output=True,
    text=True,
    timeout=280,
    env=os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])},
    cwd=folder.parent,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  assert found['slowest'] < 5 and found['peak'] < 1 << 30
  return found['said']


class Global:
  """What a pickle names."""

  def __init__(self, path):
    self.module, self.name = path.rsplit('.', 1) if isinstance(path, str) else path

  @property
  def code(self):
    return f'c{self.module}\n{self.name}\n'.encode()


class Raw(bytes):
  """Opcodes that leave one value."""


def code(value):
  """Opcodes (protocol 2) for a value; bytes in place of a value are taken as they are."""
  if isinstance(value, Raw):
    return value
  if isinstance(value, Global):
    return value.code
  if isinstance(value, tuple):
    return b'(' + b''.join(map(code, value)) + b't'
  if isinstance(value, dict):
    return b'}(' + b''.join(code(key) + code(item) for key, item in value.items()) + b'u'
  return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def call(function, *args):
  return Raw(code(function if isinstance(function, Raw) else Global(function)) + code(args) + b'R')


ORDERED = call('collections.OrderedDict')


def tensor(storage=None, offset=0, shape=(2, 3), strides=(3, 1), grad=False, hooks=ORDERED, *more):
  return call(
    'torch._utils._rebuild_tensor_v2', place() if storage is None else storage, offset, shape, strides, grad,
    hooks, *more,
  )  # fmt: skip


def place(word='storage', kind='torch.FloatStorage', key='0', device='cpu', count=6, *more):
  kind = Global(kind) if isinstance(kind, str) or type(kind) is tuple else kind
  return Raw(code((word, kind, key, device, count, *more)) + b'Q')


def pth(value, storages=None, protocol=2):
  """A file as torch.save makes it, around any pickle."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as file:
    file.writestr('x/data.pkl', bytes([0x80, protocol]) + code(value) + b'.')
    file.writestr('x/byteorder', b'little')
    for key, content in (storages or {'0': bytes(24)}).items():
      file.writestr(f'x/data/{key}', content)
  return out.getvalue()


_DANGEROUS = {
  'os': 'system remove execv',
  'posix': 'system',
  'nt': 'system',
  'builtins': 'eval exec compile __import__ getattr open print',
  '__builtin__': 'eval',
  'subprocess': 'Popen check_output call',
  'runpy': '_run_code run_path',
  'importlib': 'import_module',
  'socket': 'create_connection',
  'ctypes': 'CDLL',
  'pickle': 'loads',
  '_pickle': 'loads',
  'marshal': 'loads',
  'types': 'FunctionType CodeType',
  'functools': 'partial reduce',
  'operator': 'attrgetter methodcaller',
  'webbrowser': 'open',
  'pty': 'spawn',
  'timeit': 'timeit',
  'pdb': 'run',
  'shutil': 'rmtree',
  'tempfile': 'mktemp',
  'multiprocessing': 'Process',
  'codecs': 'decode',
  '_codecs': 'encode',
  'copyreg': '_reconstructor __newobj__',
  'numpy': 'load',
  'numpy.core.multiarray': '_reconstruct',
  'torch': 'load Tensor FloatStorage.from_file _utils.os.system',
  'torch.hub': 'load',
  'torch.jit': 'load',
  'torch.storage': '_load_from_bytes',
  'torch._utils': '_rebuild_wrapper_subclass os.system _rebuild_tensor_v2.__globals__',
  'collections': 'namedtuple OrderedDict.__init__',
}
FUNCTIONS = [(module, name) for module, names in _DANGEROUS.items() for name in names.split()]

# How a pickle may come to run a function. The argument would leave a file behind, if any of them did.
WAYS = {
  'REDUCE': lambda f, arg: call(f, arg),
  'STACK_GLOBAL': lambda f, arg: Raw(
    code(Global(f).module) + code(Global(f).name) + b'\x93' + code((arg,)) + b'R'
  ),
  'INST': lambda f, arg: Raw(b'(' + code(arg) + b'i' + Global(f).code[1:]),
  'OBJ': lambda f, arg: Raw(b'(' + Global(f).code + code(arg) + b'o'),
  'NEWOBJ': lambda f, arg: Raw(Global(f).code + code((arg,)) + b'\x81'),
  'NEWOBJ_EX': lambda f, arg: Raw(Global(f).code + code((arg,)) + code({}) + b'\x92'),
  'BUILD': lambda f, arg: Raw(call(f, arg) + code({'__setstate__': Global(f)}) + b'b'),
  'BUILD of a dict': lambda f, arg: Raw(ORDERED + code({'__class__': Global(f)}) + b'b'),
  'BUILD of metadata': lambda f, arg: Raw(ORDERED + code({'_metadata': call(f, arg)}) + b'b'),
  'hooks': lambda f, arg: tensor(hooks=call(f, arg)),
  'hooks, a function': lambda f, arg: tensor(hooks=Global(f)),
  'more arguments': lambda f, arg: tensor(None, 0, (2, 3), (3, 1), False, ORDERED, call(f, arg)),
  'a storage type': lambda f, arg: tensor(place(kind=f)),
  'a storage type, called': lambda f, arg: tensor(place(kind=call(f, arg))),
  'a persistent id': lambda f, arg: Raw(call(f, arg) + b'Q'),
  'a parameter': lambda f, arg: call('torch._utils._rebuild_parameter', call(f, arg), True, ORDERED),
  'a call of a call': lambda f, arg: call(call(f, arg), arg),
}

LIES = {
  'shape': {
    'shape': [
      (2, -3), (1 << 47, 3), (1 << 63, 1), (1 << 40, 1 << 40), (True, 3), (2.0, 3), (None, 3), [2, 3], 6, 'ab',
      (2, 3, 1), (2,), (3, 3), (2, 3, 0), (0, 1 << 62), ((2,), 3), (6, 6), (1 << 31, 1 << 31),
    ],
  },
  'strides': {
    'strides': [
      (3, -1), (0, 1), (1, 1), (2, 1), (3, 1 << 47), (1 << 62, 1), (4, 1), (3, 2), (True, 1), (3.0, 1), None,
      [3, 1], (3,), (3, 1, 1), ((3,), 1), (1 << 64, 1),
    ],
  },
  'offset': {'offset': [-1, 1, 6, 7, 1 << 40, 1 << 63, True, 1.0, None, '0', (0,)]},
  'storage': {
    'storage': [
      None, 0, 'storage', ('storage',), Raw(b'NQ'), Raw(b'(tQ'), place('Storage'), place(key=0), place(key=''),
      place(key='1'), place(key='../data.pkl'), place(key='0\0'), place(key='/etc/passwd'), place(count=5),
      place(count=7), place(count=-6), place(count=True), place(count=1 << 61), place(count=6.0),
      place('storage', 'torch.FloatStorage', '0', 'cpu', 6, None), place(kind='torch.storage.UntypedStorage'),
      place(kind='torch.FloatTensor'), place(kind='torch.DoubleStorage'), place(kind='torch.HalfStorage'),
      place(kind=None), place(kind=Raw(code('x'))),
    ],
  },
}  # fmt: skip


def lies():
  for name, variants in LIES.items():
    for argument, values in variants.items():
      for index, value in enumerate(values):
        # A tensor of no storage at all is spelled apart: None stands for the right one.
        value = Raw(b'N') if argument == 'storage' and value is None else value
        yield f'{name} {index}', pth({'w': tensor(**{argument: value})})
  yield 'two dtypes of one storage', pth({'a': tensor(), 'b': tensor(place(kind='torch.IntStorage'))})
  yield 'many empty ones', pth({'w': tensor(shape=(1 << 46, 0, 1 << 46), strides=(1, 1, 1))})
  yield 'no arguments', pth({'w': call('torch._utils._rebuild_tensor_v2')})
  yield 'a tensor in a tensor', pth({'w': tensor(tensor())})
  yield 'a dict in itself', pth(Raw(b'}q\0X\1\0\0\0ah\0s'))
  yield 'a wide nest', pth(Raw(b'}q\0' + b'}(' + b''.join(code(str(i)) + b'h\0' for i in range(999)) + b'u'))
  nest = b''.join(
    b'q%c' % i + b'}(' + b''.join(code(str(j)) + b'h%c' % i for j in range(99)) + b'u' for i in range(9)
  )
  yield 'a nest of nests', pth(Raw(code({'w': tensor()}) + nest))
  yield 'tuples without end', pth({'w': tensor(shape=Raw(b')' + b'q\0h\0\x86' * 500))})
  yield 'a million lists', pth(Raw(b'(' + b']' * 1_000_000 + b't'))
  yield 'deep lists', pth(Raw(b']' * 500_000 + b'a' * 499_999))
  yield 'a pickle too large', pth(Raw(b']' * 2_000_000))


def zips():
  good = pth({'w': tensor()})
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as file:
    file.writestr('x/data.pkl', b'\x80\2' + code({'w': tensor()}) + b'.')
    file.writestr('x/data/0', bytes(100_000_000))
  yield 'a bomb', out.getvalue()
  lied = bytearray(good)
  at = lied.rindex(b'PK\1\2')
  lied[at + 20 : at + 28] = struct.pack('<2L', 1 << 31, 1 << 31)
  yield 'a size beyond the file', bytes(lied)
  lied = bytearray(good)
  lied[at + 42 : at + 46] = bytes(4)
  yield 'an entry at the place of another', bytes(lied)
  yield 'pickles stacked', good + pickle.dumps(1)
  yield 'cut off', good[:-30]
  yield 'a pickle alone', pickle.dumps({'w': 1})
  yield 'protocol 0', pickle.dumps({'w': 1}, 0)
  yield 'a gzip of it', zlib.compress(good)
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as file:
    for index in range(20_000):
      file.writestr(zipfile.ZipInfo(f'x/data/{index}'), b'')
  yield 'many entries', out.getvalue()


def test_nothing_of_a_hostile_file_runs(tmp_path):
  folder, canary = tmp_path / 'files', tmp_path / 'canary'
  folder.mkdir()
  argument = f'touch {canary}'
  files = {
    f'{way}: {function[0]}.{function[1]}': pth({'w': make(function, argument)})
    for way, make in WAYS.items()
    for function in FUNCTIONS
  } | dict([*lies(), *zips()])
  assert len(files) > 1000
  # The same pickles, whole or as an argument, are in order when they hold nothing but tensors.
  fine = {
    'good': pth({'w': tensor()}),
    'good, a parameter': pth({'w': call('torch._utils._rebuild_parameter', tensor(), True, ORDERED)}),
    'good, with metadata': pth(Raw(ORDERED + code('w') + tensor() + b's' + code({'_metadata': {}}) + b'b')),
  }
  names = {}
  for index, (name, content) in enumerate({**files, **fine}.items()):
    names[f'{index:05d}'] = name
    (folder / f'{index:05d}').write_bytes(content)
  said = {names[index]: text for index, text in run('pth', folder).items()}
  assert {name: text for name, text in said.items() if name in fine} == dict.fromkeys(fine, 'ok')
  wrong = {name: text for name, text in said.items() if name not in fine and not text.startswith('UserError ')}
  assert not wrong
  assert not canary.exists()


def test_the_hook_would_see_it(tmp_path):
  """That the files are hostile indeed: Python's own unpickler runs what they name."""
  canary = tmp_path / 'canary'
  raw = pth({'w': WAYS['REDUCE']('os.system', f'touch {canary}')})
  with zipfile.ZipFile(io.BytesIO(raw)) as file:
    pickle.loads(file.read('x/data.pkl'))
  assert canary.exists()


def test_mutants(tmp_path, request):
  """Any damage is refused, or leaves a file that is in order."""
  folder = tmp_path / 'files'
  arrays = {'a.w': np.arange(12, dtype=np.float32).reshape(4, 3), 'b': np.arange(5, dtype=np.float16)}
  layout = PthLayout('ours', [Wanted(name, array.shape, array.dtype) for name, array in arrays.items()])
  file = PthFile(folder / 'ours.pth', layout)
  for name, array in arrays.items():
    file.write(name, 0, array)
  file.finish()
  (folder / 'small.pth').write_bytes(pth({'a': tensor(), 'b': tensor(offset=1, shape=(2,), strides=(2,))}))
  survive('pth', folder, request)


def survive(kind, folder, request):
  count, fine = MUTANTS[request.config.getoption('--scale')], 0
  for seed, done in enumerate(range(0, count, BATCH)):
    said = run(kind, folder, min(BATCH, count - done), seed)
    bad = {name: text for name, text in said.items() if text != 'ok' and not text.startswith('UserError ')}
    assert not bad
    fine += sum(text == 'ok' for text in said.values())
  assert 0.02 < fine / count < 0.8


def test_mutants_of_a_folder_of_meta(tmp_path, request):
  folder = tmp_path / 'files'
  folder.mkdir()
  params = {'dim': 12, 'n_layers': 1, 'n_heads': 3, 'vocab_size': 10, 'norm_eps': 1e-5, 'multiple_of': 16}
  shapes = {'tok_embeddings': (10, 6), 'output': (5, 12), 'norm': (12,), 'rope.freqs': (2,)}
  layer = {'attention.wo': (12, 6), 'feed_forward.w2': (12, 16), 'attention_norm': (12,), 'ffn_norm': (12,)}
  layer |= {f'attention.{name}': (6, 12) for name in ('wq', 'wk', 'wv')}
  layer |= {f'feed_forward.{name}': (16, 12) for name in ('w1', 'w3')}
  shapes |= {f'layers.0.{name}': shape for name, shape in layer.items()}
  tensors = [
    Wanted(name if name == 'rope.freqs' else f'{name}.weight', shape, np.dtype(np.float32))
    for name, shape in shapes.items()
  ]
  for index in range(2):
    file = PthFile(folder / f'consolidated.0{index}.pth', PthLayout(f'consolidated.0{index}', tensors))
    for tensor in tensors:
      table = np.array([1, 0.01], np.float32)
      file.write(tensor.name, 0, table if tensor.name == 'rope.freqs' else np.ones(tensor.shape, np.float32))
    file.finish()
  (folder / 'params.json').write_text(json.dumps(params))
  (folder / 'llamax.json').write_text('{"max_seq_len": 64, "tie_embeddings": false}')
  survive('meta', folder, request)
