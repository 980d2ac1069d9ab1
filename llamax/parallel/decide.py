"""Decisions of process 0, known to every process: what a clock or a disk says must not differ between hosts."""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # the only way to the coordinator's key-value store

from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop

_SECONDS = 3600  # a decision may wait for a disk; a dead process is found by the heartbeat long before
_SLICE = 2  # seconds in which Python hears of no signal
_KEPT = 16  # decisions after which all processes have read an older one
_NAMED = 4  # complaints in one message
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
    answer = json.loads(_wait_for(client, _key(number)))
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


def none_complains(complaint: str | None) -> None:
  """Waits for all processes; UserError on each when any has a `complaint`. All call this in the same order."""
  count = jax.process_count()
  if count == 1:
    if complaint:
      raise UserError(complaint)
    return
  client: Any = distributed.global_state.client
  folder = f'llamax/answers/{next(_numbers)}/'
  client.key_value_set(f'{folder}{jax.process_index()}', complaint or '')
  by_first(lambda: _hear(client, folder, count))


def _wait_for(client: Any, key: str) -> str:
  """The value of `key`, once it is there."""
  end = time.monotonic() + _SECONDS
  while True:
    try:
      return client.blocking_key_value_get(key, 1000 * _SLICE)
    except Exception as error:  # of whichever kind jaxlib makes of it
      if 'timed out' not in str(error) or time.monotonic() > end:
        raise


def _hear(client: Any, folder: str, count: int) -> None:
  """Until `count` processes have answered. One that dies meanwhile is found by the heartbeat."""
  pause = 0.01
  while len(answers := client.key_value_dir_get(folder)) < count:
    time.sleep(pause)
    pause = min(2 * pause, 0.5)
  client.key_value_delete(folder)
  found = {int(key.rpartition('/')[2]): text for key, text in answers if text}
  if found:
    named = [found[rank] for rank in sorted(found)]
    more = [f'and {len(named) - _NAMED} more processes'] if len(named) > _NAMED else []
    raise UserError('; '.join(named[:_NAMED] + more))


def _decided(decide: Callable[[], Any]) -> Any:
  try:
    return decide()
  except OSError as error:
    raise Stop(STORAGE, f'{error}: the same command goes on once the disk is mended') from error


def _key(number: int) -> str:
  return f'llamax/decided/{number}'
