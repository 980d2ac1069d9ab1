"""Every ordered pair of formats, there and back: the bits that went in come out.

`make test TESTS='tests/convert/test_pairs.py --scale=soak'` does it with a model of 15 million parameters.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

from llamax.cli.main import main
from llamax.convert.formats import FORMATS

from .conftest import read_weights, same, write_folder

# What every format can say: heads of hidden_size / num_heads, the constants of llama2.c.
TINY = {
  'hidden_size': 24,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': 4,
  'num_hidden_layers': 2,
}
LARGE = {
  'vocab_size': 32_000,
  'hidden_size': 288,
  'intermediate_size': 768,
  'num_hidden_layers': 6,
  'num_attention_heads': 6,
  'num_key_value_heads': 6,
  'head_dim': 48,
  'tie_word_embeddings': True,
}
ENDINGS = {'gguf': '.gguf', 'llama2c': '.bin', 'easylm': '.stream'}


@pytest.fixture(scope='module')
def starts(tmp_path_factory, request):
  """(format, dtype) -> a checkpoint in it, all of the same numbers; dtype -> those numbers."""
  sizes = LARGE if request.config.getoption('--scale') == 'soak' else TINY
  folder, paths, weights = tmp_path_factory.mktemp('starts'), {}, {}
  for dtype in ('float32', 'bfloat16'):
    paths['hf', dtype], weights[dtype] = write_folder(folder / dtype, dtype, **sizes)
    for name in FORMATS:
      if name != 'hf':
        paths[name, dtype] = folder / f'{dtype}-{name}{ENDINGS.get(name, "")}'
        convert(paths['hf', dtype], paths[name, dtype], name, dtype)
  return paths, weights


def convert(source, destination, to, dtype):
  """llama2.c has float32 alone: the model goes into it as that, comes out as what it was."""
  wanted = 'float32' if to == 'llama2c' else dtype
  assert main(['convert', str(source), str(destination), f'--to={to}', f'--dtype={wanted}']) == 0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(('first', 'second'), list(itertools.permutations(FORMATS, 2)))
def test_there_and_back(starts, tmp_path, first, second, dtype):
  paths, weights = starts
  there, back, last = (
    tmp_path / f'{name}{ENDINGS.get(kind, "")}' for name, kind in (('a', second), ('b', first), ('c', 'hf'))
  )
  convert(paths[first, dtype], there, second, dtype)
  convert(there, back, first, dtype)
  if first == 'hf':
    last = back
  else:
    convert(back, last, 'hf', dtype)
  assert same(read_weights(last), weights[dtype])


@pytest.mark.parametrize('name', sorted(set(FORMATS) - {'llama2c'}))
def test_without_a_dtype_nothing_is_cast(starts, tmp_path, name):
  paths, weights = starts
  assert main(['convert', str(paths[name, 'bfloat16']), str(tmp_path / 'out'), '--to=hf']) == 0
  found = read_weights(tmp_path / 'out')
  assert {w.dtype for w in found.values()} == {np.dtype(ml_dtypes.bfloat16)}
  assert same(found, weights['bfloat16'])
