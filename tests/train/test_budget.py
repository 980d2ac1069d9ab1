"""The memory estimate: exact where it can be, by hand where it is a formula."""

import dataclasses

import jax
import numpy as np
import pytest

from llamax.train.budget import GIB, Budget, estimate, kept_per_token
from llamax.train.program import make_program
from llamax.train.state import init_state

ONE = {'data': 1, 'fsdp': 1, 'tensor': 1}


def settled(cfg, **compute):
  compute = {'attention': 'splash', 'compute_dtype': 'bfloat16'} | compute
  return dataclasses.replace(cfg, compute=dataclasses.replace(cfg.compute, **compute))


def on_first_device(tree):
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_the_state_is_what_a_device_really_holds(tiny_config, sizes):
  mesh = dict(zip(('data', 'fsdp', 'tensor'), sizes, strict=True))
  cfg = tiny_config(**{f'mesh.{axis}': n for axis, n in mesh.items()}, **{'train.batch_size': 16})
  program = make_program(cfg, jax.devices()[: int(np.prod(sizes))])
  state = init_state(program.model, program.tx, program.mesh, 0)
  budget = estimate(program.cfg, mesh)
  assert budget.params == on_first_device(state.params)
  assert budget.opt_state == on_first_device(state.opt_state)
  assert budget.batch == 4 * 4 * 16 // (sizes[0] * sizes[1]) * cfg.data.seq_len


def test_what_a_layer_keeps_of_a_token(tiny_config):
  cfg = tiny_config(
    **{
      'model.d_model': 48,
      'model.num_heads': 6,
      'model.num_kv_heads': 2,
      'model.head_dim': 8,
      'model.d_ff': 80,
    }
  )
  policies = ('full', 'qkv', 'dots', 'none')
  one, two = (dict(zip(policies, kept_per_token(settled(cfg), n, policies), strict=True)) for n in (1, 2))
  kept = {(remat, n): layers[remat][1] for remat in policies[:3] for n, layers in ((1, one), (2, two))}
  stream = 2 * 48  # the residual stream in bfloat16
  assert kept == {
    ('full', 1): stream,
    ('full', 2): stream,
    ('qkv', 1): stream + 2 * 8 * (6 + 2 + 2 + 6),  # q, k, v, what attention gives
    ('qkv', 2): stream + 2 * 8 * (3 + 1 + 1 + 3),
    # q, k, v, attention's way back, gate, up
    ('dots', 1): stream + 2 * (8 * (6 + 2 + 2) + 48 + 2 * 80),
    ('dots', 2): stream + 2 * (8 * (3 + 1 + 1) + 48 + 2 * 40),
  }
  assert one['none'][1] > one['dots'][1]
  assert one['full'][0] == one['dots'][0]


def test_scores_of_pairs_are_kept_by_plain_attention_alone(tiny_config):
  def kept(attention, seq_len):
    cfg = settled(tiny_config(**{'data.seq_len': seq_len}), attention=attention)
    return kept_per_token(cfg, 1, ['none'])[0][1]

  heads = tiny_config().model.num_heads
  assert kept('splash', 256) == kept('splash', 128) == kept('cudnn', 128)
  # Scores in float32 or weights in bfloat16, of 128 keys more, for each head.
  assert kept('xla', 256) - kept('xla', 128) >= 2 * heads * 128
  assert kept('xla', 128) > kept('splash', 128)


def test_the_parts_follow_the_batch_and_the_mesh(tiny_config):
  def budget(sizes=ONE, **changes):
    return estimate(settled(tiny_config(**{'train.batch_size': 16, 'train.grad_accum': 1, **changes})), sizes)

  base = budget()
  assert base.gradients == base.params
  cut = budget(**{'train.grad_accum': 4, 'compute.loss_chunks': 8})
  assert cut.activations * 4 == base.activations
  head = 4 * 32 * 512  # its gradient's sum stands whole on each device
  assert cut.gradients == 2 * base.params + head
  # Logits with exponentials in float32, their gradient in bfloat16; head with its gradient; hidden states.
  assert base.loss == 16 * 64 * 512 * (4 + 4 + 2) + 32 * 512 * (2 + 4) + 16 * 64 * 32 * 2
  assert cut.loss == 4 * 64 // 8 * 512 * (4 + 4 + 2) + 32 * 512 * (2 + 4) + 4 * 64 * 32 * 2
  fsdp = budget(ONE | {'fsdp': 4})
  assert fsdp.activations * 4 == base.activations and fsdp.params < 0.26 * base.params
  tensor = budget(ONE | {'tensor': 2})
  assert tensor.loss < base.loss and tensor.layer < base.layer and tensor.table < base.table


def test_total_and_lines():
  gib = {
    name: n * GIB for name, n in zip(('params', 'opt_state', 'batch', 'gradients'), (1, 2, 0, 1), strict=True)
  }
  budget = Budget(**gib, activations=3 * GIB, layer=GIB // 2, loss=5 * GIB, table=4 * GIB)
  assert (budget.state, budget.total) == (3 * GIB, 12 * GIB)
  (line,) = budget.lines()
  assert 'about 12 GiB' in line and 'state 3 ' in line and 'working space 5 (most for the loss)' in line
