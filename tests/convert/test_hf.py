"""Hugging Face directories, judged by the safetensors library, by transformers where it is present."""

import json
import os
import warnings

import numpy as np
import pytest

from llamax.cli.main import main
from llamax.convert import hf
from llamax.convert.errors import FormatError
from llamax.core.errors import UserError

from .conftest import FAMILIES, read_weights, same, write_weights

LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}


def convert(source, destination, *words):
  return main(['convert', str(source), str(destination), '--from=hf', '--to=hf', *words])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('family', FAMILIES)
def test_bytes_in_are_bytes_out(make_hf, tmp_path, family, dtype):
  folder, weights = make_hf(dtype=dtype, files=2, **FAMILIES[family])
  assert convert(folder, tmp_path / 'out', '--max_shard_bytes=20000') == 0
  assert same(read_weights(tmp_path / 'out'), weights)
  again = hf.open_source(tmp_path / 'out', None)
  assert again.cfg == hf.open_source(folder, None).cfg
  index = json.loads((tmp_path / 'out/model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == sum(w.nbytes for w in weights.values())
  assert set(index['weight_map']) == set(weights)


@pytest.mark.parametrize('spelling', ['rope_scaling', 'rope_parameters'])
@pytest.mark.parametrize('kind', ['llama3', 'linear', 'yarn'])
def test_old_and_new_rope_keys(make_hf, tmp_path, spelling, kind):
  rope = LLAMA3 if kind == 'llama3' else {'rope_type': kind, 'factor': 4.0}
  if kind == 'yarn':
    rope |= {'original_max_position_embeddings': 32}
  changes = {spelling: rope, 'rope_theta': 500.0}
  if spelling == 'rope_parameters':
    changes = {spelling: rope | {'rope_theta': 500.0}}
  folder, _ = make_hf(**changes)
  source = hf.open_source(folder, None)
  assert source.cfg.rope_scaling == kind and source.cfg.rope_theta == 500.0
  assert convert(folder, tmp_path / 'out') == 0
  config = json.loads((tmp_path / 'out/config.json').read_text())
  assert config['rope_theta'] == config['rope_parameters']['rope_theta'] == 500.0
  assert config['rope_scaling']['factor'] == config['rope_parameters']['factor'] == rope['factor']
  assert hf.open_source(tmp_path / 'out', None).cfg == source.cfg


@pytest.mark.parametrize('family', FAMILIES)
def test_transformers_computes_the_same(make_hf, tmp_path, family):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  folder, _ = make_hf(**FAMILIES[family])
  assert convert(folder, tmp_path / 'out') == 0
  ids = torch.arange(60)[None] % 61
  found = []
  for path in (folder, tmp_path / 'out'):
    with warnings.catch_warnings(record=True) as warned:
      warnings.simplefilter('always')
      model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    assert not [w for w in warned if 'transformers' in str(w.filename)]
    with torch.no_grad():
      found.append(model(ids).logits.numpy())
  np.testing.assert_array_equal(*found)


def test_a_copy_of_the_tied_table_is_dropped_another_one_refused(make_hf, tmp_path, capsys):
  folder, weights = make_hf(tie_word_embeddings=True)
  weights['lm_head.weight'] = weights['model.embed_tokens.weight'].copy()
  write_weights(folder, weights)
  assert convert(folder, tmp_path / 'out') == 0
  assert 'lm_head.weight' not in read_weights(tmp_path / 'out')
  weights['lm_head.weight'][60, 23] += 1
  write_weights(folder, weights)
  assert convert(folder, tmp_path / 'out2') == 2
  assert 'lm_head.weight is not model.embed_tokens.weight' in capsys.readouterr().err


def test_missing_extra_misshapen_are_a_table(make_hf, tmp_path, capsys):
  folder, weights = make_hf()
  del weights['model.layers.1.mlp.up_proj.weight']
  weights['model.layers.0.mlp.extra.weight'] = np.zeros((2, 2), np.float32)
  weights['model.norm.weight'] = np.zeros(25, np.float32)
  write_weights(folder, weights)
  assert convert(folder, tmp_path / 'out') == 2
  said = capsys.readouterr().err
  assert '3 tensor(s) do not fit' in said
  for line in (
    'model.layers.1.mlp.up_proj.weight  wanted [40, 24]  found nothing',
    'model.layers.0.mlp.extra.weight    wanted nothing   found [2, 2]',
    'model.norm.weight                  wanted [24]      found [25]',
  ):
    assert line in said
  assert not (tmp_path / 'out').exists() and not (tmp_path / 'out.incomplete').exists()


def test_casting_is_on_purpose(make_hf, tmp_path):
  folder, weights = make_hf()
  assert convert(folder, tmp_path / 'out', '--dtype=bfloat16') == 0
  import ml_dtypes

  assert same(read_weights(tmp_path / 'out'), {n: w.astype(ml_dtypes.bfloat16) for n, w in weights.items()})
  assert json.loads((tmp_path / 'out/config.json').read_text())['dtype'] == 'bfloat16'


def test_what_float16_cannot_hold_is_said(make_hf, tmp_path, capsys):
  folder, weights = make_hf()
  weights['lm_head.weight'][3, 3] = 1e6
  write_weights(folder, weights)
  assert convert(folder, tmp_path / 'out', '--dtype=float16') == 2
  assert 'lm_head.weight holds 1e+06, beyond float16' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('changes', 'word'),
  [
    ({'model_type': 'gpt2'}, 'model_type'),
    ({'hidden_act': 'gelu'}, 'hidden_act'),
    ({'quantization_config': {'bits': 4}}, 'quantised'),
    ({'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, 'dynamic'),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0, 'mscale': 0.7}}, 'mscale'),
    ({'num_key_value_heads': 4}, 'num_key_value_heads'),
    ({'head_dim': 7}, 'head_dim'),
    ({'num_hidden_layers': 2_000_000_000}, 'num_hidden_layers|layers'),
    ({'vocab_size': '61'}, 'vocab_size'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    (
      {'model_type': 'qwen2', 'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 1},
      'max_window',
    ),
  ],
)
def test_configs_that_are_refused_by_name(make_hf, tmp_path, capsys, changes, word):
  import re

  folder, _ = make_hf()
  config = json.loads((folder / 'config.json').read_text()) | changes
  (folder / 'config.json').write_text(json.dumps(config))
  assert convert(folder, tmp_path / 'out') == 2
  assert re.search(word, capsys.readouterr().err)


def test_remote_code_is_reported_never_run(make_hf, tmp_path, capsys):
  folder, _ = make_hf(auto_map={'AutoModelForCausalLM': 'evil.Model'})
  (folder / 'evil.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
  assert convert(folder, tmp_path / 'out') == 0
  assert 'auto_map' in capsys.readouterr().err
  assert not (tmp_path / 'ran').exists()
  assert 'auto_map' not in (tmp_path / 'out/config.json').read_text()


class TestIndex:
  """What a weight_map may not say."""

  def damaged(self, make_hf, change):
    folder, _ = make_hf(files=2)
    path = folder / 'model.safetensors.index.json'
    index = json.loads(path.read_text())
    change(index, folder)
    path.write_text(json.dumps(index))
    with pytest.raises((FormatError, UserError)) as error:
      _ = hf.open_source(folder, None).places
    return str(error.value)

  @pytest.mark.parametrize(
    'name',
    ['../x.safetensors', '/etc/passwd', '..', '', 'a\\b', 'a\0b', '%2e%2e/x', 'sub/x.safetensors', 7, None],
  )
  def test_paths_out_of_the_folder(self, make_hf, name):
    said = self.damaged(make_hf, lambda index, _: index['weight_map'].update({'model.norm.weight': name}))
    assert 'index.json' in said

  @pytest.mark.parametrize('kind', ['link', 'pipe', 'device', 'folder'])
  def test_what_is_no_file_of_the_folder(self, make_hf, tmp_path, kind):
    def change(index, folder):
      path = folder / 'x.safetensors'
      index['weight_map']['model.norm.weight'] = path.name
      if kind == 'link':
        (tmp_path / 'outside').write_bytes(b'x')
        path.symlink_to(tmp_path / 'outside')
      elif kind == 'pipe':
        os.mkfifo(path)
      elif kind == 'device':
        path.symlink_to('/dev/zero')
      else:
        path.mkdir()

    assert 'x.safetensors' in self.damaged(make_hf, change)

  def test_a_tensor_in_another_file_than_told(self, make_hf):
    def change(index, folder):
      table = index['weight_map']
      first, second = sorted(set(table.values()))
      name = next(name for name in table if table[name] == first)
      table[name] = second

    assert 'knows' in self.damaged(make_hf, change)

  def test_a_tensor_that_is_nowhere(self, make_hf):
    def change(index, folder):
      index['weight_map']['ghost'] = 'model-00001-of-00002.safetensors'

    assert 'ghost' in self.damaged(make_hf, change)

  def test_a_total_that_lies(self, make_hf):
    assert 'total_size' in self.damaged(make_hf, lambda index, _: index['metadata'].update(total_size=10))

  def test_a_million_entries(self, make_hf):
    def change(index, folder):
      index['weight_map'] |= {f't{i}': 'model-00001-of-00002.safetensors' for i in range(1_000_000)}

    assert 't0' in self.damaged(make_hf, change)


def test_the_cache_of_the_hub_is_a_folder_of_links(make_hf, tmp_path):
  folder, weights = make_hf()
  snapshot = tmp_path / 'models--x/snapshots/abc'
  blobs = tmp_path / 'models--x/blobs'
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  for index, file in enumerate(folder.iterdir()):
    file.rename(blobs / str(index))
    (snapshot / file.name).symlink_to(f'../../blobs/{index}')
  assert convert(snapshot, tmp_path / 'out') == 0
  assert same(read_weights(tmp_path / 'out'), weights)
