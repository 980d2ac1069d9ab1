"""llamax from Python: the public names, a run's folder loaded back."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import llamax
from llamax import api
from llamax.checkpoint.manager import Checkpoints
from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from llamax.model.llama import Llama, init_params, settle
from tests.data.tokenizers import made


@pytest.fixture(scope='session')
def finished(tiny_data, tmp_path_factory):
  """A folder with two checkpoints, of steps 3 and 5, of untrained models; and their parameters by step."""
  workdir = tmp_path_factory.mktemp('runs') / 'first'
  workdir.mkdir()
  config = api.load_config('configs/debug.py', {'compute.compilation_cache': None, 'sample.max_new_tokens': 6})
  (workdir / 'config.json').write_text(json.dumps(config.to_mapping()))
  shutil.copy(tiny_data / 'tokenizer.model', workdir)
  model = Llama(config.model, settle(config.compute, 'cpu'))
  init = jax.jit(lambda seed: init_params(model, jax.random.key(seed)))
  params = {step: init(step) for step in (3, 5)}
  with Checkpoints(workdir / 'checkpoints', config.checkpoint) as checkpoints:
    for step, tree in params.items():
      checkpoints.save(step, {'params': tree, 'opt_state': jax.numpy.zeros(2)}, {'config': config.to_mapping()})
  return workdir, params


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy to spoil."""
  return shutil.copytree(finished[0], tmp_path / 'first')


def test_import_is_instant():
  code = (
    'import sys, llamax\n'
    'assert not {"jax", "flax", "orbax", "numpy"} & set(sys.modules), sorted(sys.modules)\n'
    'assert llamax.__version__ == "0.1.0"\n'
    'assert callable(llamax.train)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_train_is_a_package_too():
  import llamax.train.state as by_dots
  from llamax.train.state import TrainState

  assert llamax.train.state is by_dots
  assert by_dots.TrainState is TrainState
  assert callable(llamax.train)


def test_unknown_names_are_attribute_errors():
  with pytest.raises(AttributeError, match="has no attribute 'lode'"):
    llamax.lode  # noqa: B018


def test_train_takes_a_config_a_mapping_or_a_path(monkeypatch, tiny_config):
  from llamax.train import loop

  monkeypatch.setattr(loop, 'run', lambda config, workdir: (config, workdir))
  config = tiny_config()
  assert llamax.train(config, 'x') == (config, 'x')
  assert llamax.train(config.to_mapping(), 'x') == (config, 'x')
  assert llamax.train('configs/debug.py', 'y')[0].model == config.model
  with pytest.raises(UserError, match='config has no key'):
    llamax.train(config.to_mapping() | {'modle': {}}, 'x')


def test_load_config_overrides():
  config = llamax.load_config('configs/debug.py', {'optim.learning_rate': 1, 'eval.splits': ['a=b:c, d']})
  assert config.optim.learning_rate == 1.0
  assert config.eval.splits == ('a=b:c, d',)
  assert llamax.load_config('configs/base.py', {'model.preset': 'llama_7b'}).model.d_model == 4096
  with pytest.raises(UserError, match=r"no key 'optim.lr'"):
    llamax.load_config('configs/debug.py', {'optim.lr': 1})


def test_load_gives_the_newest_or_the_step_asked_for(finished):
  workdir, params = finished
  for asked, step in ((None, 5), (3, 3), (5, 5)):
    loaded = llamax.load(workdir, asked)
    assert loaded.step == step
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params[step])
  assert len(loaded.params['embed']['table'].sharding.device_set) == 8
  assert loaded.compute.compute_dtype == 'float32'


def test_loaded_speaks(finished):
  loaded = llamax.load(finished[0])
  one, two = loaded.generate(['def ', ''], seed=1)
  assert len(one.ids) == 6 and len(two.ids) == 6  # The config's sample.max_new_tokens.
  (same,) = loaded.generate('def ', seed=1)
  assert same.ids == one.ids
  pieces = []
  stream = loaded.stream('def ', seed=1)
  for piece in stream:
    assert jax.sharding.get_abstract_mesh().empty
    pieces.append(piece)
  assert ''.join(pieces) == one.text


def test_logits_are_those_of_the_plain_forward(finished):
  loaded = llamax.load(finished[0], 3)
  ids = loaded.tokenizer.encode('class A:', bos=True)
  tokens = np.asarray([ids], np.int32)
  forward = jax.jit(Llama(loaded.model_cfg, loaded.compute).apply)
  positions = np.arange(len(ids), dtype=np.int32)[None]
  out = forward({'params': finished[1][3]}, tokens, positions, np.ones_like(tokens))
  found = loaded.logits('class A:')
  np.testing.assert_allclose(found, np.asarray(out.hidden_BTD[0] @ out.head_DV), atol=1e-6)


