"""Adapters are merged as PEFT merges them, whatever format the weights are in."""

import dataclasses
import json
import re
import warnings

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from llamax.cli.main import main
from llamax.convert import formats, lora, verify
from llamax.convert.errors import FormatError
from llamax.convert.hf import ROWS
from llamax.convert.source import Source
from llamax.core import exits
from llamax.core.errors import UserError
from tests.convert.families import convert, hf_weights, in_memory, our_config, their_model, their_weights

CFG = our_config('llama2', num_kv_heads=2, rope_theta=10_000.0)
LAYER = {
  **{f'self_attn.{name}_proj': shape for name, shape in {'q': (48, 48), 'k': (16, 48), 'v': (16, 48)}.items()},
  'self_attn.o_proj': (48, 48),
  **{f'mlp.{name}_proj': shape for name, shape in {'gate': (56, 48), 'up': (56, 48), 'down': (48, 56)}.items()},
}


def source_of(cfg, weights):
  return Source('hf', None, cfg, 'llama', ROWS, in_memory(weights))


def adapter(targets=('q_proj', 'down_proj'), rank=4, layers=range(3), dtype=np.float32, seed=0):
  """Tensors of an adapter for CFG, as PEFT names them."""
  rng, found = np.random.default_rng(seed), {}
  for layer in layers:
    for name, (rows, columns) in LAYER.items():
      if name.split('.')[1] in targets:
        at = f'base_model.model.model.layers.{layer}.{name}'
        found[f'{at}.lora_A.weight'] = (
          (rng.standard_normal((rank, columns)) / 7).astype(np.float32).astype(dtype)
        )
        found[f'{at}.lora_B.weight'] = (rng.standard_normal((rows, rank)) / 2).astype(np.float32).astype(dtype)
  return found


def write(folder, tensors, **config):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors')
  told = {
    'peft_type': 'LORA',
    'r': 4,
    'lora_alpha': 12,
    'target_modules': ['q_proj', 'down_proj'],
    'bias': 'none',
  }
  (folder / 'adapter_config.json').write_text(json.dumps(told | config))
  return folder


def read(source):
  return {name: entry.read(0, entry.shape[0]) for name, entry in source.entries.items()}


def by_hand(weights, tensors, scale):
  """W + scale * B A in float64."""
  out = {name: w.astype(np.float64) for name, w in weights.items()}
  for name in tensors:
    if name.endswith('lora_A.weight'):
      module = name.removeprefix('base_model.model.').removesuffix('.lora_A.weight')
      a, b = (tensors[name.replace('lora_A', which)].astype(np.float64) for which in ('lora_A', 'lora_B'))
      out[f'{module}.weight'] += scale * b @ a
  return out


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_sum_is_rounded_once(tmp_path, dtype):
  weights, tensors = hf_weights(CFG, dtype), adapter(dtype=dtype)
  found = read(lora.merged(source_of(CFG, weights), write(tmp_path / 'a', tensors)))
  wanted = by_hand(weights, tensors, 12 / 4)
  step = float(ml_dtypes.finfo(dtype).eps)
  for name, array in found.items():
    assert array.dtype == dtype
    if array.tobytes() == weights[name].tobytes():
      assert not name.endswith(('q_proj.weight', 'down_proj.weight'))
      continue
    # Half a unit in the last place, with the rounding of float32 before it.
    error = np.abs(array.astype(np.float64) - wanted[name])
    assert (error <= step / 2 * (1 + 2**-9) * np.maximum(np.abs(wanted[name]), 1e-4)).all(), name


@pytest.mark.parametrize(
  'config, scale',
  [({}, 3.0), ({'use_rslora': True}, 6.0), ({'lora_alpha': 1}, 0.25), ({'fan_in_fan_out': True}, 3.0)],
)
def test_the_scale(tmp_path, config, scale):
  weights, tensors = hf_weights(CFG), adapter()
  found = read(lora.merged(source_of(CFG, weights), write(tmp_path / 'a', tensors, **config)))
  wanted = by_hand(weights, tensors, scale)
  assert max(np.abs(found[name] - wanted[name]).max() for name in found) < 1e-5


