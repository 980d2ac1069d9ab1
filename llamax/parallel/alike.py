"""Whether all processes of a run were started alike: a host with another config trains another model."""

import hashlib
import json
import socket
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed  # as in decide.py

from llamax.parallel.decide import by_first, none_complains

FIRST = 'llamax/first'  # the facts of process 0, read by those whose digest is another
# A matter of each host: neither the programs nor the rows depend on them.
OWN = (
  'compute.compilation_cache',
  'data.cache_dir',
  'data.tfds_data_dir',
  'data.read_threads',
  'data.prefetch_rows',
)
_NAMED = 4  # keys in the message
_SHOWN = 80  # characters of a value
_SECONDS = 60


def require_alike(facts: Mapping[str, Any]) -> None:
  """UserError on every process when one has other `facts` than process 0: names it, keys, both values.

  facts: {key: JSON value}. Those in OWN may differ. Over the network go a digest, a word of each process; all
  the facts only to one whose digest differs.
  """
  if jax.process_count() == 1:
    return
  text = json.dumps({key: value for key, value in facts.items() if key not in OWN}, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()
  client: Any = distributed.global_state.client
  if jax.process_index() == 0:
    client.key_value_set(FIRST, text, allow_overwrite=True)
  complaint = None
  if by_first(lambda: digest) != digest:
    first = json.loads(client.blocking_key_value_get(FIRST, 1000 * _SECONDS))
    complaint = _differences(json.loads(text), first)
  none_complains(complaint)


def _differences(here: dict[str, Any], first: dict[str, Any]) -> str:
  keys = [key for key in sorted(here | first) if (key in here, here.get(key)) != (key in first, first.get(key))]
  named = ', '.join(f'{key}={_shown(here, key)}, process 0 has {_shown(first, key)}' for key in keys[:_NAMED])
  more = f', and {len(keys) - _NAMED} more keys' if len(keys) > _NAMED else ''
  who = f'process {jax.process_index()} (host {socket.gethostname()})'
  return f'{who} has {named}{more}: start the same command on every host'


def _shown(facts: dict[str, Any], key: str) -> str:
  if key not in facts:
    return 'nothing'
  text = str(facts[key])
  return text if len(text) <= _SHOWN else text[:_SHOWN] + '...'
