"""Decisions of process 0, known to every process: what a clock or a disk says must not differ between hosts."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # the only way to the coordinator's key-value store

from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop

_SECONDS = 3600  # a decision may wait for a disk; a dead process is found by the heartbeat long before
_KEPT = 16  # decisions after which all processes have read an older one
_numbers = itertools.count()


def by_first(decide: Callable[[], Any]) -> Any:
  """The JSON value of `decide()`, called on process 0 alone. All processes call this in the same order.

  What it raises as UserError or Stop is raised on every process; an OSError as Stop (STORAGE).
  """
  if jax.process_count() == 1:
    return _decided(decide)
  client: Any = distributed.global_state.client
  number = next(_numbers)
  if jax.process_index() != 0:
    answer = json.loads(client.blocking_key_value_get(_key(number), 1000 * _SECONDS))
    if 'mistake' in answer:
      raise UserError(answer['mistake'])
    if 'stop' in answer:
      raise Stop(*answer['stop'])
    return answer['value']
  raised: Exception | None = None
  try:
    answer = {'value': _decided(decide)}
  except UserError as error:
    answer, raised = {'mistake': str(error)}, error
  except Stop as error:
    answer, raised = {'stop': [error.code, str(error)]}, error
  client.key_value_set(_key(number), json.dumps(answer))
  if number >= _KEPT:
    client.key_value_delete(_key(number - _KEPT))
  if raised:
    raise raised
  return json.loads(json.dumps(answer['value']))


def _decided(decide: Callable[[], Any]) -> Any:
  try:
    return decide()
  except OSError as error:
    raise Stop(STORAGE, f'{error}: the same command goes on once the disk is mended') from error


def _key(number: int) -> str:
  return f'llamax/decided/{number}'
