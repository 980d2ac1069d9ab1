"""A copy that computes something else is caught, whatever its format; a good one passes."""

# ruff: noqa: F811
import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from llamax.convert import formats, forwards, verify
from llamax.convert.hf import ROWS
from llamax.convert.source import Source
from llamax.core import exits
from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from tests.convert.families import FAMILIES, convert, hf_weights, in_memory, our_config
from tests.data.tokenizers.conftest import kinds  # noqa: F401

# 48 = 6 heads of 8: wq, wo are square, so that no shape tells how they lie.
CFG = our_config('llama2', num_kv_heads=2, rope_theta=10_000.0)
TIED = dataclasses.replace(CFG, tie_embeddings=True)
FORMATS = list(formats.FORMATS)


def source_of(cfg, weights=None, dtype=np.float32, tokenizer=None):
  weights = hf_weights(cfg, dtype) if weights is None else weights
  family = 'qwen3' if cfg.qk_norm else 'qwen2' if cfg.qkv_bias and not cfg.out_bias else 'llama'
  return Source('hf', None, cfg, family, ROWS, in_memory(weights), tokenizer)


@pytest.fixture
def no_transformers(monkeypatch):
  monkeypatch.setattr(forwards, 'why_not_transformers', lambda target: 'transformers is not installed')


def check_of(report, name):
  (found,) = [check for check in report.checks if check.name == name]
  return found


