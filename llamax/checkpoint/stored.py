"""What a checkpoint says beside its arrays."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from llamax.checkpoint import leaves

_PACKAGES = ('llamax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')


def stored_meta(step: int, named: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
  """`meta` with `step`, `leaves` (name -> dtype[shape]), `versions`; TypeError for what JSON cannot hold.

  Through JSON at once: later changes by the caller do not reach it.

  Args:
    named: leaf name -> anything with shape, dtype.
  """
  added = {'step': step, 'leaves': leaves.leaf_table(named), 'versions': _versions()}
  return json.loads(json.dumps({**meta, **added}))


def _versions() -> dict[str, str]:
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'  # llamax run from its sources
  return versions
