"""The train state: one rule per array, born sharded."""

import jax
import numpy as np

from llamax.model.llama import param_dims
from llamax.parallel.rules import letters_of, path_of
from llamax.train.program import make_program
from llamax.train.state import init_state, nonfinite_leaves


def test_every_array_of_the_state_has_one_rule_and_its_layout(tiny_config):
  cfg = tiny_config(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
  program = make_program(cfg, jax.devices())
  dims = param_dims(cfg.model)
  state = init_state(program.model, program.tx, program.mesh, 0)
  paths = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    rule, letters = letters_of(path_of(path), leaf.ndim, dims)
    paths.append(path_of(path))
    split = int(np.prod([2 for letter in letters if letter in 'DNKFV']))
    assert leaf.addressable_shards[0].data.size * split == leaf.size, (rule, letters)
  for rule in dims:
    # The parameter with both of Adam's moments.
    assert sum(path.endswith('/' + rule) for path in paths) == 3, rule
  assert int(state.step) == 0


def test_the_seed_decides_the_weights_the_mesh_does_not(tiny_config):
  def table(seed, **mesh):
    cfg = tiny_config(**mesh)
    program = make_program(cfg, jax.devices()[: 8 if mesh else 1])
    return np.asarray(init_state(program.model, program.tx, program.mesh, seed).params['embed']['table'])

  one = table(0)
  np.testing.assert_array_equal(one, table(0, **{'mesh.fsdp': 4, 'mesh.tensor': 2}))
  assert (one != table(1)).any()


def test_one_bad_element_of_one_leaf_is_named(tiny_config):
  program = make_program(tiny_config(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}), jax.devices())
  state = init_state(program.model, program.tx, program.mesh, 0)
  assert nonfinite_leaves(state) == []

  def spoil(path, value):
    def one(key_path, leaf):
      if path_of(key_path) != path:
        return leaf
      spoilt = np.asarray(leaf).copy()
      spoilt.flat[-1] = value
      return jax.device_put(spoilt, leaf.sharding)

    return jax.tree_util.tree_map_with_path(one, state)

  paths = [path_of(key_path) for key_path, _ in jax.tree_util.tree_leaves_with_path(state)]
  moment = next(path for path in paths if path.endswith('nu/embed/table'))
  for path, value in (
    ('params/layers/attn/wq', np.nan),
    ('params/final_norm/scale', np.inf),
    (moment, -np.inf),
  ):
    assert nonfinite_leaves(spoil(path, value)) == [path]
