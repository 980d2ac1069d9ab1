"""Only the words of orbax are dropped."""

import logging
import sys
import types
import warnings

import pytest

from llamax.checkpoint import quiet, reading  # noqa: F401  (importing `reading` silences orbax)


def _record(name, path, text):
  logger = logging.getLogger(name)
  return logger.filter(logger.makeRecord(name, logging.ERROR, path, 1, text, (), None))


def test_only_orbax_is_silenced():
  assert not _record('absl', '/x/site-packages/orbax/checkpoint/y.py', 'a failure')
  assert _record('absl', '/x/llamax/train/loop.py', 'a failure')
  assert not _record('asyncio', '/x/asyncio/base_events.py', 'Task, defined at /x/orbax/y.py')
  assert not _record(
    'asyncio', '/x/asyncio/base_events.py', "Future: ValueError('NOT_FOUND in OCDBT database')"
  )
  assert _record('asyncio', '/x/asyncio/base_events.py', 'Task exception of mine')


def test_leftovers_are_dropped_others_passed_on(monkeypatch):
  seen = []
  monkeypatch.setattr(sys, 'unraisablehook', lambda unraisable: seen.append(str(unraisable.exc_value)))
  quiet.silence_leftovers()
  hook = sys.unraisablehook
  quiet.silence_leftovers()
  assert sys.unraisablehook is hook, 'installed once'
  warnings.warn("coroutine 'Store._get_array_metadatas' was never awaited", RuntimeWarning, stacklevel=1)
  with pytest.warns(RuntimeWarning, match='mine'):
    warnings.warn("coroutine 'mine' was never awaited", RuntimeWarning, stacklevel=1)
  for text in ('Event loop is closed', 'See full TensorStore details', 'mine'):
    hook(types.SimpleNamespace(exc_value=RuntimeError(text)))
  assert seen == ['mine']