PEFT = {
  'plain': {'target_modules': ['q_proj', 'v_proj']},
  'all linear, rslora': {'target_modules': 'all-linear', 'use_rslora': True, 'r': 3},
  'patterns': {
    'target_modules': ['q_proj', 'o_proj', 'up_proj'],
    'rank_pattern': {r'layers\.[01]\.self_attn\.q_proj': 2, 'up_proj': 5},
    'alpha_pattern': {'model.layers.2.mlp.up_proj': 7, 'q_proj': 3},
  },
  'a regular expression': {'target_modules': r'model\.layers\.[02]\.self_attn\.[kv]_proj'},
  'some layers': {'target_modules': ['gate_proj'], 'layers_to_transform': [1]},
  'excluded': {'target_modules': ['q_proj', 'k_proj'], 'exclude_modules': ['model.layers.0.self_attn.q_proj']},
  'embedding, head': {'target_modules': ['embed_tokens', 'lm_head', 'down_proj']},
}


@pytest.mark.parametrize('name', PEFT)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_peft_merges(tmp_path, name, dtype):
  torch = pytest.importorskip('torch', reason='needs torch, transformers and peft')
  pytest.importorskip('transformers', reason='needs torch, transformers and peft')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    peft = pytest.importorskip('peft', reason='needs torch, transformers and peft')
    model = their_model('llama31').to(getattr(torch, dtype))
    weights = {
      n: w.astype(ml_dtypes.bfloat16) if dtype == 'bfloat16' else w
      for n, w in their_weights(model.float()).items()
    }
    model = model.to(getattr(torch, dtype))
    config = peft.LoraConfig(**{'r': 4, 'lora_alpha': 6} | PEFT[name])
    model = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
      if 'lora_' in parameter_name:
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / 'adapter', save_embedding_layers=False)
    theirs = their_weights(model.merge_and_unload().float())
  cfg = our_config('llama31')
  ours = read(lora.merged(source_of(cfg, weights), tmp_path / 'adapter'))
  changed = [n for n in ours if ours[n].tobytes() != weights[n].tobytes()]
  assert changed == [n for n in ours if not np.array_equal(theirs[n], weights[n].astype(np.float32))] != []
  # PEFT rounds the change to bfloat16 before it is added, then once more.
  unit = 2**-22 if dtype == 'float32' else 2**-7
  for n in ours:
    error = np.abs(ours[n].astype(np.float32) - theirs[n])
    assert (error <= unit * np.maximum(np.abs(theirs[n]), 0.5)).all(), n


