"""Pretrains LLaMA-family models in JAX."""

import types
from typing import Any

from llamax import train

__version__ = '0.1.0'
__all__ = ['__version__', 'load', 'load_config', 'train']


class _Train(types.ModuleType):
  """The package `llamax.train`, which is called to train: `llamax.train(config, workdir)`."""

  def __call__(self, config: Any, workdir: Any) -> Any:
    from llamax.api import train

    return train(config, workdir)


train.__class__ = _Train


def __getattr__(name: str) -> Any:
  # On first use: `import llamax` itself costs nothing.
  if name in ('load', 'load_config'):
    from llamax import api

    return getattr(api, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
