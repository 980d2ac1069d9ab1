"""One small tokenizer of each kind."""

import json

import pytest

from llamax.data.tokenizer import open_tokenizer
from tests.data.tokenizers import made


@pytest.fixture(scope='session')
def kinds(tmp_path_factory):
  """Name -> the folder of a tokenizer."""
  root = tmp_path_factory.mktemp('kinds')
  for name, content in (
    ('llama', made.llama_model()),
    ('plain', made.plain_model()),
    ('ranks', made.llama3_ranks()),
  ):
    (root / name).mkdir()
    (root / name / 'tokenizer.model').write_bytes(content)
  made.qwen_folder(root / 'qwen')
  (root / 'llama3').mkdir()
  (root / 'llama3/tokenizer.json').write_text(json.dumps(made.llama3_json()))
  return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope='session')
def opened(kinds):
  """Name -> the tokenizer."""
  return {name: open_tokenizer(path) for name, path in kinds.items()}
