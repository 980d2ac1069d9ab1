"""Damaged checkpoints of each format: refused with a UserError or read, in bounded time and memory.

`make test TESTS='tests/convert/test_mutants.py --scale=soak'` reads 100,000 of each format. Those of .pth, Meta
are in test_pth_hostile.py, those of tokenizers in tests/data/tokenizers/test_mutants.py.
"""

import pytest

from llamax.cli.main import main

from . import mutants
from .conftest import write_folder

COUNTS = {'quick': 2_000, 'ci': 2_000, 'soak': 100_000}  # of a format
PLAIN = {'hidden_size': 24, 'head_dim': 4, 'num_hidden_layers': 1}
LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
STATE = 'checkpoints/0/state/'

# (format, file of its folder, bytes at the beginning that are damaged most)
CASES = [
  ('hf', 'config.json', 3000),
  ('hf', 'model-00001-of-00002.safetensors', 3000),
  ('hf', 'model.safetensors.index.json', 3000),
  ('gguf', '', 6000),
  ('llama2c', '', 300),
  ('easylm', '', 6000),
  ('llamax', 'checkpoints/0/meta/metadata', 6000),
  ('llamax', 'checkpoints/0/digests.json', 3000),
  ('llamax', 'checkpoints/0/state/params.layers.attn.wq/.zarray', 400),
  ('llamax', 'checkpoints/0/state/params.embed.table/0.0', 4000),
]


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
  """Format -> a small checkpoint of it."""
  folder = tmp_path_factory.mktemp('whole')
  paths = {'hf': write_folder(folder / 'hf', 'float32', files=2, rope_scaling=LLAMA3, **PLAIN)[0]}
  plain, _ = write_folder(folder / 'plain', 'float32', **PLAIN)
  for name, file in (('gguf', 'm.gguf'), ('llama2c', 'm.bin'), ('easylm', 'm.stream'), ('llamax', 'ours')):
    paths[name] = folder / file
    assert main(['convert', str(plain), str(paths[name]), f'--to={name}']) == 0
  return paths


@pytest.mark.parametrize(('name', 'file', 'head'), CASES, ids=lambda value: str(value).rpartition('/')[2])
@pytest.mark.timeout(0)
def test_read_or_refused(checkpoints, name, file, head, request):
  cases = sum(name == other for other, _, _ in CASES)
  count = -(-COUNTS[request.config.getoption('--scale')] // cases)
  kinds = mutants.survives(checkpoints[name], name, count, file, head)
  refused = kinds['FormatError'] + kinds['UserError']
  assert refused + kinds['accepted'] == count
  assert refused > count / 5
