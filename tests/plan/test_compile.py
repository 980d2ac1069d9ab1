"""The train step under the real TPU compiler; what is read off its answers."""

import dataclasses
import importlib.util
import re

import jax
import pytest

from llamax.core.errors import UserError
from llamax.parallel.mesh import mesh_sizes
from llamax.plan.compile import CompiledStep, compile_train_step, count_collectives, out_of_memory, report
from llamax.train.budget import GIB, estimate

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='no libtpu here: pip install llamax[tpu]'
)

# Heads as wide as a TPU's lanes, so that the attention kernel is the one of large models. With microbatches on
# this slice the compiler once failed to move the sum of the head's gradient out of their loop.
SMALL = {
  'model.preset': 'llama3_8b',
  'model.d_model': 256,
  'model.num_layers': 2,
  'model.num_heads': 4,
  'model.num_kv_heads': 2,
  'model.head_dim': 128,
  'model.d_ff': 384,
  'model.vocab_size': 1024,
  'model.tie_embeddings': False,
  'compute.attention': 'auto',
  'compute.compute_dtype': 'auto',
  'compute.splash_block': 128,
  'compute.remat': 'full',
  'compute.loss_chunks': 2,
  'data.seq_len': 256,
  'mesh.tensor': 2,
  'mesh.fsdp': -1,
  'train.batch_size': 16,
  'train.batch_tokens': None,
  'train.grad_accum': 2,
}


@pytest.fixture
def fully_optimised():
  """What users run: the rest of the tests has jax compile less well, faster."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@needs_libtpu
def test_the_train_step_compiles_for_a_tpu(tiny_config, fully_optimised):
  cfg = tiny_config(**SMALL)
  step = compile_train_step(cfg, 'v5e:2x4')
  assert step.fits and (step.num_chips, step.num_devices, step.rows) == (8, 8, 2)
  assert (step.cfg.compute.attention, step.cfg.compute.compute_dtype) == ('splash', 'bfloat16')
  # Forward, backward: the kernels are there, nothing stands in for them.
  for kernel in ('splash_mha_fwd', 'splash_mha_dq', 'splash_mha_dkv'):
    assert kernel in step.text
  # Donated: 12 parameters, their two moments, the step with two counts of optax are updated in place.
  assert step.text.count('-alias)') == 3 * 12 + 3
  assert step.whole == 0
  assert step.collectives['all-gather'] >= 7 and step.collectives['all-reduce'] >= 1
  exact = estimate(step.cfg, mesh_sizes(cfg.mesh, 8))
  # The compiler rounds small arrays up to whole tiles.
  assert exact.state + exact.batch <= step.memory.arguments < 1.2 * (exact.state + exact.batch)
  assert step.memory.arguments < step.memory.peak < step.available == 16 * GIB
  assert re.search('^fits +yes$', report(step), re.MULTILINE)


@needs_libtpu
def test_a_step_that_is_too_large_says_what_to_change(tiny_config, fully_optimised):
  step = compile_train_step(
    tiny_config(**SMALL | {'train.batch_size': 2**17, 'compute.remat': 'qkv'}), 'v5e:2x4'
  )
  assert not step.fits and step.needed > step.available == int(15.75 * GIB)
  text = report(step)
  assert re.search('^fits +NO$', text, re.MULTILINE)
  assert '--config.compute.remat=full' in text
  assert f'--config.train.grad_accum={2**17 // 4} ' in text


@needs_libtpu
def test_a_batch_that_does_not_divide_is_refused_before_compiling(tiny_config):
  with pytest.raises(UserError, match='does not divide over 4 batch shards'):
    compile_train_step(tiny_config(**SMALL | {'train.batch_size': 6}), 'v5e:2x4')


@pytest.mark.parametrize(
  ('message', 'space', 'needed', 'available'),
  [
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.25G '
      'of 15.75G hbm. Exceeded hbm capacity by 2.50G.\n',
      'hbm',
      18.25 * GIB,
      15.75 * GIB,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (113.5G) '
      'exceeds available HBM (15.75G).',
      'hbm',
      113.5 * GIB,
      15.75 * GIB,
    ),
    (
      'Ran out of memory in memory space vmem while allocating a kernel. Used 17.5M of 16.0M vmem.',
      'vmem',
      17.5 * 2**20,
      16 * 2**20,
    ),
  ],
)
def test_out_of_memory_is_read_off_the_message(message, space, needed, available):
  found = out_of_memory(message)
  assert (found.space, found.needed, found.available) == (space, needed, available)


def test_another_error_is_not_out_of_memory():
  assert out_of_memory('INVALID_ARGUMENT: Mosaic failed to compile') is None


def test_collectives_are_counted_by_channel():
  text = """
  %a = bf16[8] all-gather(%x), channel_id=1, dimensions={0}
  %a.again = bf16[8] all-gather(%x), channel_id=1, dimensions={0}
  %s = (bf16[8], bf16[8]) all-gather-start(%y), channel_id=2
  %d = bf16[8] all-gather-done(%s)
  %r = f32[] all-reduce(%all-gather.7), channel_id=3
  %q = f32[] all-reduce(%z)
  """
  assert count_collectives(text) == {'all-gather': 2, 'all-reduce': 2}


def test_report_is_aligned(tiny_config):
  cfg = tiny_config(**SMALL)
  cfg = dataclasses.replace(
    cfg, compute=dataclasses.replace(cfg.compute, attention='xla', compute_dtype='float32')
  )
  step = CompiledStep(
    cfg=cfg,
    topology='v5e:2x4',
    mesh='data=1 x fsdp=4 x tensor=2 (8 x TPU v5 lite)',
    sizes={'data': 1, 'fsdp': 4, 'tensor': 2},
    num_chips=8,
    num_devices=8,
    memory=None,
    needed=20 * GIB,
    available=16 * GIB,
    trace_seconds=1.0,
    compile_seconds=2.0,
    collectives={},
    whole=None,
    text='',
  )
  table, _, _ = report(step).partition('\n\n')
  rows = [re.fullmatch('(\\S.*?)  +(\\S.*)', line) for line in table.splitlines()]
  assert len({row.start(2) for row in rows}) == 1
  assert (
    dict(row.groups() for row in rows).items()
    >= {
      'peak memory': '20.00 GiB per device of 16.00 GiB',
      'on a device at a time': '2 rows x 256 tokens, 2 times a step',
      'fits': 'NO',
    }.items()
  )
