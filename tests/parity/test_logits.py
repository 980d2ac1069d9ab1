"""The same weights with the same tokens give the logits of transformers."""

import jax
import numpy as np
import pytest

from llamax.model.llama import logits

WHY = 'needs torch and transformers: pip install llamax[parity]'
torch = pytest.importorskip('torch', reason=WHY)
pytest.importorskip('transformers', reason=WHY)

# Rows, positions: longer than the original context of the scaled cases, than Mistral's window.
B, T = 2, 72
SIZES = {
  'vocab_size': 97,
  'hidden_size': 48,
  'intermediate_size': 56,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'max_position_embeddings': 128,
}
OURS = {
  'vocab_size': 97,
  'd_model': 48,
  'd_ff': 56,
  'num_layers': 3,
  'num_heads': 6,
  'max_seq_len': 128,
}
GROUPED = {'num_key_value_heads': 2, 'head_dim': 10}, {'num_kv_heads': 2, 'head_dim': 10}
THETA = 500.0


def rope(kind, **more):
  """Both spellings of a rotation with a base of THETA: the tiny head then has fast, middling, slow pairs."""
  theirs = {'rope_type': 'default' if kind == 'none' else kind, 'rope_theta': THETA, **more}
  ours = {'rope_scaling': kind, 'rope_theta': THETA}
  renamed = {'original_max_position_embeddings': 'rope_original_max_len'}
  ours |= {renamed.get(k, k if k.startswith('rope_') else f'rope_{k}'): v for k, v in more.items()}
  return {'rope_parameters': theirs}, ours


def case(family, *pairs):
  theirs, ours = dict(SIZES), dict(OURS)
  for their_part, our_part in pairs:
    theirs |= their_part
    ours |= our_part
  return family, theirs, ours


LLAMA3 = rope(
  'llama3', factor=8.0, original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=2.0
)
CASES = {
  'llama2': case(
    'Llama',
    ({'num_key_value_heads': 6}, {'num_kv_heads': 6, 'head_dim': 8}),
    ({'rms_norm_eps': 1e-5}, {'norm_eps': 1e-5}),
    rope('none'),
  ),
  'llama31': case('Llama', GROUPED, ({'rms_norm_eps': 1e-5}, {'norm_eps': 1e-5}), LLAMA3),
  'llama32_tied': case(
    'Llama',
    GROUPED,
    ({'tie_word_embeddings': True, 'rms_norm_eps': 1e-5}, {'tie_embeddings': True, 'norm_eps': 1e-5}),
    LLAMA3,
  ),
  'linear': case('Llama', GROUPED, ({}, {'norm_eps': 1e-6}), rope('linear', factor=4.0)),
  'yarn': case(
    'Llama',
    GROUPED,
    ({}, {'norm_eps': 1e-6}),
    rope('yarn', factor=4.0, original_max_position_embeddings=32, beta_fast=4.0, beta_slow=1.0),
  ),
  'all_biases': case(
    'Llama',
    GROUPED,
    (
      {'attention_bias': True, 'mlp_bias': True},
      {'norm_eps': 1e-6, 'qkv_bias': True, 'out_bias': True, 'mlp_bias': True},
    ),
    rope('none'),
  ),
  'mistral': case(
    'Mistral', GROUPED, ({'sliding_window': 7}, {'sliding_window': 7, 'norm_eps': 1e-6}), rope('none')
  ),
  'qwen25': case(
    'Qwen2',
    ({'num_key_value_heads': 2}, {'num_kv_heads': 2, 'head_dim': 8}),
    ({}, {'qkv_bias': True, 'norm_eps': 1e-6}),
    rope('none'),
  ),
  'qwen3': case('Qwen3', GROUPED, ({}, {'qk_norm': True, 'norm_eps': 1e-6}), rope('none')),
}


def their_logits(model, tokens):
  with torch.no_grad():
    return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def our_logits(twins, tokens, positions, segments, **compute):
  model = twins.llama(**compute)

  @jax.jit
  def run(params, *batch):
    return logits(model.apply({'params': params}, *batch))

  return np.asarray(run(twins.params, tokens, positions, segments))


def distance(ours, theirs):
  return np.abs(ours - theirs).max() / theirs.std()


@pytest.mark.parametrize(
  'name, scan_layers',
  [*((name, True) for name in CASES), ('llama31', False), ('mistral', False), ('qwen3', False)],
)
def test_logits_equal_those_of_transformers(make_twins, name, scan_layers):
  twins = make_twins(*CASES[name])
  tokens = np.random.default_rng(1).integers(97, size=(B, T), dtype=np.int32)
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
  theirs = their_logits(twins.torch_model, tokens)
  ours = our_logits(twins, tokens, positions, np.ones_like(tokens), scan_layers=scan_layers)
  assert theirs.std() > 0.5  # else nothing is compared
  assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize('name', ['llama2', 'llama31', 'yarn', 'linear', 'mistral', 'qwen3'])
def test_the_feature_of_each_case_matters(make_twins, name):
  """What a case is about moves its logits, so that equality above proves it."""
  family, theirs, ours = CASES[name]
  without = {
    'llama2': {'norm_eps': 0.1},
    'mistral': {'sliding_window': 0},
    'qwen3': {'rope_theta': 400.0},
  }.get(name, {'rope_scaling': 'none'})
  tokens = np.random.default_rng(1).integers(97, size=(B, T), dtype=np.int32)
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
  twins = make_twins(family, theirs, ours | without)
  ours_logits = our_logits(twins, tokens, positions, np.ones_like(tokens))
  assert distance(ours_logits, their_logits(twins.torch_model, tokens)) > 1e-2


@pytest.mark.parametrize('name', ['llama31', 'mistral'])
def test_packed_documents_equal_separate_calls(make_twins, name):
  twins = make_twins(*CASES[name])
  rng = np.random.default_rng(2)
  first, second, padding = 41, 26, 5  # sums to T
  documents = [rng.integers(97, size=(1, n), dtype=np.int32) for n in (first, second)]
  row = np.concatenate([*documents, np.zeros((1, padding), np.int32)], axis=1)
  positions = np.concatenate([np.arange(n, dtype=np.int32) for n in (first, second, padding)])[None]
  segments = np.repeat(np.array([1, 2, 0], np.int32), [first, second, padding])[None]
  ours = our_logits(twins, row, positions, segments)
  theirs = np.concatenate([their_logits(twins.torch_model, d) for d in documents], axis=1)
  assert distance(ours[:, : first + second], theirs) < 1e-5
