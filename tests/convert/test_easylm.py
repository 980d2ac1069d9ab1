"""Streams of EasyLM, in both directions."""

# ruff: noqa: F811
import dataclasses
import json

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from llamax.convert import easylm, easylm_frame, formats, layout, reference
from llamax.convert.conventions import convention
from llamax.convert.errors import FormatError
from llamax.convert.source import Source
from llamax.convert.target import Model
from llamax.convert.vocabulary import probe
from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from tests.convert.families import convert, hf_weights, in_memory, our_config
from tests.data.tokenizers.conftest import kinds  # noqa: F401

CFG = our_config('llama2', num_kv_heads=2)
TIED = our_config('llama2', num_kv_heads=2, tie_embeddings=True)
TOKENS = np.random.default_rng(1).integers(97, size=(2, 40))


def source_of(cfg, dtype=np.float32, tmp_path=None):
  """A checkpoint in memory, in Hugging Face's terms."""
  from llamax.convert.hf import ROWS

  return Source('hf', tmp_path, cfg, 'llama', ROWS, in_memory(hf_weights(cfg, dtype)))


def opened(path, **options):
  return formats.open_source(path, 'easylm', **options)


def load(path):
  """What EasyLM's load_checkpoint makes of a file: a tree of arrays."""
  flat = {}
  with open(path, 'rb') as file:
    for key, value in msgpack.Unpacker(file, read_size=83886080, max_buffer_size=0):
      flat[tuple(key)] = flax.serialization.from_bytes(None, value)
  return unflatten_dict(flat)


def save(path, tree):
  """What EasyLM's save_train_state_to_file writes."""
  packer = msgpack.Packer()
  with open(path, 'wb') as file:
    for key, value in flatten_dict(tree).items():
      file.write(packer.pack((key, flax.serialization.to_bytes(value))))


