"""One process decides; the others hear the same, mistakes too."""

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop
from llamax.parallel import decide


class Store:
  """A coordinator's key-value store."""

  def __init__(self):
    self.values, self.news, self.read = {}, threading.Condition(), []

  def key_value_set(self, key, value, allow_overwrite=False):
    with self.news:
      self.values[key] = value
      self.news.notify_all()

  def key_value_delete(self, key):
    with self.news:
      for name in [name for name in self.values if name == key or name.startswith(key.rstrip('/') + '/')]:
        del self.values[name]

  def key_value_dir_get(self, key):
    with self.news:
      return [item for item in self.values.items() if item[0].startswith(key)]

  def blocking_key_value_get(self, key, milliseconds):
    with self.news:
      self.read.append(key)
      if not self.news.wait_for(lambda: key in self.values, milliseconds / 1000):
        raise RuntimeError(f'DEADLINE_EXCEEDED: GetKeyValue() timed out with key: {key}')
      return self.values[key]


@pytest.fixture
def as_process(monkeypatch):
  """index -> by_first as that process of two calls it."""
  store = Store()
  monkeypatch.setattr(decide.distributed, 'global_state', SimpleNamespace(client=store))
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  counts = {0: iter(range(100)), 1: iter(range(100))}

  def call(index, act):
    monkeypatch.setattr(jax, 'process_index', lambda: index)
    monkeypatch.setattr(decide, '_numbers', counts[index])
    return decide.by_first(act)

  call.store = store
  return call


def never():
  raise AssertionError('only process 0 decides')


def test_the_value_of_the_first_is_that_of_all(as_process):
  for value in (None, 3, [1, 2], {'a': None}):
    assert as_process(0, lambda value=value: value) == value == as_process(1, never)
  assert as_process(0, lambda: (1, 2)) == [1, 2], 'JSON on process 0 too'


@pytest.mark.parametrize(
  'raised, kind, code',
  [(UserError('no'), UserError, None), (Stop(77, 'no'), Stop, 77), (OSError('no'), Stop, STORAGE)],
)
def test_what_it_raises_is_raised_by_all(as_process, raised, kind, code):
  def act():
    raise raised

  for index in (0, 1):
    with pytest.raises(kind, match='no') as caught:
      as_process(index, act)
    assert getattr(caught.value, 'code', None) == code
  assert as_process(0, lambda: 1) == as_process(1, never) == 1, 'the next decision is the next'


def test_old_answers_do_not_pile_up(as_process):
  for i in range(50):
    as_process(0, lambda i=i: i)
  assert len(as_process.store.values) <= 17
  assert json.loads(as_process.store.values['llamax/decided/49']) == {'value': 49}


def test_who_waits_hears_of_a_signal(as_process, monkeypatch):
  def stop(number, frame):
    raise Stop(75, 'asked to')

  monkeypatch.setattr(decide, '_SLICE', 0.05)
  before = signal.signal(signal.SIGTERM, stop)
  waits = as_process.store.blocking_key_value_get

  def get(key, milliseconds):
    # In C++: what Python's handler would raise comes when it is back.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
      return waits(key, milliseconds)
    finally:
      signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

  as_process.store.blocking_key_value_get = get
  timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
  timer.start()
  began = time.monotonic()
  try:
    with pytest.raises(Stop, match='asked to'):
      as_process(1, never)
    assert time.monotonic() - began < 5
  finally:
    timer.join()
    signal.signal(signal.SIGTERM, before)


def test_a_wait_ends_some_day_with_its_error(as_process, monkeypatch):
  monkeypatch.setattr(decide, '_SLICE', 0.01)
  monkeypatch.setattr(decide, '_SECONDS', 0.1)
  with pytest.raises(RuntimeError, match='timed out'):
    as_process(1, never)


def test_alone(monkeypatch):
  assert decide.by_first(lambda: (1, 2)) == (1, 2)
  with pytest.raises(Stop, match='full'):
    decide.by_first(lambda: (_ for _ in ()).throw(OSError('full')))
