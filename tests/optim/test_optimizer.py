"""AdamW by hand in float64; which parameters decay; clipping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llamax.core.config import OptimConfig
from llamax.core.errors import UserError
from llamax.optim.optimizer import decay_mask, decays, make_optimizer

CFG = OptimConfig(
  name='adamw',
  learning_rate=0.1,
  b1=0.8,
  b2=0.9,
  eps=0.01,
  weight_decay=0.3,
  decay=('w[a-z_]*', 'kernel', 'table'),
  clip_norm=None,
  schedule='constant',
  warmup_steps=0,
  decay_steps=0,
  end_lr_fraction=0.0,
)


def draw(seed):
  rng = np.random.default_rng(seed)
  shapes = {'attn': {'wq': (3, 2), 'bq': (2,)}, 'norm': {'scale': (4,)}}
  return jax.tree.map(
    lambda s: rng.standard_normal(s).astype(np.float32), shapes, is_leaf=lambda s: type(s) is tuple
  )


def schedule(step):
  return 0.1 / (step + 1)


def adamw(cfg, params, steps_of_grads, factors):
  """Loshchilov and Hutter 2019, algorithm 2, decay times the learning rate; float64."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  m = v = jax.tree.map(np.zeros_like, params)
  for t, grads in enumerate(steps_of_grads):
    if cfg.clip_norm is not None:
      norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
      grads = jax.tree.map(lambda g, norm=norm: g * min(1, cfg.clip_norm / norm), grads)
    m = jax.tree.map(lambda m, g: cfg.b1 * m + (1 - cfg.b1) * g, m, grads)
    v = jax.tree.map(lambda v, g: cfg.b2 * v + (1 - cfg.b2) * g.astype(np.float64) ** 2, v, grads)

    def update(path, p, m, v, t=t):
      decay = cfg.weight_decay if path[-1].key == 'wq' else 0
      factor = factors['/'.join(part.key for part in path)] if factors else 1
      step = m / (1 - cfg.b1 ** (t + 1)) / (np.sqrt(v / (1 - cfg.b2 ** (t + 1))) + cfg.eps)
      return p - schedule(t) * (factor * step + decay * p)

    params = jax.tree_util.tree_map_with_path(update, params, m, v)
  return params


@pytest.mark.parametrize(
  'clip_norm, factors',
  [(None, None), (1.0, None), (1e6, None), (1.0, {'attn/wq': 0.25, 'attn/bq': 1.0, 'norm/scale': 2.0})],
)
def test_three_steps_equal_float64(clip_norm, factors):
  cfg = dataclasses.replace(CFG, clip_norm=clip_norm)
  params, steps_of_grads = draw(0), [draw(seed) for seed in (1, 2, 3)]
  tx = make_optimizer(cfg, schedule, factors)
  expected = adamw(cfg, params, steps_of_grads, factors)

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for grads in steps_of_grads:
    params, state = step(params, state, grads)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), params, expected)


def test_without_factors_it_is_adamw_of_optax_to_the_bit():
  params, tx = draw(0), make_optimizer(CFG, schedule)
  theirs = optax.adamw(
    schedule, CFG.b1, CFG.b2, CFG.eps, weight_decay=CFG.weight_decay, mask=lambda p: decay_mask(CFG, p)
  )
  states = tx.init(params), theirs.init(params)
  assert jax.tree.structure(states[0][1]) == jax.tree.structure(states[1])
  for seed in (1, 2, 3):
    (ours, first), (other, second) = (
      each.update(draw(seed), state, params) for each, state in zip((tx, theirs), states, strict=True)
    )
    states = first, second
    jax.tree.map(np.testing.assert_array_equal, ours, other)


def test_a_state_has_the_same_paths_with_or_without_clipping():
  """So that a run can go on from a checkpoint after clipping is turned on or off."""
  params = draw(0)
  with_clip = make_optimizer(dataclasses.replace(CFG, clip_norm=1.0), schedule).init(params)
  without = make_optimizer(CFG, schedule).init(params)
  assert jax.tree.structure(with_clip) == jax.tree.structure(without)


@pytest.mark.parametrize(
  'path, expected',
  [
    ('embed/table', True),
    ('layers/attn/wq', True),
    ('layers/attn/wo', True),
    ('layers/mlp/w_gate', True),
    ('lm_head/kernel', True),
    ('layers/attn/bq', False),
    ('layers/mlp/b_up', False),
    ('layers/attn/q_norm/scale', False),
    ('layers/attn_norm/scale', False),
    ('layers/mlp_norm/bias', False),
    ('final_norm/scale', False),
    # The last part alone decides, all of it.
    ('wq/scale', False),
    ('layers/kernel_scale', False),
  ],
)
def test_matrices_decay_norms_with_biases_do_not(path, expected):
  assert decays(CFG, path) is expected


def test_decay_mask_has_a_claim_for_each_parameter():
  assert decay_mask(CFG, draw(0)) == {'attn': {'wq': True, 'bq': False}, 'norm': {'scale': False}}


def test_moments_are_kept_in_the_parameters_dtype():
  params = {'wq': jnp.zeros((2, 3), jnp.bfloat16)}
  state = make_optimizer(CFG, schedule).init(params)
  assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} == {jnp.dtype('bfloat16')}


def test_a_broken_rule_is_a_user_error():
  with pytest.raises(UserError, match=r"optim.decay rule 'w\['"):
    make_optimizer(dataclasses.replace(CFG, decay=('w[',)), schedule)


def test_an_unknown_optimizer_names_the_nearest():
  with pytest.raises(UserError, match="Did you mean 'adamw'"):
    make_optimizer(dataclasses.replace(CFG, name='adam'), schedule)