def easylm_logits(tree, cfg, ids):
  """EasyLM's FlaxLLaMAForCausalLM in numpy: kernels are [in, out], a rotary pair is one complex number."""
  H, T = cfg.head_dim, ids.shape[1]
  tree = {'/'.join(key): array.astype(np.float64) for key, array in flatten_dict(tree).items()}
  turns = np.exp(1j * np.outer(np.arange(T), cfg.rope_theta ** (-np.arange(0, H, 2) / H)))[None, :, None]

  def norm(x, name):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + cfg.norm_eps) * tree[f'transformer/{name}/kernel']

  def rotate(x):
    pairs = x.reshape(*x.shape[:-1], H // 2, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turns
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

  x = tree['transformer/wte/embedding'][ids]
  for i in range(cfg.num_layers):
    h = norm(x, f'h/{i}/attention_norm')
    q, k, v = (h @ tree[f'transformer/h/{i}/attention/w{n}/kernel'] for n in 'qkv')
    q, k, v = (part.reshape(*part.shape[:2], -1, H) for part in (q, k, v))
    q, k, v = rotate(q), *(part.repeat(cfg.num_heads // cfg.num_kv_heads, axis=2) for part in (rotate(k), v))
    scores = np.einsum('bqhd,bkhd->bhqk', q, k) / np.sqrt(H)
    scores = np.exp(np.where(np.tri(T), scores, -np.inf))
    y = np.einsum('bhqk,bkhd->bqhd', scores / scores.sum(-1, keepdims=True), v).reshape(*ids.shape, -1)
    x = x + y @ tree[f'transformer/h/{i}/attention/wo/kernel']
    h, w = norm(x, f'h/{i}/ffn_norm'), f'transformer/h/{i}/feed_forward'
    gate = h @ tree[f'{w}/w1/kernel']
    x = x + (gate / (1 + np.exp(-gate)) * (h @ tree[f'{w}/w3/kernel'])) @ tree[f'{w}/w2/kernel']
  return norm(x, 'ln_f') @ tree['lm_head/kernel']


def hf_logits(cfg, dtype=np.float32):
  return reference.logits(in_memory(hf_weights(cfg, dtype)), convention('hf', 'llama'), cfg, TOKENS)


@pytest.mark.parametrize('cfg', [CFG, TIED], ids=['untied', 'tied'])
def test_what_is_written_computes_the_same_in_easylm(tmp_path, cfg):
  tree = load(convert(source_of(cfg), 'easylm', tmp_path / 'streaming_params'))
  assert set(tree) == {'transformer', 'lm_head'}  # EasyLM has a head in any case
  assert np.abs(easylm_logits(tree, cfg, TOKENS) - hf_logits(cfg)).max() < 1e-10


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('cfg', [CFG, TIED], ids=['untied', 'tied'])
def test_there_and_back_is_bit_for_bit(tmp_path, cfg, dtype):
  convert(source_of(cfg, dtype), 'easylm', tmp_path / 'streaming_params')
  back = opened(tmp_path / 'streaming_params')
  # What Hugging Face's config.json does not say changes no number.
  assert dataclasses.replace(back.cfg, preset='none') == cfg
  convert(back, 'hf', tmp_path / 'hf')
  entries = formats.open_source(tmp_path / 'hf', 'hf').entries
  for name, array in hf_weights(cfg, dtype).items():
    assert entries[name].dtype == array.dtype
    assert entries[name].read(0, array.shape[0]).tobytes() == array.tobytes(), name
  assert set(entries) == set(hf_weights(cfg))


def test_pieces_of_large_tensors_are_written_in_any_order(tmp_path, monkeypatch):
  monkeypatch.setattr(easylm_frame, 'CHUNK_BYTES', 1000)
  monkeypatch.setattr(layout, 'BLOCK_BYTES', 3000)
  tree = load(convert(source_of(TIED), 'easylm', tmp_path / 'streaming_params'))
  assert np.abs(easylm_logits(tree, TIED, TOKENS) - hf_logits(TIED)).max() < 1e-10


@pytest.mark.parametrize('prefix', [(), ('params',), ('params', 'params')])
def test_what_easylm_wrote_is_read_within_a_train_state_too(tmp_path, prefix):
  tree = load(convert(source_of(CFG), 'easylm', tmp_path / 'first'))
  state = {(*prefix, *key): array for key, array in flatten_dict(tree).items()}
  if prefix:
    moments = {('opt_state', '0', 'mu', *key): array for key, array in state.items()}
    state |= moments | {('step',): np.asarray(3)}
  save(tmp_path / 'second', unflatten_dict(state))
  (tmp_path / 'first.config.json').rename(tmp_path / 'second.config.json')
  source = opened(tmp_path / 'second')
  assert [note for note in source.notes if 'opt_state, step' in note] or not prefix
  found = reference.logits(source.entries, convention('easylm', 'llama'), source.cfg, TOKENS)
  assert np.abs(found - hf_logits(CFG)).max() < 1e-10
  assert source.places['lm_head/kernel'].theirs == 'lm_head/kernel'


def test_without_a_config_nothing_is_guessed(tmp_path):
  """llamax_15m and any model with other heads have the same shapes: which one it is must be said."""
  gates = {('transformer', 'h', str(i), 'feed_forward', 'w1', 'kernel'): np.zeros((288, 768)) for i in range(6)}
  save(tmp_path / 'x', unflatten_dict({key: gate.astype(np.float32) for key, gate in gates.items()}))
  with pytest.raises(UserError, match=r'--preset=NAME \(of these sizes: llamax_15m\).*x\.config\.json'):
    opened(tmp_path / 'x')
  with pytest.raises(UserError, match=r"--preset='llamax_51m'.*'llamax_15m'"):
    opened(tmp_path / 'x', preset='llamax_51m')
  source = opened(tmp_path / 'x', preset='llamax_15m')
  assert source.cfg.preset == 'llamax_15m' and source.cfg.num_heads == 6
  with pytest.raises(UserError, match=r'transformer/wte/embedding +wanted \[32000, 288\] +found nothing'):
    source.places  # noqa: B018


def test_a_config_may_be_given_by_name(tmp_path):
  path = convert(source_of(CFG), 'easylm', tmp_path / 'model.msgpack')
  (tmp_path / 'model.config.json').rename(tmp_path / 'other.json')
  source = opened(path, preset=str(tmp_path / 'other.json'))
  assert source.cfg == CFG and source.generation == {}
  told = json.loads((tmp_path / 'other.json').read_text()) | {'bos_token_id': 5, 'vocab_size': 96}
  (tmp_path / 'other.json').write_text(json.dumps(told))
  source = opened(path, preset=str(tmp_path / 'other.json'))
  assert source.cfg == CFG and source.generation == {'bos_token_id': 5}
  assert any('97 ids' in note for note in source.notes)


def test_a_config_of_another_model_is_a_table_of_misfits(tmp_path):
  path = convert(source_of(CFG), 'easylm', tmp_path / 'x')
  config = tmp_path / 'x.config.json'
  told = json.loads(config.read_text())
  config.write_text(json.dumps(told | {'intermediate_size': 57}))
  with pytest.raises(UserError, match=r'feed_forward/w1/kernel +wanted \[48, 57\] +found \[48, 56\]'):
    opened(path).places  # noqa: B018
  config.write_text(json.dumps(told | {'head_dim': 4}))
  with pytest.raises(UserError, match='head_dim=4'):
    opened(path)


def test_a_head_that_is_no_copy_of_the_table_is_kept(tmp_path):
  path = convert(source_of(TIED), 'easylm', tmp_path / 'x')
  assert opened(path).cfg.tie_embeddings
  tree = load(path)
  kernel = tree['lm_head']['kernel'] = tree['lm_head']['kernel'].copy()
  kernel[-1, -1] = -kernel[-1, -1]  # one bit
  save(path, tree)
  source = opened(path)
  assert not source.cfg.tie_embeddings and 'lm_head/kernel' in source.entries
  assert any('kept apart' in note for note in source.notes)


def test_an_untied_model_without_a_head_lacks_it(tmp_path):
  path = convert(source_of(CFG), 'easylm', tmp_path / 'x')
  tree = load(path)
  del tree['lm_head']
  save(path, tree)
  with pytest.raises(UserError, match=r'lm_head/kernel +wanted \[48, 97\] +found nothing'):
    opened(path).places  # noqa: B018


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'head_dim': 10}, 'head_dim=10'),
    ({'rope_scaling': 'linear'}, 'rope_scaling'),
    ({'sliding_window': 8}, 'sliding_window=8'),
    ({'qk_norm': True}, 'q_norm'),
    ({'qkv_bias': True}, 'attn/bq'),
  ],
)
def test_what_easylm_cannot_compute_is_refused(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    convert(source_of(dataclasses.replace(CFG, **changes)), 'easylm', tmp_path / 'x')
  assert list(tmp_path.iterdir()) == []


def test_a_rotary_base_that_easylm_ignores_is_told():
  """Its attention calls apply_rotary_emb without theta: a model of Llama 3 speaks gibberish there."""
  for theta, notes in ((10_000.0, 0), (500_000.0, 1)):
    cfg = dataclasses.replace(CFG, rope_theta=theta)
    assert len(easylm.Target(Model(cfg, 'llama', None, {})).notes) == notes


def test_a_config_of_something_else_is_not_overwritten(tmp_path):
  (tmp_path / 'x.config.json').write_text('{}')
  with pytest.raises(UserError, match=r'x\.config\.json exists already'):
    convert(source_of(CFG), 'easylm', tmp_path / 'x')
  assert (tmp_path / 'x.config.json').read_text() == '{}' and not (tmp_path / 'x').exists()
  assert not (tmp_path / 'x.incomplete/model').exists()  # said before the weights are copied


def test_a_name_that_stands_twice_is_refused(tmp_path):
  path = convert(source_of(CFG), 'easylm', tmp_path / 'x')
  path.write_bytes(path.read_bytes() * 2)
  with pytest.raises(FormatError, match='transformer/wte/embedding: stands there twice'):
    opened(path)


def test_other_files_are_not_taken_for_a_stream(tmp_path):
  for name, content in {
    'empty': b'',
    'text': b'some text',
    'pickle': b'\x80\x02}q\x00.',
    'pair': b'\x92\x01\x02',
  }.items():
    (tmp_path / name).write_bytes(content)
    assert not easylm.recognise(tmp_path / name)
  assert not easylm.recognise(tmp_path)
  save(tmp_path / 'other', {'encoder': np.ones(3, np.float32)})
  assert easylm.recognise(tmp_path / 'other')
  with pytest.raises(FormatError, match='no key under transformer or lm_head'):
    opened(tmp_path / 'other')


@pytest.mark.parametrize('kind', ['llama', 'qwen'])
def test_a_tokenizer_travels_beside(tmp_path, kinds, kind):
  tokenizer = open_tokenizer(kinds[kind])
  cfg = dataclasses.replace(CFG, vocab_size=tokenizer.vocab_size)
  convert(dataclasses.replace(source_of(cfg), tokenizer=tokenizer), 'easylm', tmp_path / 'x.stream')
  source = opened(tmp_path / 'x.stream')
  assert probe(tokenizer, source.tokenizer) is None and source.tokenizer.eos_id == tokenizer.eos_id
  assert tmp_path / 'x.config.json' in source.files and len(source.files) > 2
