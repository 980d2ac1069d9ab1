"""How the processes of a run are started; what several of them do is in tests/faults/test_hosts.py."""

import jax
import pytest

from llamax.core.errors import UserError
from llamax.parallel import hosts


def test_alone_nothing_is_started(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **kwargs: pytest.fail('started'))
  monkeypatch.delenv('JAX_CPU_COLLECTIVES_IMPLEMENTATION', raising=False)
  hosts.start(heartbeat_seconds=10)
  hosts.start('127.0.0.1:1', 1, 0, heartbeat_seconds=10)
  assert hosts.peers() is None


def test_alone_with_gloo_it_sums_as_several_processes_do(monkeypatch):
  monkeypatch.setenv('JAX_CPU_COLLECTIVES_IMPLEMENTATION', 'gloo')
  monkeypatch.setattr(jax.config, 'update', lambda *args: None)
  started = []

  def initialize(*place, **options):
    started.append(place)
    raise ZeroDivisionError  # Further than this it would change the jax of all tests.

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(ZeroDivisionError):
    hosts.start('127.0.0.1:4711', 1, 0, heartbeat_seconds=10)
  assert started == [('127.0.0.1:4711', 1, 0)]
  hosts.start(heartbeat_seconds=10)
  assert len(started) == 1


def test_what_does_not_fit_is_refused_before_anything_is_started(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **kwargs: pytest.fail('started'))
  for refused in (('0.0.0.0:1', 2, 0), ('8.8.8.8:1', 2, 1), ('127.0.0.1:1', 2, None)):
    with pytest.raises(UserError):
      hosts.start(*refused, heartbeat_seconds=10)


def test_the_own_address_is_that_of_the_way_to_the_coordinator():
  assert hosts.own_address('127.0.0.1', 8476) == '127.0.0.1'


def test_an_error_passes_when_there_is_nobody_to_tell():
  with pytest.raises(ZeroDivisionError), hosts.as_one():
    raise ZeroDivisionError
  with hosts.as_one():
    pass
