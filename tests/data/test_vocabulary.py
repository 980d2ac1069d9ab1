"""Training is deterministic, exact in size, says what is wrong with the size."""

import pytest

from llamax.core.errors import UserError
from llamax.data import vocabulary
from llamax.data.tokenizer import open_tokenizer
from llamax.data.vocabulary import train_tokenizer


def test_same_texts_same_bytes(stories, model_file):
  with open(model_file, 'rb') as f:
    assert train_tokenizer(stories, 384) == f.read()


def test_size_is_exact(stories, tmp_path):
  path = tmp_path / 'm.model'
  path.write_bytes(train_tokenizer(stories, 401))
  assert open_tokenizer(path).vocab_size == 401


def test_too_large_names_the_limit(stories):
  with pytest.raises(UserError, match='--vocab_size of at most') as error:
    train_tokenizer(stories, 50_000)
  limit = int(str(error.value).rsplit(' ', 1)[1])
  assert len(train_tokenizer(stories, limit))
  with pytest.raises(UserError, match='at most'):
    train_tokenizer(stories, limit + 1)


def test_too_small_names_what_is_needed(stories):
  with pytest.raises(UserError, match='--vocab_size of at least') as error:
    train_tokenizer(stories, 100)
  needed = int(str(error.value).rsplit(' ', 1)[1])
  assert train_tokenizer(stories, needed + 10)


def test_frequent_runs_are_pieces_by_what_they_save():
  text = 'a\n    b' * 10 + 'c\n\nd' * 12 + 'e\tf' * 99
  runs = vocabulary._frequent_runs([text], 128)
  assert runs == ['\n', '\t', '\n▁▁▁▁', '\n\n']


def test_chunks_lose_nothing(stories):
  text = ''.join(stories) + 'x' * 10_000
  chunks = list(vocabulary._chunks([text]))
  assert ''.join(chunks) == text and max(map(len, chunks)) <= 4096
