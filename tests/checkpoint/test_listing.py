"""Names of checkpoints as a person writes them."""

import pytest

from llamax.checkpoint import listing
from llamax.core.errors import UserError


@pytest.fixture
def folder(tmp_path):
  for name in ('7000', '20', '100', 'damaged-100', 'damaged-100-again', 'damaged-x', 'writer-1', 'trash', 'x'):
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
  return listing.folder_of(tmp_path)


def test_steps_come_in_order_then_what_was_put_aside(folder):
  assert listing.names(folder) == ['20', '100', '7000', 'damaged-100', 'damaged-100-again']
  assert [entry.step for entry in listing.entries(folder)] == [20, 100, 7000, 100, 100]


def test_numbers_may_have_marks_between_thousands(folder):
  words = ['7,000', '7_000', '020', 'damaged-100-again', '20']
  assert listing.chosen(folder, words) == ['7000', '20', 'damaged-100-again']
  assert listing.chosen(folder, []) == []


@pytest.mark.parametrize('word', ['x', 'trash', 'writer-1', 'damaged-x', '..', '21', '', '-20', '/'])
def test_nothing_else_can_be_chosen(folder, word):
  with pytest.raises(UserError, match='it has 20, 100, 7000, damaged-100, damaged-100-again'):
    listing.chosen(folder, [word])
