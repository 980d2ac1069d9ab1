"""Storage that fails is tried again, for so long; damaged bytes are not waited for."""

import errno

import pytest

from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop
from llamax.data import retry
from llamax.data.retry import PAUSES, retried


@pytest.fixture
def pauses(monkeypatch):
  """Seconds that were slept, none of them really."""
  slept = []
  monkeypatch.setattr(retry.time, 'sleep', slept.append)
  return slept


def failing(*errors):
  """Raises them one after the other, then gives 7."""
  left = list(errors)

  def read():
    if left:
      raise left.pop(0)
    return 7

  return read


EIO = OSError(errno.EIO, 'Input/output error')
RIEGELI = RuntimeError('pread() failed: Input/output error; reading /x')


@pytest.mark.parametrize('error', [EIO, RIEGELI, FileNotFoundError(2, 'x'), TimeoutError('late')], ids=repr)
def test_what_comes_back_in_time_is_read(pauses, error):
  assert retried(failing(*[error] * len(PAUSES)), 'x') == 7
  assert len(pauses) == len(PAUSES)
  assert all(0.5 * wanted <= slept <= 1.5 * wanted for slept, wanted in zip(pauses, PAUSES, strict=True))
  assert 5 < sum(PAUSES) < 30


def test_hosts_do_not_come_back_at_once(pauses):
  for _ in range(8):
    retried(failing(EIO), 'x')
  assert len(set(pauses)) == 8


def test_storage_that_stays_away_ends_the_run_with_a_code_to_try_again(pauses):
  with pytest.raises(
    Stop, match=r'record 3 of /a/b cannot be read \(.*Input/output error\), tried 8 times'
  ) as caught:
    retried(failing(*[EIO] * 100), 'record 3 of /a/b')
  assert caught.value.code == STORAGE and len(pauses) == len(PAUSES)


def test_damage_is_tried_once_more(pauses):
  damage = RuntimeError('Corrupted Riegeli/records file: chunk data hash mismatch')
  assert retried(failing(damage), 'x') == 7
  with pytest.raises(UserError, match=r'record 3 of /a/b is damaged \(Corrupted'):
    retried(failing(damage, damage), 'record 3 of /a/b')
  assert len(pauses) == 2


@pytest.mark.parametrize('error', [KeyError('x'), SystemExit(1), MemoryError(), TypeError('x')], ids=repr)
def test_our_own_mistakes_are_not_repeated(pauses, error):
  with pytest.raises(type(error)):
    retried(failing(error), 'x')
  assert not pauses