def swapped_rotary(weights):
  """q, k of Hugging Face as Meta orders them: what a converter does that forgets to, or does it twice."""
  out = dict(weights)
  for name, w in weights.items():
    if name.endswith(('q_proj.weight', 'k_proj.weight')):
      out[name] = w.reshape(-1, 2, CFG.head_dim // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape).copy()
  return out


def transposed(weights):
  """One square matrix of one layer the other way round."""
  name = 'model.layers.1.self_attn.o_proj.weight'
  return weights | {name: weights[name].T.copy()}


FAULTS = {'rotary': swapped_rotary, 'transposed': transposed}


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('cfg', [CFG, TIED], ids=['untied', 'tied'])
def test_a_good_copy_passes(tmp_path, no_transformers, name, cfg):
  convert(source_of(cfg), name, tmp_path / 'copy')
  report = verify.compare(source_of(cfg), formats.open_source(tmp_path / 'copy', name))
  assert report.exit_code == exits.DONE, report.lines()
  assert report.difference < (1e-4 if name == 'llamax' else 1e-12)


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_of_layout_in_a_written_copy_is_caught(tmp_path, no_transformers, name, fault):
  convert(source_of(CFG, FAULTS[fault](hf_weights(CFG))), name, tmp_path / 'copy')
  report = verify.compare(source_of(CFG), formats.open_source(tmp_path / 'copy', name))
  assert check_of(report, 'config').passed
  assert not check_of(report, 'logits').passed
  assert report.exit_code == exits.FAILED_CHECK and 'FAILED' in '\n'.join(report.lines())
  assert report.difference > 0.5


@pytest.mark.parametrize('name', FORMATS)
def test_untied_embeddings_are_caught(tmp_path, no_transformers, name):
  """A copy of a tied model that got a head of its own, drawn anew, as loaders do that miss the tie."""
  head = hf_weights(CFG, seed=5)['lm_head.weight']
  convert(source_of(CFG, hf_weights(TIED) | {'lm_head.weight': head}), name, tmp_path / 'copy')
  report = verify.compare(source_of(TIED), formats.open_source(tmp_path / 'copy', name))
  assert 'tie_embeddings is False, was True' in check_of(report, 'config').text
  assert not check_of(report, 'logits').passed and report.difference > 0.5
  assert report.exit_code == exits.FAILED_CHECK


@pytest.mark.parametrize('name', FORMATS)
def test_another_config_is_caught_though_no_probe_is_long_enough_to_show_it(tmp_path, no_transformers, name):
  convert(source_of(CFG), name, tmp_path / 'copy')
  target = formats.open_source(tmp_path / 'copy', name)
  target = dataclasses.replace(target, cfg=dataclasses.replace(target.cfg, sliding_window=4096))
  report = verify.compare(source_of(CFG), target)
  assert check_of(report, 'config').text == 'sliding_window is 4096, was 0'
  assert check_of(report, 'logits').passed and report.exit_code == exits.FAILED_CHECK


def hf_copy(tmp_path, cfg=CFG, weights=None):
  return convert(source_of(cfg, weights), 'hf', tmp_path / 'copy')


class TestByTransformers:
  """The same, computed by transformers from what was written."""

  @pytest.fixture(autouse=True)
  def needs(self):
    why = 'needs torch and transformers: pip install llamax[parity]'
    pytest.importorskip('torch', reason=why)
    pytest.importorskip('transformers', reason=why)

  @pytest.mark.parametrize('name', FAMILIES)
  def test_a_good_copy_of_each_family_passes(self, tmp_path, name):
    cfg = our_config(name)
    source = source_of(cfg)
    if name == 'mistral':
      source.family = 'mistral'
    convert(source, 'hf', tmp_path / 'copy')
    report = verify.compare(source, formats.open_source(tmp_path / 'copy', 'hf'))
    assert report.exit_code == exits.DONE, report.lines()
    assert 'by transformers' in check_of(report, 'logits').text
    assert report.difference < 1e-5

  @pytest.mark.parametrize('fault', FAULTS)
  def test_a_fault_of_layout_is_caught(self, tmp_path, fault):
    path = hf_copy(tmp_path, weights=FAULTS[fault](hf_weights(CFG)))
    report = verify.compare(source_of(CFG), formats.open_source(path, 'hf'))
    assert report.exit_code == exits.FAILED_CHECK and report.difference > 0.5

  def test_untied_embeddings_are_caught(self, tmp_path):
    head = hf_weights(CFG, seed=5)['lm_head.weight']
    path = hf_copy(tmp_path, CFG, hf_weights(TIED) | {'lm_head.weight': head})
    report = verify.compare(source_of(TIED), formats.open_source(path, 'hf'))
    assert not check_of(report, 'logits').passed and report.difference > 0.5

  def test_a_head_that_the_config_forgets_is_caught(self, tmp_path):
    """The tie is left out of config.json: transformers draws a head."""
    path = hf_copy(tmp_path, TIED)
    config = json.loads((path / 'config.json').read_text())
    (path / 'config.json').write_text(json.dumps(config | {'tie_word_embeddings': False}))
    report = verify.compare(source_of(TIED), formats.open_source(path, 'hf'))
    assert "missing_keys: ['lm_head.weight']" in check_of(report, 'logits').text
    assert report.exit_code == exits.FAILED_CHECK and np.isnan(report.difference)


def test_transformers_is_left_alone_where_it_would_not_fit_or_unpickle(tmp_path, monkeypatch):
  target = formats.open_source(hf_copy(tmp_path), 'hf')
  monkeypatch.setattr(forwards, '_free_bytes', lambda: 1000)
  monkeypatch.setattr(forwards.importlib.util, 'find_spec', lambda name: True)
  assert 'are free' in forwards.why_not_transformers(target)
  target.files = [tmp_path / 'pytorch_model.bin']
  assert 'unpickle' in forwards.why_not_transformers(target)
  monkeypatch.setattr(forwards.importlib.util, 'find_spec', lambda name: None)
  assert 'not installed' in forwards.why_not_transformers(target)


def test_a_cast_is_judged_apart_from_the_copy(tmp_path, no_transformers):
  source = source_of(CFG)
  convert(source, 'hf', tmp_path / 'copy', 'bfloat16')
  report = verify.compare(source, formats.open_source(tmp_path / 'copy', 'hf'))
  assert report.exit_code == exits.DONE and report.difference == 0
  cast = check_of(report, 'cast')
  assert cast.passed is None and 'float32 -> bfloat16 moved the logits' in cast.text


def test_numbers_cut_off_instead_of_rounded_are_caught(tmp_path, no_transformers):
  """float32 to bfloat16 by dropping 16 bits: nearly right."""
  weights = hf_weights(CFG)
  cut = {n: (w.view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16) for n, w in weights.items()}
  path = hf_copy(tmp_path, weights=cut)
  report = verify.compare(source_of(CFG), formats.open_source(path, 'hf'))
  assert not check_of(report, 'logits').passed and report.difference < 0.2


@pytest.mark.parametrize('fault', [None, *FAULTS])
def test_a_quantised_copy_may_be_off_a_little_not_a_lot(tmp_path, no_transformers, fault):
  """Q8_0 packs rows of a multiple of 32."""
  cfg = dataclasses.replace(CFG, d_model=64, num_heads=8, d_ff=96)
  weights = hf_weights(cfg)
  source = source_of(cfg, FAULTS[fault](weights) if fault else weights)
  convert(source, 'gguf', tmp_path / 'copy', 'q8_0', dtype='q8_0')
  report = verify.compare(source_of(cfg, weights), formats.open_source(tmp_path / 'copy', 'gguf'))
  assert (report.exit_code == exits.DONE) == (fault is None), report.lines()
  assert report.difference > 1e-3


def test_a_wider_dtype_is_no_cast(tmp_path, no_transformers):
  source = source_of(CFG, dtype=ml_dtypes.bfloat16)
  convert(source, 'hf', tmp_path / 'copy', 'float32')
  report = verify.compare(source, formats.open_source(tmp_path / 'copy', 'hf'))
  assert [check.name for check in report.checks] == ['config', 'tokenizer', 'logits']
  assert report.difference == 0 and report.exit_code == exits.DONE


def test_a_tensor_that_is_missing_in_the_copy_fails_the_check(tmp_path, no_transformers):
  target = formats.open_source(hf_copy(tmp_path), 'hf')
  del target.entries['model.layers.2.mlp.up_proj.weight']
  report = verify.compare(source_of(CFG), target)
  assert 'up_proj.weight is missing' in check_of(report, 'logits').text
  assert report.exit_code == exits.FAILED_CHECK


@pytest.mark.parametrize('vocab_size', [96, 98])
def test_another_vocabulary_fails_the_check(no_transformers, vocab_size):
  report = verify.compare(source_of(CFG), source_of(dataclasses.replace(CFG, vocab_size=vocab_size)))
  assert not check_of(report, 'logits').passed
  assert report.exit_code == exits.FAILED_CHECK


def test_numbers_that_are_not_finite_prove_nothing(no_transformers):
  weights = hf_weights(CFG)
  weights['model.norm.weight'][3] = np.nan
  report = verify.compare(source_of(CFG, weights), source_of(CFG))
  assert report.exit_code == exits.FAILED_CHECK and 'not finite' in check_of(report, 'logits').text
  report = verify.compare(source_of(CFG), source_of(CFG, weights))
  assert report.exit_code == exits.FAILED_CHECK


def test_an_original_that_the_reference_does_not_know_is_a_users_mistake(no_transformers):
  with pytest.raises(UserError, match=r'model\.mlp'):
    verify.compare(source_of(dataclasses.replace(CFG, mlp='geglu')), source_of(CFG))


def test_the_probe_reaches_both_ends_of_the_vocabulary_within_the_positions():
  tokens, what = verify.probe_batch(source_of(dataclasses.replace(CFG, max_seq_len=16)))
  assert tokens.shape == (2, 16) and tokens.min() == 0 and tokens.max() == 96 and '2 x 16 seeded' in what


def test_tokenizers_are_compared(tmp_path, no_transformers, kinds):
  first, second = open_tokenizer(kinds['llama']), open_tokenizer(kinds['plain'])
  cfg = dataclasses.replace(CFG, vocab_size=max(first.vocab_size, second.vocab_size))
  weights = hf_weights(cfg)
  report = verify.compare(source_of(cfg, weights, tokenizer=first), source_of(cfg, weights, tokenizer=first))
  assert check_of(report, 'tokenizer').passed and 'ids of a text' in check_of(report, 'logits').text
  assert report.exit_code == exits.DONE and report.difference == 0
  report = verify.compare(source_of(cfg, weights, tokenizer=first), source_of(cfg, weights, tokenizer=second))
  assert check_of(report, 'tokenizer').passed is False and report.exit_code == exits.FAILED_CHECK
