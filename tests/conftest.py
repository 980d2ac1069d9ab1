"""What every test stands on: CPU, 8 virtual devices, strict jax, warnings as errors, no network."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    # A step compiles in a quarter of the time; jaxlibs that no longer know this option take no notice of it.
    '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters',
  ]
)
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['WANDB_MODE'] = 'offline'

import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

# Tests compile the same small programs again and again: one folder keeps them, for workers and children too.
PROGRAMS = os.environ['LLAMAX_TEST_PROGRAMS'] = os.environ.get('LLAMAX_TEST_PROGRAMS') or tempfile.mkdtemp()
os.environ['JAX_COMPILATION_CACHE_DIR'] = PROGRAMS
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.05'

import jax
import pytest

# A shell that starts a job in the background has it ignore Ctrl-C, and so all that the job starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tiny programs: compiling them well costs more than running them slowly.
jax.config.update('jax_disable_most_optimizations', True)


def pytest_addoption(parser):
  parser.addoption(
    '--scale',
    choices=('quick', 'ci', 'soak'),
    default='quick',
    help='how much is tried of what can be tried often: that of make test, make faults or make soak',
  )


def pytest_configure(config):
  config.addinivalue_line('filterwarnings', 'error')
  # Not ours to mend: raised inside libraries on import or at exit.
  for quiet in (
    'ignore::DeprecationWarning:etils.*',
    'ignore::DeprecationWarning:tensorflow_datasets.*',
    'ignore::DeprecationWarning:google.*',
    'ignore:.*pkg_resources.*',
    'ignore::pytest.PytestUnraisableExceptionWarning',
    'ignore::ResourceWarning',
    'ignore:.*os.fork.*',
    'ignore:.*use of fork.*',
    # Of the folder of programs: one that a killed process was writing is compiled again.
    'ignore:Error reading persistent compilation cache entry.*',
  ):
    config.addinivalue_line('filterwarnings', quiet)


def pytest_collection_modifyitems(config, items):
  """The limit of a test is that of quick runs: for longer ones it is lifted, what they start has its own."""
  if config.getoption('--scale') != 'quick':
    for item in items:
      if not item.get_closest_marker('timeout'):
        item.add_marker(pytest.mark.timeout(0))


def pytest_unconfigure(config):
  if not hasattr(config, 'workerinput'):
    shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
  """Keeps what is remembered of verified data out of the home folder."""
  os.environ['LLAMAX_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """A test that reaches beyond this machine fails."""
  connect = socket.socket.connect

  def guarded(self, address):
    host = address[0] if isinstance(address, tuple) else 'localhost'
    if host not in ('localhost', '127.0.0.1', '::1'):
      raise RuntimeError(f'a test reached for the network: {address}')
    return connect(self, address)

  monkeypatch.setattr(socket.socket, 'connect', guarded)


@pytest.fixture
def tiny_config():
  """(**{'section.key': value}) -> Config: configs/debug.py with changes, nothing read from the home folder."""
  from llamax.cli.configure import load, resolve
  from llamax.core.config import flatten, unflatten

  def make(**changes):
    config, _ = load(str(ROOT / 'configs/debug.py'), [('compute.compilation_cache', 'none')])
    return resolve(unflatten(flatten(config.to_mapping()) | changes))

  return make


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
  """Path of a prepared dataset: some of the standard library, 512 ids."""
  import shutil

  from llamax.data.prepare import Settings, prepare

  folder = tmp_path_factory.mktemp('text')
  library = Path(os.__file__).parent
  for name in (
    'bisect',
    'colorsys',
    'contextlib',
    'heapq',
    'keyword',
    'operator',
    'sched',
    'string',
    'textwrap',
  ):
    for part in range(3):  # Several documents from one module: a validation split needs some.
      lines = (library / f'{name}.py').read_text().splitlines(keepends=True)
      (folder / f'{name}_{part}.txt').write_text(''.join(lines[part::3]))
    shutil.copy(library / f'{name}.py', folder / f'{name}.txt')
  out = tmp_path_factory.mktemp('prepared') / 'tiny'
  prepare(Settings(inputs=(str(folder),), out=str(out), vocab_size=512, workers=1), say=lambda text: None)
  return out


@pytest.fixture
def run_config(tiny_config, tiny_data):
  """(**changes) -> Config of a whole run of a few steps on `tiny_data`, every step logged."""

  def make(**changes):
    settings = {
      'data.sources': (str(tiny_data),),
      'eval.splits': (f'validation={tiny_data}:validation',),
      'data.seq_len': 32,
      'train.num_steps': 8,
      'mesh.data': 2,
      'mesh.fsdp': 2,
      'mesh.tensor': 2,
      'log.every': 1,
      'checkpoint.every': 3,
      'eval.every': 4,
      'eval.num_batches': 2,
      'sample.max_new_tokens': 4,
    }
    return tiny_config(**settings | changes)

  return make
