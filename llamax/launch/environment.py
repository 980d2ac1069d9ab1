"""The versions that the workers of a run must share, compared before it starts."""

import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping

# What decides the numbers, the format of a checkpoint, whether processes understand each other.
PACKAGES = (
  'llamax',
  'jax',
  'jaxlib',
  'libtpu',
  'jax-cuda12-plugin',
  'flax',
  'optax',
  'orbax-checkpoint',
  'tensorstore',
  'grain',
  'numpy',
)


def read() -> dict[str, str | None]:
  """{'python': '3.11.7', package: its version, None where it is not there}; imports none of them."""
  return {'python': platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def differences(found: Mapping[str, Mapping[str, str | None]]) -> list[str]:
  """Lines that name each worker whose version of something is not what most of them have; [] where all agree.

  found: worker -> what `read` says there.
  """
  lines = []
  for item in sorted({item for versions in found.values() for item in versions}):
    count = Counter(versions.get(item) for versions in found.values())
    if len(count) == 1:
      continue
    most = count.most_common(1)[0][0]
    for worker, versions in found.items():
      if versions.get(item) != most:
        lines.append(f'{worker} has {item} {versions.get(item) or "(none)"}, {_others(found, item, most)}')
  return lines


def _others(found: Mapping[str, Mapping[str, str | None]], item: str, most: str | None) -> str:
  having = [worker for worker, versions in found.items() if versions.get(item) == most]
  who = having[0] if len(having) == 1 else f'{having[0]} and {len(having) - 1} more'
  return f'{who} {"has" if len(having) == 1 else "have"} {most or "none"}'


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


if __name__ == '__main__':
  print(json.dumps(read()))
