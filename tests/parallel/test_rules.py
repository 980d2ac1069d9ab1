"""Every array has exactly one rule, every rule an array, for every option of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from llamax.core.config import MeshConfig
from llamax.core.dims import LETTERS
from llamax.core.errors import UserError
from llamax.model.llama import Llama, dim_sizes, init_params, param_dims
from llamax.optim.optimizer import make_optimizer
from llamax.optim.schedule import make_schedule
from llamax.parallel import rules
from llamax.parallel.mesh import make_mesh
from llamax.train.state import TrainState

OPTIONS = {
  'plain': {},
  'untied': {'model.tie_embeddings': False},
  'biases': {'model.qkv_bias': True, 'model.out_bias': True, 'model.mlp_bias': True},
  'qk_norm': {'model.qk_norm': True},
  'layernorm': {'model.norm': 'layernorm', 'model.qk_norm': True},
  'no_position': {'model.position': 'none'},
  'constant': {'optim.schedule': 'constant', 'optim.warmup_steps': 0, 'optim.clip_norm': None},
}


def state_shapes(cfg):
  model = Llama(cfg.model, cfg.compute)
  tx = make_optimizer(cfg.optim, make_schedule(cfg.optim, 20))

  def init():
    params = init_params(model, jax.random.key(0))
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

  return jax.eval_shape(init)


@pytest.fixture
def config(tiny_config):
  return lambda **changes: tiny_config(
    **({'compute.compute_dtype': 'float32', 'compute.attention': 'xla'} | changes)
  )


@pytest.mark.parametrize('option', OPTIONS)
def test_every_array_of_the_state_has_one_rule_every_rule_an_array(config, option):
  cfg = config(**OPTIONS[option])
  shapes, dims = state_shapes(cfg), param_dims(cfg.model)
  specs = rules.tree_specs(shapes, dims)
  assert jax.tree.structure(specs) == jax.tree.structure(shapes)
  # A parameter with its two moments: three arrays of each rule.
  used = [
    rules.letters_of(rules.path_of(path), leaf.ndim, dims)[0]
    for path, leaf in jax.tree.leaves_with_path(shapes)
  ]
  assert {rule: used.count(rule) for rule in dims} == dict.fromkeys(dims, 3)
  assert set(used) <= set(dims) | set(rules.SCALARS)


@pytest.mark.parametrize('option', OPTIONS)
def test_the_letters_of_a_rule_are_those_of_the_shape(config, option):
  cfg = config(**OPTIONS[option])
  dims, sizes = param_dims(cfg.model), dim_sizes(cfg.model)
  for path, leaf in jax.tree.leaves_with_path(state_shapes(cfg)):
    _, letters = rules.letters_of(rules.path_of(path), leaf.ndim, dims)
    assert leaf.shape == (*(sizes[x] for x in letters),), rules.path_of(path)


def test_specs_by_hand(config):
  specs = rules.tree_specs(
    state_shapes(config(**{'model.tie_embeddings': False})),
    param_dims(config(**{'model.tie_embeddings': False}).model),
  )
  assert specs.step == P()
  assert specs.params['embed']['table'] == P('tensor', 'fsdp')
  assert specs.params['lm_head']['kernel'] == P('fsdp', 'tensor')
  assert specs.params['layers']['attn']['wq'] == P(None, 'fsdp', 'tensor', None)
  assert specs.params['layers']['attn']['wo'] == P(None, 'tensor', None, 'fsdp')
  assert specs.params['layers']['mlp']['w_down'] == P(None, 'tensor', 'fsdp')
  assert specs.params['layers']['attn_norm']['scale'] == P(None, 'fsdp')
  assert specs.params['final_norm']['scale'] == P('fsdp')
  moments = [
    leaf for path, leaf in jax.tree.leaves_with_path(specs.opt_state) if 'w_down' in rules.path_of(path)
  ]
  assert moments == [P(None, 'tensor', 'fsdp')] * 2
  assert rules.activation_spec('BTNH') == P(('data', 'fsdp'), None, 'tensor', None)
  assert rules.activation_spec('BTD') == P(('data', 'fsdp'), None, None)


def test_rules_use_letters_of_the_legend():
  assert set(rules.PARAM_AXES) | set(rules.ACTIVATION_AXES) <= set(LETTERS)


DIMS = {'attn/wq': 'DNH', 'norm/scale': 'D'}
TREE = {'attn': {'wq': np.zeros((2, 3, 4))}, 'norm': {'scale': np.zeros(2)}}


def test_an_array_without_a_rule_is_refused():
  with pytest.raises(ValueError, match=r'attn/wz has 1 dims; want exactly one rule .* matched \{\}'):
    rules.tree_specs(TREE | {'attn': TREE['attn'] | {'wz': np.zeros(2)}}, DIMS)


def test_an_array_of_another_rank_is_refused():
  with pytest.raises(ValueError, match=r"norm/scale has 2 dims; .* matched \{'norm/scale': 'D'\}"):
    rules.tree_specs(TREE | {'norm': {'scale': np.zeros((1, 2))}}, DIMS)


def test_an_array_with_two_rules_is_refused():
  with pytest.raises(ValueError, match=r"attn/wq has 3 dims; .* matched \{'attn/wq': 'DNH', 'wq': 'DNH'\}"):
    rules.tree_specs(TREE, DIMS | {'wq': 'DNH'})


def test_a_rule_without_an_array_is_refused():
  with pytest.raises(ValueError, match=r"rules that no array uses: \['mlp/w_up'\]"):
    rules.tree_specs(TREE, DIMS | {'mlp/w_up': 'DF'})


def test_a_rule_matches_whole_words():
  with pytest.raises(ValueError, match='xattn/wq has 3 dims'):
    rules.tree_specs({'xattn': TREE['attn'], 'norm': TREE['norm']}, DIMS)


def test_path_of_an_optimizer_state():
  state = optax.scale_by_adam().init({'layers': {'attn': {'wq': jnp.zeros(2)}}})
  paths = [rules.path_of(path) for path, _ in jax.tree.leaves_with_path({'opt_state': (state,)})]
  assert paths == ['opt_state/0/count', 'opt_state/0/mu/layers/attn/wq', 'opt_state/0/nu/layers/attn/wq']


def test_shard_wants_a_letter_per_dim():
  with pytest.raises(ValueError, match=r"'BTD' names 3 dims of an array with 2"):
    rules.shard(jnp.zeros((2, 3)), 'BTD')


def test_shard_with_constrain_lay_arrays_out_on_a_mesh():
  mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
  tree = {'attn': {'wq': jnp.zeros((2, 4, 3))}, 'norm': {'scale': jnp.zeros(2)}}
  with jax.set_mesh(mesh):
    x = jax.jit(lambda: rules.shard(jnp.zeros((4, 3, 2, 5)), 'BTNH'))()
    pinned = jax.jit(lambda: rules.constrain(tree, DIMS))()
  assert x.sharding.shard_shape(x.shape) == (1, 3, 1, 5)
  assert {x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(pinned)} == {(1, 2, 3), (1,)}
  assert rules.batch_sharding(mesh).shard_shape((8, 3)) == (2, 3)
  shardings = rules.tree_shardings(tree, mesh, DIMS)
  assert shardings['attn']['wq'].shard_shape((2, 4, 3)) == (1, 2, 3)


def test_without_a_mesh_nothing_is_pinned():
  x = jnp.zeros((2, 3, 4))
  assert rules.shard(x, 'BTD') is x
  assert rules.constrain(TREE, DIMS) is TREE


SIZES = {'data': 2, 'fsdp': 4, 'tensor': 2}


def test_what_fits_passes():
  rules.check_fits(SIZES, 16, 2, {'D': 12, 'N': 6, 'K': 2, 'F': 10, 'V': 34, 'H': 7, 'L': 3})


@pytest.mark.parametrize(
  'batch, accum, dims, reason',
  [
    (12, 1, {}, r'global batch of 12 .* 8 batch shards \(data=2 x fsdp=4\) .* nearest .* 8 or 16'),
    (24, 2, {}, 'grad_accum=2; nearest batch in sequences: 16 or 32'),
    (8, 1, {'D': 18}, r'mesh.fsdp=4 does not divide dim D=18 .* nearest fsdp: 3 or 6'),
    (8, 1, {'K': 1}, r'mesh.tensor=2 does not divide dim K=1 .* nearest tensor: 1'),
    (8, 1, {'V': 33}, 'nearest tensor: 1 or 3'),
  ],
)
def test_what_does_not_fit_names_the_nearest(batch, accum, dims, reason):
  with pytest.raises(UserError, match=reason):
    rules.check_fits(SIZES, batch, accum, dims)


def test_every_letter_a_model_splits_by_is_checked(config):
  """A dim of every rule that has an axis is among those that `check_fits` is given."""
  for changes in OPTIONS.values():
    model = config(**changes).model
    split = {x for letters in param_dims(model).values() for x in letters if rules.PARAM_AXES[x]}
    assert split <= set(dim_sizes(dataclasses.replace(model)))
