"""llamax convert with --verify, --lora as a user types it."""

import json

import numpy as np
import pytest
import safetensors.numpy

from llamax.cli.main import main
from llamax.convert import forwards
from llamax.core import exits
from tests.convert.families import hf_weights, our_config, write_hf

CFG = our_config('llama2', num_kv_heads=2, rope_theta=10_000.0)
# Every format is a source once, a target once.
CHAIN = ('meta', 'gguf', 'llama2c', 'easylm', 'llamax', 'hf')


@pytest.fixture(autouse=True)
def no_transformers(monkeypatch):
  monkeypatch.setattr(forwards, 'why_not_transformers', lambda target: 'transformers is not installed')


def convert(*words):
  return main(['convert', *map(str, words), '--threads=2'])


def test_a_chain_through_all_formats_is_verified_at_each_step(tmp_path, capsys):
  first = source = write_hf(tmp_path / 'first', CFG, hf_weights(CFG))
  for name in CHAIN:
    assert convert(source, tmp_path / name, f'--to={name}', '--verify') == exits.DONE
    assert 'verify logits    ok     largest difference' in capsys.readouterr().out
    source = tmp_path / name
  assert convert(first, source, '--verify') == exits.DONE
  before, after = (safetensors.numpy.load_file(folder / 'model.safetensors') for folder in (first, source))
  assert before.keys() == after.keys()
  assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_two_checkpoints_that_differ_end_with_the_code_of_a_failed_check(tmp_path, capsys):
  weights = hf_weights(CFG)
  first = write_hf(tmp_path / 'first', CFG, weights)
  name = 'model.layers.1.self_attn.o_proj.weight'
  second = write_hf(tmp_path / 'second', CFG, weights | {name: weights[name].T.copy()})
  assert convert(first, second, '--verify') == exits.FAILED_CHECK
  out = capsys.readouterr().out
  assert 'verify logits    FAILED' in out and 'do not use the copy' in out


def test_an_adapter_is_merged_on_the_way(tmp_path, capsys):
  weights = hf_weights(CFG)
  first, folder = write_hf(tmp_path / 'first', CFG, weights), tmp_path / 'adapter'
  folder.mkdir()
  rng, at = np.random.default_rng(0), 'model.layers.{}.self_attn.q_proj'
  a, b = ([rng.standard_normal(shape).astype(np.float32) for _ in range(3)] for shape in ((4, 48), (48, 4)))
  tensors = {
    f'base_model.model.{at.format(i)}.lora_{x}.weight': m[i] for x, m in (('A', a), ('B', b)) for i in range(3)
  }
  safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors')
  told = {'peft_type': 'LORA', 'r': 4, 'lora_alpha': 2, 'target_modules': ['q_proj']}
  (folder / 'adapter_config.json').write_text(json.dumps(told))

  assert convert(first, tmp_path / 'gguf', '--to=gguf', f'--lora={folder}', '--verify') == exits.DONE
  assert 'merged into 3 tensors' in capsys.readouterr().err
  assert convert(tmp_path / 'gguf', tmp_path / 'hf', '--to=hf') == exits.DONE
  found = safetensors.numpy.load_file(tmp_path / 'hf/model.safetensors')
  for i in range(3):
    name = f'{at.format(i)}.weight'
    wanted = weights[name].astype(np.float64) + 0.5 * b[i].astype(np.float64) @ a[i]
    assert np.abs(found.pop(name) - wanted).max() < 1e-6
  assert all(array.tobytes() == weights[name].tobytes() for name, array in found.items())
  told['use_dora'] = True
  (folder / 'adapter_config.json').write_text(json.dumps(told))
  assert convert(first, tmp_path / 'x', '--to=gguf', f'--lora={folder}') == exits.MISTAKE
  assert 'use_dora' in capsys.readouterr().err and not (tmp_path / 'x').exists()
