"""The optimizer named in the config, as an optax transformation."""

import re
from collections.abc import Callable

import jax
import optax

from llamax.core.config import OptimConfig
from llamax.core.errors import UserError, pick
from llamax.core.types import PyTree
from llamax.parallel.rules import path_of


def decays(cfg: OptimConfig, path: str) -> bool:
  """Whether weight decay pulls on a parameter: the last part of its path matches a rule of `optim.decay`."""
  last = path.rsplit('/', 1)[-1]
  return any(re.fullmatch(rule, last) for rule in cfg.decay)


def decay_mask(cfg: OptimConfig, params: PyTree) -> PyTree:
  return jax.tree_util.tree_map_with_path(lambda path, _: decays(cfg, path_of(path)), params)


def make_optimizer(cfg: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
  """Clips by the global norm, then takes the named update. A new optimizer is one more row of `OPTIMIZERS`."""
  for rule in cfg.decay:
    try:
      re.compile(rule)
    except re.error as error:
      raise UserError(f'optim.decay rule {rule!r} is no regular expression: {error}') from None
  update = pick(OPTIMIZERS, cfg.name, 'optim.name')(cfg, schedule)
  if cfg.clip_norm is None:
    return optax.chain(optax.identity(), update)
  return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), update)


def _adamw(cfg: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter 2019), decay times the learning rate as in torch."""
  return optax.adamw(
    schedule,
    b1=cfg.b1,
    b2=cfg.b2,
    eps=cfg.eps,
    weight_decay=cfg.weight_decay,
    mask=lambda params: decay_mask(cfg, params),
  )


OPTIMIZERS: dict[str, Callable[[OptimConfig, optax.Schedule], optax.GradientTransformation]] = {'adamw': _adamw}
