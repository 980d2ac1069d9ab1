"""The optimizer named in the config, as an optax transformation."""

import re
from collections.abc import Callable, Mapping

import jax
import optax

from llamax.core.config import OptimConfig
from llamax.core.errors import UserError, pick
from llamax.core.types import PyTree
from llamax.parallel.rules import path_of

LrFactors = Mapping[str, float] | None  # parameter path -> factor


def decays(cfg: OptimConfig, path: str) -> bool:
  """Whether weight decay pulls on a parameter: the last part of its path matches a rule of `optim.decay`."""
  last = path.rsplit('/', 1)[-1]
  return any(re.fullmatch(rule, last) for rule in cfg.decay)


def decay_mask(cfg: OptimConfig, params: PyTree) -> PyTree:
  return jax.tree_util.tree_map_with_path(lambda path, _: decays(cfg, path_of(path)), params)


def make_optimizer(
  cfg: OptimConfig, schedule: optax.Schedule, lr_factors: LrFactors = None
) -> optax.GradientTransformation:
  """Clips by the global norm, then takes the named update. A new optimizer is one more row of `OPTIMIZERS`.

  lr_factors: what multiplies the learning rate of each parameter, by its path; None: nothing does. The decay of
  a step stays learning rate times `weight_decay` for all of them, whatever the factor; the norm that is clipped
  is that of the gradients as they are.
  """
  for rule in cfg.decay:
    try:
      re.compile(rule)
    except re.error as error:
      raise UserError(f'optim.decay rule {rule!r} is no regular expression: {error}') from None
  update = pick(OPTIMIZERS, cfg.name, 'optim.name')(cfg, schedule, lr_factors)
  if cfg.clip_norm is None:
    return optax.chain(optax.identity(), update)
  return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), update)


def _adamw(cfg: OptimConfig, schedule: optax.Schedule, lr_factors: LrFactors) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter 2019), decay times the learning rate as in torch: `optax.adamw` with factors.

  A factor comes before the decay, so that a factor of 1 / m does not weaken the decay m times: as MuAdamW does
  in the mup package of Yang et al. 2022.
  """
  return optax.chain(
    _scaled(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps), lr_factors),
    optax.add_decayed_weights(cfg.weight_decay, lambda params: decay_mask(cfg, params)),
    optax.scale_by_learning_rate(schedule),
  )


def _scaled(direction: optax.GradientTransformation, factors: LrFactors) -> optax.GradientTransformation:
  """`direction` times each parameter's factor. The state stays as it is: paths, sharding rules, checkpoints."""
  if factors is None:
    return direction

  def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
    steps, state = direction.update(grads, state, params)
    return jax.tree_util.tree_map_with_path(lambda path, u: u * factors[path_of(path)], steps), state

  return optax.GradientTransformation(direction.init, update)


OPTIMIZERS: dict[str, Callable[[OptimConfig, optax.Schedule, LrFactors], optax.GradientTransformation]] = {
  'adamw': _adamw
}