def test_bad_texts_and_options(finished):
  loaded = llamax.load(finished[0])
  with pytest.raises(UserError, match='prompt 1 is not text: character 2 has no UTF-8 form'):
    loaded.generate(['a', 'b \udc80'])
  with pytest.raises(UserError, match='prompt 0 is int; want a string'):
    loaded.generate([3])
  with pytest.raises(UserError, match="'temprature' is not known"):
    loaded.generate('a', temprature=1)


def spoil_nothing(workdir):
  return workdir.parent / 'frist'


def spoil_config(workdir):
  (workdir / 'config.json').write_text('{"model": ')
  return workdir


def spoil_key(workdir):
  mapping = json.loads((workdir / 'config.json').read_text())
  del mapping['log']
  (workdir / 'config.json').write_text(json.dumps(mapping))
  return workdir


def spoil_tokenizer(workdir):
  (workdir / 'tokenizer.model').unlink()
  return workdir


def spoil_checkpoints(workdir):
  shutil.rmtree(workdir / 'checkpoints')
  return workdir


@pytest.mark.parametrize(
  'spoil, message',
  [
    (spoil_nothing, r'frist is not the folder of a run: it has no config.json; runs near it: .*/first$'),
    (spoil_config, r'config.json cannot be read'),
    (spoil_key, r"config.json: config lacks 'log'"),
    (spoil_tokenizer, r"tokenizer '.*tokenizer.model' cannot be read"),
    (spoil_checkpoints, r'checkpoints has no checkpoint'),
  ],
)
def test_folders_that_cannot_be_loaded(workdir, spoil, message):
  with pytest.raises(UserError, match=message):
    llamax.load(spoil(workdir))


def test_the_model_is_that_of_the_checkpoint(workdir):
  text = llamax.load(workdir).logits('def')
  mapping = json.loads((workdir / 'config.json').read_text())
  mapping['model']['rope_theta'] = 7.0
  (workdir / 'config.json').write_text(json.dumps(mapping))
  assert np.array_equal(llamax.load(workdir).logits('def'), text)
  (workdir / 'config.json').unlink()
  assert np.array_equal(llamax.load(workdir).logits('def'), text)


def test_a_step_that_is_not_there(finished):
  with pytest.raises(UserError, match='no checkpoint of step 4; it has 3, 5'):
    llamax.load(finished[0], 4)


def test_another_tokenizer_is_refused(workdir, tiny_config, tmp_path):
  config = tiny_config()
  with Checkpoints(workdir / 'checkpoints', config.checkpoint) as checkpoints:
    params = llamax.load(workdir).params
    checkpoints.save(7, {'params': params}, {'tokenizer_fingerprint': 'ab' * 32})
  with pytest.raises(
    UserError, match=r'tokenizer.model has fingerprint .*step 7 was trained with abababababab'
  ):
    llamax.load(workdir)


def test_a_tokenizer_of_any_kind_serves(workdir, tiny_config, tmp_path):
  tok, params = open_tokenizer(made.qwen_folder(tmp_path / 'qwen')), llamax.load(workdir).params
  with Checkpoints(workdir / 'checkpoints', tiny_config().checkpoint) as checkpoints:
    checkpoints.save(7, {'params': params}, {'tokenizer_fingerprint': tok.fingerprint})
  (workdir / 'tokenizer.model').unlink()
  tok.save(workdir)
  loaded = llamax.load(workdir)
  # Qwen begins a prompt with nothing; an empty one needs an id to go on from.
  assert loaded.logits('def x').shape[0] == len(tok.encode('def x'))
  assert loaded.logits('').shape[0] == 1
  (done,) = loaded.generate('def', max_new_tokens=3)
  assert done.text == tok.decode(i for i in done.ids if i != tok.eos_id)


def test_a_mesh_that_does_not_fit_is_said(workdir, capsys):
  mapping = json.loads((workdir / 'config.json').read_text())
  mapping['mesh'] = {'data': 1, 'fsdp': 256, 'tensor': 1}
  (workdir / 'config.json').write_text(json.dumps(mapping))
  assert llamax.load(workdir).mesh.shape['fsdp'] == 8
  assert "not the run's mesh (mesh (data=1, fsdp=256, tensor=1) is for 256 devices" in capsys.readouterr().err
