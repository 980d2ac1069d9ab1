"""llamax's own folders, judged by the safetensors library, by plain orbax, by generation."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from llamax import api
from llamax.checkpoint import chunks, digests, leaves
from llamax.checkpoint.manager import Checkpoints
from llamax.cli.main import main
from llamax.convert import copy, hf, native
from llamax.convert.errors import FormatError
from llamax.convert.target import Model
from llamax.core import storage
from llamax.core.errors import UserError
from llamax.train.program import make_program

from .conftest import FAMILIES, read_weights, same

DIVISIBLE = {'vocab_size': 62}


def convert(source, destination, *words):
  return main(['convert', str(source), str(destination), *words])


def copied(source, target, destination):
  steps = copy.make_plan(source, target, None)
  copy.copy(source, target, steps, destination, {}, threads=2, progress=lambda n: None, say=lambda text: None)


def made_of(source, **options):
  model = Model(source.cfg, source.family, source.tokenizer, source.generation)
  return native.Target(model, **options)


@pytest.fixture(scope='module')
def made():
  """Where the run of `workdir` is, once it is made."""
  return []


@pytest.fixture
def workdir(made, run_config, tiny_data, tmp_path_factory, tmp_path):
  """That of a run with checkpoints of steps 3, 7, as the trainer leaves it; no step of it was trained."""
  if not made:
    made.append(tmp_path_factory.mktemp('run'))
    config = run_config()
    state = make_program(config, jax.devices()).state
    with Checkpoints(made[0] / 'checkpoints', config.checkpoint) as checkpoints:
      for step in (3, 7):
        rng = np.random.default_rng(step)
        filled = jax.tree.map(
          lambda x, rng=rng: jax.device_put(rng.normal(0, 0.1, x.shape).astype(x.dtype), x.sharding), state
        )
        checkpoints.save(step, filled, {'config': config.to_mapping()})
    storage.write_json(made[0] / 'config.json', config.to_mapping())
    shutil.copy(Path(tiny_data) / 'tokenizer.model', made[0] / 'tokenizer.model')
  return shutil.copytree(made[0], tmp_path / 'run')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('family', FAMILIES)
def test_there_and_back_is_the_same(make_hf, tmp_path, family, dtype):
  folder, weights = make_hf(dtype=dtype, **FAMILIES[family])
  assert convert(folder, tmp_path / 'ours', '--to=llamax') == 0
  assert convert(tmp_path / 'ours', tmp_path / 'back', '--to=hf') == 0
  assert same(read_weights(tmp_path / 'back'), weights)
  first, second = hf.open_source(folder, None), hf.open_source(tmp_path / 'back', None)
  assert second.cfg == first.cfg and second.family == first.family and second.generation == first.generation


def test_orbax_finds_each_layer_where_the_model_has_it(make_hf, tmp_path):
  folder, weights = make_hf(dtype='bfloat16')
  assert convert(folder, tmp_path / 'ours', '--to=llamax') == 0
  with ocp.PyTreeCheckpointer() as reader:
    found = reader.restore(tmp_path / 'ours/checkpoints/0/state')['params']
  D, N, H = 24, 6, 8
  for layer in range(3):
    q = weights[f'model.layers.{layer}.self_attn.q_proj.weight']
    o = weights[f'model.layers.{layer}.self_attn.o_proj.weight']
    assert (found['layers']['attn']['wq'][layer] == q.T.reshape(D, N, H)).all()
    assert (found['layers']['attn']['wo'][layer] == o.T.reshape(N, H, D)).all()
    down = weights[f'model.layers.{layer}.mlp.down_proj.weight']
    assert (found['layers']['mlp']['w_down'][layer] == down.T).all()
  assert (found['lm_head']['kernel'] == weights['lm_head.weight'].T).all()
  config = json.loads((tmp_path / 'ours/config.json').read_text())
  assert config['compute']['param_dtype'] == 'bfloat16' and config['model']['d_model'] == D
  assert config['data']['seq_len'] == 128  # All that the model has positions for.
  assert main(['checkpoint', 'verify', str(tmp_path / 'ours')]) == 0


def test_each_device_of_a_mesh_has_files_of_its_own(make_hf, tmp_path, monkeypatch):
  monkeypatch.setattr(chunks, 'LEAST', 64)
  folder, weights = make_hf(**DIVISIBLE)
  assert convert(folder, tmp_path / 'ours', '--to=llamax', '--mesh=fsdp=4,tensor=2') == 0
  files = {path.name for path in (tmp_path / 'ours/checkpoints/0/state/params.layers.attn.wq').iterdir()}
  assert files == {'.zarray'} | {f'{layer}.{i}.{j}.0' for layer in range(3) for i in range(4) for j in range(2)}
  assert convert(tmp_path / 'ours', tmp_path / 'back', '--to=hf') == 0
  assert same(read_weights(tmp_path / 'back'), weights)
  meta = json.loads((tmp_path / 'ours/checkpoints/0/meta/metadata').read_text())
  assert meta['mesh'] == {'data': 1, 'fsdp': 4, 'tensor': 2}


@pytest.mark.parametrize(
  ('mesh', 'why'),
  [
    ('fspd=4', "there is no axis 'fspd'. Did you mean 'fsdp'"),
    ('fsdp', "'fsdp': want fsdp=NUMBER"),
    ('fsdp=-1', "'fsdp=-1': want fsdp=NUMBER"),
    ('fsdp=5', 'mesh.fsdp=5 does not divide dim D=24'),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(make_hf, tmp_path, capsys, mesh, why):
  folder, _ = make_hf(**DIVISIBLE)
  assert convert(folder, tmp_path / 'ours', '--to=llamax', f'--mesh={mesh}') == 2
  assert why in capsys.readouterr().err


def test_a_run_converted_to_llamax_says_the_same(workdir, tmp_path):
  source = native.open_source(workdir, None)
  assert any('the optimizer is left out' in note for note in source.notes)
  copied(source, made_of(source), tmp_path / 'copy')
  before, after = api.load(workdir), api.load(tmp_path / 'copy')
  text = 'def main():'
  assert before.step == 7 and after.step == 0
  # The copy has a mesh of its own: sums are taken in another order.
  np.testing.assert_allclose(after.logits(text), before.logits(text), rtol=0, atol=1e-4)
  options = {'max_new_tokens': 4, 'temperature': 0.0}
  assert after.generate(text, **options)[0].text == before.generate(text, **options)[0].text


def test_steps_are_chosen_by_number_or_newest_whole(workdir):
  def first_scale(step=None, **options):
    source = native.open_source(workdir, None, step, **options)
    return source.entry('embed/table').read(0, 1), source

  third, _ = first_scale(3)
  seventh, _ = first_scale(7)
  newest, source = first_scale()
  assert not (third == seventh).all() and (newest == seventh).all()
  assert source.files[0] == workdir / 'checkpoints/7/digests.json'
  with pytest.raises(UserError, match=r'--step=5: .* has the steps 3, 7'):
    first_scale(5)
  data = next(path for path in (workdir / 'checkpoints/7/state').rglob('*') if path.stat().st_size > 10_000)
  content = bytearray(data.read_bytes())
  content[5000] ^= 1
  data.write_bytes(content)
  newest, source = first_scale()
  assert (newest == third).all() and any('7 is damaged' in note for note in source.notes)
  assert first_scale(digests=False)[1].files[0] == workdir / 'checkpoints/7/digests.json'
  with pytest.raises(FormatError, match='is damaged'):
    first_scale(7)
  (workdir / 'checkpoints/3/meta/metadata').unlink()
  with pytest.raises(FormatError, match=r'7 is damaged.*3 is damaged'):
    first_scale()


def test_no_run_goes_on_in_a_folder_of_weights(make_hf, tmp_path, capsys):
  folder, _ = make_hf()
  assert convert(folder, tmp_path / 'ours', '--to=llamax') == 0
  assert main(['train', '--config=configs/debug.py', f'--workdir={tmp_path / "ours"}']) == 2
  assert f'--config.train.init_from={tmp_path / "ours"} with another --workdir' in capsys.readouterr().err


def test_what_a_killed_copy_left_is_gone_on_from(make_hf, tmp_path, monkeypatch):
  folder, weights = make_hf()
  write, move = native.Target.write, storage.move

  def dies(self, name, start, block):
    if name == 'layers/2/mlp/w_up':
      raise KeyboardInterrupt
    write(self, name, start, block)

  def dies_at_last(source, target):
    if target.name == 'ours':
      raise KeyboardInterrupt
    move(source, target)

  for name, broken in (('write', dies), ('move', dies_at_last)):
    with monkeypatch.context() as trouble:
      trouble.setattr(native.Target if name == 'write' else storage, name, broken)
      with pytest.raises(KeyboardInterrupt):
        source = hf.open_source(folder, None)
        copied(source, made_of(source), tmp_path / 'ours')
    assert not (tmp_path / 'ours').exists()
  source = hf.open_source(folder, None)
  copied(source, made_of(source), tmp_path / 'ours')
  assert digests.verify(tmp_path / 'ours/checkpoints/0') == []
  assert not list(tmp_path.glob('*.incomplete*'))
  assert convert(tmp_path / 'ours', tmp_path / 'back', '--to=hf') == 0
  assert same(read_weights(tmp_path / 'back'), weights)


def test_what_llamax_cannot_hold_is_refused(make_hf, tmp_path, capsys):
  folder, _ = make_hf(dtype='float16')
  assert convert(folder, tmp_path / 'ours', '--to=llamax') == 2
  assert 'give --dtype=float32 or --dtype=bfloat16' in capsys.readouterr().err
  assert convert(folder, tmp_path / 'ours', '--to=llamax', '--dtype=float32') == 0
  source = hf.open_source(folder, None)
  target = made_of(source)
  target.dtype_of('embed/table', np.dtype(np.float32))
  with pytest.raises(UserError, match='final_norm/scale is bfloat16, others are float32'):
    target.dtype_of('final_norm/scale', np.dtype(ml_dtypes.bfloat16))


def meta_changed(folder, change):
  path = folder / 'checkpoints/0/meta/metadata'
  meta = json.loads(path.read_text())
  change(meta)
  path.write_text(json.dumps(meta))
  (folder / 'checkpoints/0/digests.json').unlink()
  digests.write(folder / 'checkpoints/0')


@pytest.mark.parametrize(
  ('change', 'why'),
  [
    (lambda m: m['config']['model'].update(num_layers=4), 'layers'),
    (lambda m: m['config']['model'].update(num_layers=10**9), 'at most 10000'),
    (lambda m: m['config']['model'].update(d_model=25), 'do not fit'),
    (lambda m: m['config']['model'].update(mlp='no_such'), 'no_such'),
    (lambda m: m['config']['model'].pop('norm_eps'), 'norm_eps'),
    (lambda m: m.update(config=[]), 'want a mapping'),
    (lambda m: m.pop('config'), 'want a mapping'),
    (lambda m: m['leaves'].update({'params/../../x': 'float32[1]'}), 'cannot be read'),
    (lambda m: m['leaves'].pop('params/embed/table'), 'embed/table'),
  ],
)
def test_lies_in_the_meta_data_are_named(make_hf, tmp_path, change, why):
  folder, _ = make_hf()
  convert(folder, tmp_path / 'ours', '--to=llamax')
  meta_changed(tmp_path / 'ours', change)
  with pytest.raises(UserError, match=why):
    native.open_source(tmp_path / 'ours', None).places  # noqa: B018


def test_models_of_our_own_parts_travel_to_llamax(workdir, tmp_path, tiny_config):
  config = tiny_config(**{'model.norm': 'layernorm', 'model.mlp': 'relu2'})
  assert {row.ours for row in native.rows(config.model)} > {'layers/*/attn_norm/bias', 'layers/*/mlp/w_up'}
  names = {row.theirs for row in native.rows(dataclasses.replace(config.model, tie_embeddings=True))}
  assert 'lm_head/kernel' not in names


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_bytes_of_a_run_arrive(workdir, tmp_path):
  source = native.open_source(workdir, None)
  copied(source, made_of(source), tmp_path / 'copy')
  with ocp.PyTreeCheckpointer() as reader:
    before = leaves.named_leaves(reader.restore(workdir / 'checkpoints/7/state')['params'])
    after = leaves.named_leaves(reader.restore(tmp_path / 'copy/checkpoints/0/state')['params'])
  assert {name: np.asarray(x).tobytes() for name, x in before.items()} == {
    name: np.asarray(x).tobytes() for name, x in after.items()
  }


def test_a_bit_that_flipped_in_a_conversion_is_found_as_it_is_read(make_hf, tmp_path, capsys):
  folder, _ = make_hf()
  ours = tmp_path / 'ours'
  assert main(['convert', str(folder), str(ours), '--to=llamax']) == 0
  state = ours / 'checkpoints/0/state'
  numbers = [file for file in sorted(state.glob('params.*/*')) if file.name[0] != '.']
  assert len(numbers) >= 12
  for index, file in enumerate(numbers[::3]):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1 << index % 8
    original, _ = file.read_bytes(), file.write_bytes(content)
    assert main(['convert', str(ours), str(tmp_path / 'back'), '--to=hf']) == 2
    assert file.name in capsys.readouterr().err
    assert not (tmp_path / 'back').exists()
    file.write_bytes(original)
  assert main(['convert', str(ours), str(tmp_path / 'back'), '--to=hf']) == 0
