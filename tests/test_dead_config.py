"""Every config key does something: changed, it changes the program, the rows, or what a run writes."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from llamax.checkpoint.manager import SaveError
from llamax.cli.main import main
from llamax.core import config as config_module
from llamax.core.config import fields_of
from llamax.core.exits import Stop
from llamax.data import source
from llamax.parallel.watchdog import BUDGETS, Watchdog
from llamax.train import loop
from llamax.train.guard import Guard, Spike
from llamax.train.program import make_program
from llamax.train.state import init_state

# Key -> another value; what has to be so for the key to matter.
WEIGHTS = {'model.init': 'fan_in', 'model.init_std': 0.5, 'train.seed': 5}
PROGRAM = {
  'model.vocab_size': (640, {}),
  'model.d_model': (48, {}),
  'model.num_layers': (3, {}),
  'model.num_heads': (8, {}),
  'model.num_kv_heads': (4, {}),
  'model.head_dim': (16, {}),
  'model.d_ff': (96, {}),
  'model.mlp': ('relu2', {}),
  'model.norm': ('layernorm', {}),
  'model.position': ('none', {}),
  'model.norm_eps': (1e-3, {}),
  'model.tie_embeddings': (False, {'model.tie_embeddings': True}),
  'model.qk_norm': (True, {}),
  'model.qkv_bias': (True, {}),
  'model.out_bias': (True, {}),
  'model.mlp_bias': (True, {}),
  'model.sliding_window': (16, {}),
  'model.rope_theta': (500.0, {}),
  'model.rope_scaling': ('linear', {'model.rope_factor': 4.0}),
  'model.rope_factor': (3.0, {'model.rope_scaling': 'linear', 'model.rope_factor': 4.0}),
  'model.rope_original_max_len': (77, {'model.rope_scaling': 'llama3', 'model.rope_factor': 4.0}),
  'model.rope_low_freq_factor': (2.0, {'model.rope_scaling': 'llama3', 'model.rope_factor': 4.0}),
  'model.rope_high_freq_factor': (9.0, {'model.rope_scaling': 'llama3', 'model.rope_factor': 4.0}),
  'model.rope_beta_fast': (
    4.0,
    {'model.rope_scaling': 'yarn', 'model.rope_factor': 4.0, 'model.rope_theta': 100.0, 'model.head_dim': 16},
  ),
  'model.rope_beta_slow': (
    3.0,
    {'model.rope_scaling': 'yarn', 'model.rope_factor': 4.0, 'model.rope_theta': 100.0, 'model.head_dim': 16},
  ),
  'model.dropout': (0.1, {}),
  'model.mup_base_width': (16, {'model.tie_embeddings': False}),
  'compute.param_dtype': ('bfloat16', {}),
  'compute.compute_dtype': ('bfloat16', {}),
  'compute.attention': ('splash', {}),
  'compute.splash_block': (64, {'compute.attention': 'splash', 'data.seq_len': 128}),
  'compute.remat': ('full', {}),
  'compute.scan_layers': (False, {}),
  'compute.loss_chunks': (4, {}),
  'mesh.data': (2, {'mesh.fsdp': 4}),
  'mesh.fsdp': (2, {'mesh.data': 2, 'mesh.fsdp': 4}),
  'mesh.tensor': (2, {'mesh.fsdp': 4}),
  'data.seq_len': (32, {}),
  'optim.b1': (0.5, {}),
  'optim.b2': (0.5, {}),
  'optim.eps': (1e-3, {}),
  'optim.weight_decay': (0.3, {}),
  'optim.decay': (('table',), {}),
  'optim.clip_norm': (None, {}),
  'optim.learning_rate': (1.0, {}),
  'optim.schedule': ('linear', {}),
  'optim.warmup_steps': (7, {}),
  'optim.decay_steps': (3, {'optim.schedule': 'wsd', 'optim.decay_steps': 5}),
  'optim.end_lr_fraction': (0.5, {}),
  'train.num_steps': (40, {}),
  'train.batch_size': (16, {}),
  'train.batch_tokens': (1024, {'train.batch_size': None, 'train.batch_tokens': 512}),
  'train.grad_accum': (2, {'mesh.fsdp': 4, 'mesh.data': 1}),
  'train.z_loss': (0.1, {}),
}
# One value each so far: all that another can do is be refused.
ONLY_ONE = {'optim.name', 'model.attention'}


def program_text(tiny_config, **changes):
  # The loss is asked for in chunks, the batch for every mesh here.
  cfg = tiny_config(**{'train.batch_size': 8, **changes})
  sizes = [getattr(cfg.mesh, axis) for axis in ('data', 'fsdp', 'tensor')]
  count = 8 if -1 in sizes else sizes[0] * sizes[1] * sizes[2]
  try:
    program = make_program(cfg, jax.devices()[:count])
  except ValueError as refusal:
    return str(refusal)
  with jax.set_mesh(program.mesh):
    shapes = str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), program.state))
    return program.step.lower(program.state, program.batch).as_text() + shapes


@pytest.mark.parametrize('key', sorted(PROGRAM))
def test_changing_the_key_changes_the_program(tiny_config, key):
  value, context = PROGRAM[key]
  assert program_text(tiny_config, **context) != program_text(tiny_config, **{**context, key: value})


@pytest.mark.parametrize('key', sorted(ONLY_ONE))
def test_the_only_value_is_looked_up(tiny_config, key):
  with pytest.raises(ValueError, match=f"{key}='no_such' is not known"):
    make_program(tiny_config(**{key: 'no_such'}), jax.devices())


@pytest.mark.parametrize('key', sorted(WEIGHTS))
def test_changing_the_key_changes_the_first_weights(tiny_config, key):
  def weights(**changes):
    cfg = tiny_config(**changes)
    program = make_program(cfg, jax.devices())
    state = init_state(program.model, program.tx, program.mesh, cfg.train.seed)
    return jax.device_get(state.params['layers']['mlp']['w_up'])

  assert (weights() != weights(**{key: WEIGHTS[key]})).any()


def what_only_trouble_reads(cfg, tmp_path, monkeypatch):
  """A save that fails, a step that takes long, processes that are waited for."""

  def fail(*args):
    raise SaveError('no room')

  with monkeypatch.context() as broken:
    broken.setattr('llamax.checkpoint.manager.Checkpoints.save', fail)
    with pytest.raises(Stop, match='no room'):
      loop.run(cfg, tmp_path / 'failed', say=lambda text: None)
  watchdog = Watchdog(cfg.watchdog, tmp_path)
  watchdog._paces.append(1.0)
  assert all(watchdog._budget(phase) > 0 for phase in BUDGETS)
  with monkeypatch.context() as alone:
    alone.setattr('llamax.cli.configure.load', lambda *args: (cfg, {}))
    alone.setattr('llamax.parallel.hosts.start', lambda *args, **options: (_ for _ in ()).throw(Stop(0, '')))
    assert main(['train', '--config=x', f'--workdir={tmp_path / "other"}']) == 0


def test_every_other_key_is_read_by_a_run(run_config, tmp_path, monkeypatch, tiny_data):
  core = str(Path(config_module.__file__).parent)
  read = set()

  def watch(cls):
    plain = cls.__getattribute__

    def reading(self, name):
      caller = sys._getframe(1).f_code.co_filename
      if name in cls.__dataclass_fields__ and not caller.startswith((core, dataclasses.__file__, '<')):
        read.add((cls.__name__, name))
      return plain(self, name)

    monkeypatch.setattr(cls, '__getattribute__', reading)

  cfg = run_config(**{'compute.compilation_cache': str(tmp_path / 'cache'), 'train.num_steps': 4})
  for cls in vars(config_module).values():
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
      watch(cls)
  shared = jax.config.jax_compilation_cache_dir
  loop.run(cfg, tmp_path / 'run', say=lambda text: None)
  jax.config.update('jax_compilation_cache_dir', shared)
  what_only_trouble_reads(cfg, tmp_path, monkeypatch)
  # A tfds source is looked up, then handed to prepare: no dataset is needed to see what is read.
  builder = SimpleNamespace(data_dir='elsewhere', info=SimpleNamespace(full_name='no_such'))
  with monkeypatch.context() as fake:
    fake.setattr(source, 'open_builder', lambda name, data_dir: builder)
    fake.setattr(source, 'prepare', lambda settings: (_ for _ in ()).throw(ValueError(settings.inputs)))
    with pytest.raises(ValueError, match='no_such'):
      source.open_source('tfds:no_such', 'train', cfg.data, source.find_tokenizer(cfg.data))
  with monkeypatch.context() as quiet:
    quiet.setattr('llamax.observe.writer.WandbSink', lambda *args: (_ for _ in ()).throw(ModuleNotFoundError()))
    from llamax.observe.writer import make_writers

    make_writers(dataclasses.replace(cfg.log, wandb=True), tmp_path, {}, warn=lambda text: None).close()
  # Nothing goes wrong in this run: what it would do then is asked for.
  guard = Guard(cfg.guard, {}, ())
  guard.see(float('nan'), True)
  guard.roll_back(Spike(5, 9.0), [])
  covered = {key for key in (*PROGRAM, *WEIGHTS)} | ONLY_ONE
  sections = {name: cls for name, cls in config_module.Config.__annotations__.items()}
  missing = []
  for key in fields_of():
    section, name = key.split('.')
    cls = sections[section]
    if key not in covered and ((cls if isinstance(cls, str) else cls.__name__), name) not in read:
      missing.append(key)
  assert not missing
