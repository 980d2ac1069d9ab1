"""Names of checkpoints as a person writes them."""

import shutil

import pytest

from llamax.checkpoint import digests, listing, steps
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


def test_entries_that_are_no_checkpoints_do_no_harm(folder):
  for name in ('08', '²', '٣', '1_0', '+5'):
    (folder / name).mkdir()
  for name in ('10', 'damaged-10'):
    (folder / name).symlink_to('/nowhere')
  (folder / '11').write_text('a file')
  (folder / '12').symlink_to(folder / '20')
  (folder / '20' / digests.MANIFEST).symlink_to('/nowhere')
  assert listing.names(folder) == ['12', '20', '100', '7000', 'damaged-100', 'damaged-100-again']
  assert all(entry.written for entry in listing.entries(folder))
  assert steps.steps(folder) == [12, 20, 100, 7000]


def test_a_step_that_retention_removes_meanwhile_is_left_out(folder, monkeypatch):
  verify = digests.verify

  def remove_then_verify(path, **how):
    if path.name == '100':
      shutil.rmtree(path)
    return verify(path, **how)

  monkeypatch.setattr(digests, 'verify', remove_then_verify)
  assert [entry.name for entry in listing.entries(folder)][:3] == ['20', '7000', 'damaged-100']
  assert listing._written(folder / '100') == '' and listing._sizes(folder / '100') == []
