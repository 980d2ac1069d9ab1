"""Counts parameters in a process of its own, which alone imports jax: python -m llamax.sweep.count.

Whoever starts runs forks, which a process with jax in it must not do; nor may it hold an accelerator.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from llamax.core.config import Config


def count_parameters(configs: Sequence[Config]) -> list[int] | None:
  """The number of parameters of each config's model, from shapes alone; None where jax does not work here."""
  models = {json.dumps(c.to_mapping()['model']): c for c in configs}
  text = json.dumps([config.to_mapping() for config in models.values()])
  done = subprocess.run(
    [sys.executable, '-m', 'llamax.sweep.count'],
    input=text,
    text=True,
    capture_output=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    check=False,
  )
  try:
    counts = dict(zip(models, json.loads(done.stdout), strict=True))
  except ValueError:
    return None
  return [counts[json.dumps(config.to_mapping()['model'])] for config in configs]


def main() -> None:
  from llamax.model.llama import Llama, num_params, settle

  configs = [Config.from_mapping(mapping) for mapping in json.load(sys.stdin)]
  json.dump([num_params(Llama(c.model, settle(c.compute, 'cpu'))) for c in configs], sys.stdout)


if __name__ == '__main__':
  main()
