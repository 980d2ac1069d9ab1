"""The real TPU compiler takes each option in the table."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llamax.launch.options import OPTIONS, environment, options
from llamax.launch.tpus import GENERATIONS
from llamax.plan.topology import topology_devices

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='no libtpu here: pip install llamax[tpu]'
)
TOPOLOGIES = {'v4': 'v4:2x2x1', 'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2', 'tpu7x': 'tpu7x:2x2x1'}


def lowered(topology):
  """A function with a collective in it, for two chips."""
  mesh = Mesh(np.array(topology_devices(topology)[:2]), ('fsdp',))
  whole = jax.ShapeDtypeStruct((128, 256), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec('fsdp')))
  return jax.jit(lambda a_BD: (a_BD.T @ a_BD).sum()).lower(whole)


@needs_libtpu
@pytest.mark.parametrize('generation', GENERATIONS)
def test_the_compiler_takes_the_options_of_each_generation(generation):
  program = lowered(TOPOLOGIES[generation])
  table = options(generation, slices=2)
  assert table
  program.compile(compiler_options=table)
  for name, value in table.items():
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"No such compile option: '{name}s'"):
      program.compile(compiler_options={f'{name}s': value})
    with pytest.raises(jax.errors.JaxRuntimeError, match='Failed to parse'):
      program.compile(compiler_options={name: 'neither'})


@needs_libtpu
def test_libtpu_takes_them_from_the_environment(request):
  if request.config.getoption('--scale') not in ('ci', 'soak'):
    pytest.skip('two more processes that load libtpu: --scale=ci')
  code = "from llamax.plan.topology import topology_devices; print(len(topology_devices('v5p:2x2x1')))"

  def run(args):
    env = os.environ | {'LIBTPU_INIT_ARGS': args, 'JAX_PLATFORMS': 'cpu'}
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=60)

  args = environment('v5p', 2, {})['LIBTPU_INIT_ARGS']
  taken = run(args)
  assert taken.returncode == 0 and taken.stdout.split() == ['4'], taken.stderr
  refused = run(args.replace('=true', 's=true', 1))
  assert refused.returncode != 0 and 'Unknown command line flag' in refused.stdout + refused.stderr


def test_the_users_own_come_last():
  env = environment(
    'v5p', 1, {'LIBTPU_INIT_ARGS': '--xla_tpu_prefer_async_allgather_to_allreduce=false', 'A': 'b'}
  )
  assert env['A'] == 'b'
  ours, own = env['LIBTPU_INIT_ARGS'].split()
  assert ours.endswith('=true') and own.endswith('allreduce=false')


@pytest.mark.parametrize('own', ["--x='a", '--x=\'a b\' --y="c"'])
def test_the_users_quotes_stay(own):
  assert environment('v5e', 1, {'LIBTPU_INIT_ARGS': own}) == {'LIBTPU_INIT_ARGS': own}
  ours, _, theirs = environment('v5p', 1, {'LIBTPU_INIT_ARGS': own})['LIBTPU_INIT_ARGS'].partition(' ')
  assert ours.endswith('=true') and theirs == own


def test_one_slice_has_none_of_the_network_between_slices():
  assert options('v5e') == {}
  assert environment('v5e', 1, {'A': 'b'}) == {'A': 'b'}
  assert set(options('v5e', 2)) == {option.name for option in OPTIONS if option.several_slices}


def test_every_option_says_why():
  for option in OPTIONS:
    assert set(option.generations) <= set(GENERATIONS) and option.why.endswith('.')
