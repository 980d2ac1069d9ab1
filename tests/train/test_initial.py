"""A run that begins with the weights of a checkpoint: the same ones whatever the format, read once."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.checkpoint.manager import Checkpoints
from llamax.checkpoint.steps import meta
from llamax.cli.main import main
from llamax.convert import copy, formats
from llamax.convert.target import Model
from llamax.core.errors import UserError
from llamax.observe.ledger import read_ledger
from llamax.train import initial, loop
from llamax.train.program import make_program

ROOT = Path(__file__).parent.parent.parent


def converted(source, name, path, **options):
  model = Model(source.cfg, source.family, source.tokenizer, source.generation)
  target = formats.open_target(name, model, **options)
  silent = {'progress': lambda count: None, 'say': lambda text: None}
  copy.copy(source, target, copy.make_plan(source, target, None), path, {}, threads=2, **silent)
  return path


@pytest.fixture(scope='module')
def made():
  return {}


@pytest.fixture
def sources(made, run_config, tiny_data, tmp_path_factory):
  """{format: path} of one set of weights, which no seed of these tests draws."""
  if not made:
    config, root = run_config(), tmp_path_factory.mktemp('sources')
    state = make_program(config, jax.devices()).state
    rng = np.random.default_rng(0)
    filled = jax.tree.map(
      lambda x: jax.device_put(rng.normal(0, 0.05, x.shape).astype(x.dtype), x.sharding), state.params
    )
    with Checkpoints(root / 'run/checkpoints', config.checkpoint) as checkpoints:
      checkpoints.save(5, {'params': filled, 'step': jnp.int32(5)}, {'config': config.to_mapping()})
    shutil.copy(Path(tiny_data) / 'tokenizer.model', root / 'run/tokenizer.model')
    source = formats.open_source(root / 'run')
    made['run'] = root / 'run'
    for name in ('llamax', 'hf'):
      made[name] = converted(source, name, root / name)
  return made


@pytest.fixture
def short(run_config):
  """A run of few steps, nothing drawn, evaluated or cut off."""

  def make(path, **changes):
    settings = {
      'train.num_steps': 3,
      'optim.warmup_steps': 1,
      'eval.every': None,
      'eval.splits': (),
      'sample.prompts': (),
    }
    return run_config(**settings | {'train.init_from': None if path is None else str(path)} | changes)

  return make


def losses(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {line['step']: (line['loss'], line['grad_norm']) for line in lines if 'loss' in line}


def silent(text):
  pass


@pytest.mark.parametrize(
  ('mesh', 'names'), [((1, 1, 1), ('llamax', 'hf')), ((2, 2, 2), ('run', 'llamax', 'hf', 'drawn'))]
)
def test_all_formats_train_alike_to_the_bit(sources, short, tmp_path, mesh, names, monkeypatch):
  count = int(np.prod(mesh))
  devices = jax.devices()[:count]
  monkeypatch.setattr(jax, 'devices', lambda *args: devices)
  sizes = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), mesh, strict=True))
  found = {}
  for name in names:
    loop.run(short(sources.get(name), **{'train.num_steps': 2, **sizes}), tmp_path / name, say=silent)
    found[name] = losses(tmp_path / name)
  assert len(found['hf']) == 2
  drawn = found.pop('drawn', {})
  assert all(other == found['hf'] for other in found.values()) and drawn != found['hf']


def test_it_is_on_record_then_never_read_again(sources, short, tmp_path):
  path = shutil.copytree(sources['hf'], tmp_path / 'hf')
  said = []
  loop.run(short(path), tmp_path / 'run', say=said.append)
  assert f'beginning with the weights of {path} (hf)' in said
  noted = meta(tmp_path / 'run/checkpoints/3')['initial']
  assert noted['path'] == str(path) and noted['format'] == 'hf'
  assert noted['files'][str(path / 'model.safetensors')] == (path / 'model.safetensors').stat().st_size
  (event,) = [line for line in read_ledger(tmp_path / 'run') if line['event'] == 'initial']
  assert event['path'] == str(path)
  shutil.rmtree(path)
  loop.run(short(path, **{'train.num_steps': 5}), tmp_path / 'run', say=silent)
  assert meta(tmp_path / 'run/checkpoints/5')['initial'] == noted
  with pytest.raises(UserError, match=r'train\.init_from: saved .*, now null'):
    loop.run(short(None, **{'train.num_steps': 5}), tmp_path / 'run', say=silent)


def refused(cfg, workdir):
  """The message, the same one before any device is touched as at the start of the run."""
  with pytest.raises(UserError) as early:
    initial.check_initial(cfg, workdir)
  with pytest.raises(UserError) as late:
    loop.run(cfg, workdir, say=silent)
  assert str(early.value) == str(late.value)
  return str(late.value)


def test_another_model_is_told_field_by_field(sources, short, tmp_path, run_config):
  text = refused(short(sources['hf'], **{'model.d_ff': 96, 'model.rope_theta': 5.0}), tmp_path / 'run')
  assert f'model.d_ff: it has {run_config().model.d_ff}, the config 96' in text
  assert '--config.model.rope_theta=10000.0' in text and 'model.d_model' not in text


def test_no_checkpoint_there_is_said_with_the_key(short, tmp_path):
  assert refused(short(tmp_path / 'no'), tmp_path / 'run').startswith(f'train.init_from={tmp_path / "no"}: ')


def test_the_command_refuses_before_it_trains(sources, tmp_path, tiny_data, capsys):
  words = ['train', '--config', str(ROOT / 'configs/debug.py'), f'--workdir={tmp_path / "run"}']
  words += [f'--config.train.init_from={sources["hf"]}', '--config.model.num_layers=3']
  assert main(words) == 2
  assert 'model.num_layers: it has 2, the config 3' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()
  assert main([*words, '--dry_run']) == 2


def test_a_tokenizer_that_spells_otherwise_is_refused(sources, short, tmp_path):
  from llamax.data.prepare import Settings, prepare

  (tmp_path / 'text').mkdir()
  (tmp_path / 'text/a.txt').write_text(Path(shutil.__file__).read_text())
  other = tmp_path / 'prepared'
  prepare(
    Settings(
      inputs=(str(tmp_path / 'text'),), out=str(other), vocab_size=500, workers=1, validation_fraction=0.0
    ),
    say=silent,
  )
  with pytest.raises(UserError, match='another tokenizer than that of the data'):
    loop.run(short(sources['hf'], **{'data.sources': (str(other),)}), tmp_path / 'run', say=silent)


def test_weights_that_are_not_finite_are_refused(sources, short, tmp_path):
  source = formats.open_source(sources['hf'])
  path = shutil.copytree(sources['hf'], tmp_path / 'hf')
  entry = source.entry('layers/1/mlp/w_up')
  file = path / 'model.safetensors'
  content = bytearray(file.read_bytes())
  content[entry.at : entry.at + 4] = np.float32(np.inf).tobytes()
  file.write_bytes(content)
  with pytest.raises(UserError, match=r'NaN or Inf in 1 array\(s\): params/layers/mlp/w_up'):
    loop.run(short(path), tmp_path / 'run', say=silent)


def test_a_damaged_checkpoint_is_refused(sources, short, tmp_path):
  path = shutil.copytree(sources['llamax'], tmp_path / 'llamax')
  chunk = next((path / 'checkpoints/0/state/params.embed.table').glob('0*'))
  content = bytearray(chunk.read_bytes())
  content[100] ^= 1
  chunk.write_bytes(content)
  with pytest.raises(UserError, match=r'params\.embed\.table/0\.0 has digest'):
    loop.run(short(path), tmp_path / 'run', say=silent)


def test_moments_are_fresh(sources, short):
  from llamax.train.loading import load_params
  from llamax.train.state import init_state, state_of

  cfg = short(sources['hf'])
  program = make_program(cfg, jax.devices())
  with jax.set_mesh(program.mesh):
    params = load_params(formats.open_source(sources['hf']), program.state.params)
    state = state_of(params, program.tx, program.state)
  fresh = init_state(program.model, program.tx, program.mesh, 0)
  assert int(state.step) == 0
  for a, b in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(fresh.opt_state), strict=True):
    assert a.sharding == b.sharding and (np.asarray(a) == np.asarray(b)).all()
  # Given away, not copied: there is room for one set.
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
