"""Reading from storage that fails now and then."""

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop

# Seconds of pause after each failed try, some 13 in all: a mount that reconnects needs about so long, while the
# step's watchdog waits for a minute. Half to one and a half times as long: hosts are not to come all at once.
PAUSES = tuple(0.1 * 2**i for i in range(7))
# Bytes that are wrong seldom get better: one more try, in case it was on their way here.
_TRIES_OF_DAMAGE = 2

T = TypeVar('T')


def retried(read: Callable[[], T], what: str) -> T:
  """`read()`, again after a pause when it fails. Always bounded.

  Args:
    what: the file, record that is read, for the message.

  Raises:
    UserError: the bytes are damaged. Stop(STORAGE): the storage could not be read for all of `PAUSES`.
  """
  for tries in range(1, len(PAUSES) + 2):
    try:
      return read()
    except (OSError, RuntimeError, ValueError) as error:
      reason = ' '.join(str(error).split()) or repr(error)
      if not _is_of_storage(error):
        if tries == _TRIES_OF_DAMAGE:
          raise UserError(
            f'{what} is damaged ({reason}): restore the file, or prepare the data again with --overwrite'
          ) from None
      elif tries > len(PAUSES):
        raise Stop(
          STORAGE,
          f'{what} cannot be read ({reason}), tried {tries} times in {sum(PAUSES):.0f} s: is the storage '
          'there? The same command goes on from the newest checkpoint',
        ) from None
      time.sleep(PAUSES[tries - 1] * random.uniform(0.5, 1.5))
  raise AssertionError('the loop returns or raises')


def _is_of_storage(error: Exception) -> bool:
  """Not of the bytes. ArrayRecord raises RuntimeError for both: 'pread() failed: Input/output error; ...'."""
  return isinstance(error, OSError) or bool(re.search(r'\b\w+\(\) failed: ', str(error)))
