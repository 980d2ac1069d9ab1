"""Keeps orbax's own words off the screen: a failure reaches the user once, as the one line of an exception."""

import logging
import sys
import warnings
from typing import Any

_MARKS = ('/orbax/', 'OCDBT', 'tensorstore', 'TensorStore', 'Event loop is closed')


def silence_orbax() -> None:
  """Drops what orbax logs; what asyncio logs of orbax's tasks. Each such failure is also raised to us."""
  # Orbax logs through absl, whose logger must be made by absl itself: call this after importing orbax.
  logging.getLogger('absl').addFilter(lambda record: '/orbax/' not in record.pathname)
  logging.getLogger('asyncio').addFilter(lambda record: not _is_theirs(record.getMessage()))


def silence_leftovers() -> None:
  """To be called before a read or write: when it fails, its other operations still end, on a closed event loop.

  Nobody waits for them any more, so Python would report each as an 'exception ignored' with its traceback.
  Installs a `sys.unraisablehook` that passes on all else; once, however often it is called.
  """
  # `Store` is a class of orbax.
  warnings.filterwarnings('ignore', r"coroutine 'Store\.\w+' was never awaited", RuntimeWarning)
  previous = sys.unraisablehook
  if getattr(previous, 'drops_leftovers', False):
    return

  def hook(unraisable: Any) -> None:
    if not _is_theirs(str(unraisable.exc_value)):
      previous(unraisable)

  hook.drops_leftovers = True  # type: ignore[attr-defined]
  sys.unraisablehook = hook


def _is_theirs(text: str) -> bool:
  return any(mark in text for mark in _MARKS)