@pytest.mark.parametrize('name', formats.FORMATS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_any_format_of_the_weights_gives_the_same_bits(tmp_path, name, dtype):
  if (name, dtype) == ('llama2c', 'bfloat16'):
    pytest.skip('holds float32 alone')
  weights = hf_weights(CFG, {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}[dtype])
  every = [module.split('.')[1] for module in LAYER]
  folder = write(tmp_path / 'a', adapter(every), target_modules=every)
  wanted = read(lora.merged(source_of(CFG, weights), folder))
  convert(source_of(CFG, weights), name, tmp_path / 'base')
  source = lora.merged(formats.open_source(tmp_path / 'base', name), folder)
  convert(source, 'hf', tmp_path / 'merged')
  found = read(formats.open_source(tmp_path / 'merged', 'hf'))
  assert found.keys() == wanted.keys()
  for tensor, array in found.items():
    assert array.tobytes() == wanted[tensor].tobytes(), tensor
    assert (array.tobytes() != weights[tensor].tobytes()) == (tensor.split('.')[-2] in every)


def test_all_linear_is_neither_embedding_nor_head(tmp_path):
  folder = write(tmp_path / 'a', adapter([m.split('.')[1] for m in LAYER]), target_modules='all-linear')
  source = lora.merged(source_of(CFG, hf_weights(CFG)), folder)
  assert any('merged into 21 tensors' in note for note in source.notes)


def test_the_embedding_and_the_head_in_every_order(tmp_path):
  weights, rng = hf_weights(CFG), np.random.default_rng(0)
  tensors = {
    'base_model.model.model.embed_tokens.lora_embedding_A': rng.standard_normal((4, 97)).astype(np.float32),
    'base_model.model.model.embed_tokens.lora_embedding_B': rng.standard_normal((48, 4)).astype(np.float32),
    'base_model.model.lm_head.lora_A.weight': rng.standard_normal((4, 48)).astype(np.float32),
    'base_model.model.lm_head.lora_B.weight': rng.standard_normal((97, 4)).astype(np.float32),
  }
  folder = write(tmp_path / 'a', tensors, target_modules=['embed_tokens', 'lm_head'])
  found = read(lora.merged(source_of(CFG, weights), folder))
  a, b, c, d = tensors.values()
  embed, head = 'model.embed_tokens.weight', 'lm_head.weight'
  assert np.abs(found[embed] - (weights[embed] + 3.0 * (b @ a).T)).max() < 1e-5
  assert np.abs(found[head] - (weights[head] + 3.0 * d @ c)).max() < 1e-5
  convert(source_of(CFG, weights), 'easylm', tmp_path / 'base')  # [in, out]
  convert(lora.merged(formats.open_source(tmp_path / 'base', 'easylm'), folder), 'hf', tmp_path / 'merged')
  assert read(formats.open_source(tmp_path / 'merged', 'hf'))[head].tobytes() == found[head].tobytes()


def test_however_the_rows_are_cut(tmp_path, monkeypatch):
  source = lora.merged(source_of(CFG, hf_weights(CFG)), write(tmp_path / 'a', adapter()))
  entry = source.entries['model.layers.1.mlp.down_proj.weight']
  whole = entry.read(0, 48)
  monkeypatch.setattr(lora, '_READ', 56 * 5)
  monkeypatch.setattr(lora, '_NUMBERS', 56 * 2)
  pieces = [entry.read(at, min(at + 7, 48)) for at in range(0, 48, 7)]
  assert np.concatenate(pieces).tobytes() == whole.tobytes()
  assert entry.base.array.tobytes() == hf_weights(CFG)['model.layers.1.mlp.down_proj.weight'].tobytes()


def test_the_copy_with_an_adapter_is_verified(tmp_path, monkeypatch):
  monkeypatch.setattr(verify.forwards, 'why_not_transformers', lambda target: 'transformers is not installed')
  base = source_of(CFG, hf_weights(CFG))
  source = lora.merged(base, write(tmp_path / 'a', adapter()))
  assert str(tmp_path / 'a/adapter_model.safetensors') in map(str, source.files)
  assert any('merged into 6 tensors' in note for note in source.notes) and not base.notes
  convert(source, 'hf', tmp_path / 'merged')
  target = formats.open_source(tmp_path / 'merged', 'hf')
  assert verify.compare(source, target).exit_code == exits.DONE
  assert verify.compare(base, target).exit_code == exits.FAILED_CHECK


REFUSED = {
  'another method': ({'peft_type': 'IA3'}, 'peft_type: is IA3'),
  'biases': ({'bias': 'lora_only'}, 'bias: is lora_only'),
  'whole modules': ({'modules_to_save': ['lm_head']}, 'modules_to_save'),
  'DoRA': ({'use_dora': True}, 'use_dora: is True'),
  'biases of B': ({'lora_bias': True}, 'lora_bias'),
  'QALoRA': ({'use_qalora': True}, 'use_qalora'),
  'tokens': ({'trainable_token_indices': [1]}, 'trainable_token_indices'),
  'replicated layers': ({'layer_replication': [[0, 2]]}, 'layer_replication'),
  'a field of tomorrow': ({'use_new_thing': 1}, 'use_new_thing'),
  'PiSSA': ({'init_lora_weights': 'pissa'}, 'init_lora_weights.*path_initial'),
  'a start that is a number': ({'init_lora_weights': 2}, 'init_lora_weights'),
  'rank 0': ({'r': 0}, 'r: is 0'),
  'rank by pattern': ({'rank_pattern': {'q_proj': -1}}, 'rank_pattern'),
  'alpha 0': ({'lora_alpha': 0}, 'lora_alpha'),
  'alpha that is text': ({'alpha_pattern': {'q_proj': 'x'}}, 'alpha_pattern'),
  'patterns that are none': ({'rank_pattern': [1]}, 'rank_pattern'),
  'no such module': ({'target_modules': ['qkv_proj']}, 'none of them is a matrix'),
  'modules that are numbers': ({'target_modules': [3]}, 'target_modules'),
  'an expression for ever': ({'target_modules': r'(\w+)+X'}, 'repetitions'),
  'an expression of many repetitions': ({'target_modules': '.*.*.*.*X'}, 'repetitions'),
  'no expression': ({'target_modules': 'q_proj['}, 'no regular expression'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_not_merged_is_refused_by_name(tmp_path, name):
  changes, message = REFUSED[name]
  with pytest.raises(FormatError, match=message) as caught:
    lora.merged(source_of(CFG, hf_weights(CFG)), write(tmp_path / 'a', adapter(), **changes))
  assert caught.value.file.endswith('adapter_config.json') and caught.value.field


def test_tensors_that_do_not_fit_are_a_table(tmp_path):
  tensors = adapter(layers=(0, 1))
  at = 'base_model.model.model.layers'
  tensors[f'{at}.0.self_attn.q_proj.lora_A.weight'] = np.zeros((5, 48), np.float32)
  tensors['base_model.model.model.embed_tokens.weight'] = np.zeros((97, 48), np.float32)
  with pytest.raises(UserError) as caught:
    lora.merged(source_of(CFG, hf_weights(CFG)), write(tmp_path / 'a', tensors))
  message = str(caught.value)
  assert re.search(r'layers\.0\.self_attn\.q_proj\.lora_A\.weight +wanted \[4, 48\] +found \[5, 48\]', message)
  assert re.search(r'layers\.2\.mlp\.down_proj\.lora_B\.weight +wanted \[48, 4\] +found nothing', message)
  assert re.search(r'model\.embed_tokens\.weight +wanted nothing +found \[97, 48\]', message)
  assert '6 tensor(s)' in message


def test_a_shared_embedding_is_not_changed(tmp_path):
  tied = dataclasses.replace(CFG, tie_embeddings=True)
  tensors = {
    'base_model.model.model.embed_tokens.lora_embedding_A': np.zeros((4, 97), np.float32),
    'base_model.model.model.embed_tokens.lora_embedding_B': np.zeros((48, 4), np.float32),
  }
  folder = write(tmp_path / 'a', tensors, target_modules=['embed_tokens'])
  with pytest.raises(UserError, match=r'model\.embed_tokens, which this model shares'):
    lora.merged(source_of(tied, hf_weights(tied)), folder)


def test_a_sum_beyond_the_dtype_is_said(tmp_path):
  weights = hf_weights(CFG, np.float16)
  source = lora.merged(source_of(CFG, weights), write(tmp_path / 'a', adapter(), lora_alpha=1e6))
  with pytest.raises(UserError, match=r'q_proj\.weight: with the adapter it does not fit float16'):
    read(source)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_said(tmp_path, bad):
  tensors = adapter()
  tensors['base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight'][5, 2] = bad
  source = lora.merged(source_of(CFG, hf_weights(CFG)), write(tmp_path / 'a', tensors))
  with pytest.raises(UserError, match=r'layers\.1\.self_attn\.q_proj\.weight: .* not finite'):
    read(source)


def test_without_its_files_there_is_no_adapter(tmp_path):
  with pytest.raises(FormatError, match=r'adapter_config\.json'):
    lora.merged(source_of(CFG, hf_weights(CFG)), tmp_path)
  folder = write(tmp_path / 'a', adapter())
  (folder / 'adapter_model.safetensors').unlink()
  with pytest.raises(FormatError, match=r'adapter_model\.safetensors'):
    lora.merged(source_of(CFG, hf_weights(CFG)), folder)


def test_an_adapter_that_was_pickled_is_read_without_unpickling(tmp_path):
  torch = pytest.importorskip('torch', reason='writes the file')
  weights, folder = hf_weights(CFG), write(tmp_path / 'a', adapter())
  wanted = read(lora.merged(source_of(CFG, weights), folder))
  torch.save({name: torch.from_numpy(array) for name, array in adapter().items()}, folder / 'adapter_model.bin')
  (folder / 'adapter_model.safetensors').unlink()
  found = read(lora.merged(source_of(CFG, weights), folder))
  assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_an_adapter_alone_is_no_model(tmp_path, capsys):
  folder = write(tmp_path / 'a', adapter())
  assert main(['convert', str(folder), str(tmp_path / 'out'), '--to=hf']) == 2
  assert f'--lora={folder}' in capsys.readouterr().err
