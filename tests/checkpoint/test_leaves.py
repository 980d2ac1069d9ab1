"""Names of leaves, the table of dtypes with shapes."""

import jax.numpy as jnp
import optax
import pytest

from llamax.checkpoint import leaves
from llamax.core.errors import UserError


def test_names_of_a_train_state_are_paths(tiny):
  names = list(leaves.named_leaves(tiny(1, 8, 1).abstract()))
  assert names[0] == 'step'
  assert 'params/embed/table' in names
  assert 'opt_state/1/0/mu/layers/attn/wq' in names
  assert 'opt_state/1/0/count' in names


def test_table_says_dtype_with_shape():
  tree = {'a': jnp.zeros((2, 3), jnp.bfloat16), 'b': jnp.int32(1)}
  assert leaves.leaf_table(leaves.named_leaves(tree)) == {'a': 'bfloat16[2,3]', 'b': 'int32[]'}


def test_masked_optimizer_leaves_have_no_name():
  params = {'a': jnp.zeros(3), 'b': jnp.zeros(2)}
  state = optax.masked(optax.trace(0.9), {'a': True, 'b': False}).init(params)
  assert [name.rsplit('/', 1)[-1] for name in leaves.named_leaves(state)] == ['a']


def test_nest_undoes_the_names():
  assert leaves.nest({'a/b': 1, 'a/c/d': 2, 'e': 3}) == {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}


def test_equal_tables_pass():
  leaves.require_same_leaves({'a': 'int32[]', 'b': 'int32[2]'}, {'b': 'int32[2]', 'a': 'int32[]'}, 'x')


def test_each_difference_is_named():
  found = {'same': 'int32[]', 'dtype': 'float32[2]', 'shape': 'float32[2]', 'extra': 'float32[5]'}
  wanted = {'same': 'int32[]', 'dtype': 'bfloat16[2]', 'shape': 'float32[3]', 'missing': 'int32[7]'}
  with pytest.raises(UserError) as caught:
    leaves.require_same_leaves(found, wanted, 'here')
  text = str(caught.value)
  assert text.startswith('here does not fit')
  assert 'dtype: wanted bfloat16[2], found float32[2]' in text
  assert 'shape: wanted float32[3], found float32[2]' in text
  assert 'extra: wanted nothing, found float32[5]' in text
  assert 'missing: wanted int32[7], found nothing' in text
  assert 'same' not in text.replace('those', '')


def test_many_differences_stay_short():
  with pytest.raises(UserError) as caught:
    leaves.require_same_leaves({f'p{i}': 'int32[]' for i in range(100)}, {}, 'here')
  assert len(str(caught.value).splitlines()) < 20 and '88 more' in str(caught.value)
