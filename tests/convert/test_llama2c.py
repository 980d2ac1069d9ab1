"""llama2.c files beside a reader, a writer, a forward pass written from its published format alone."""

import struct

import numpy as np
import pytest

from llamax.convert import llama2c
from llamax.convert.errors import FormatError
from llamax.convert.target import Model
from llamax.convert.vocabulary import probe
from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from tests.convert.drawn import draw, read, read_ours, source, write
from tests.convert.families import our_config, their_model, their_weights
from tests.data.tokenizers import made

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, POSITIONS = 48, 56, 3, 6, 2, 97, 128
HEAD = DIM // HEADS
CFG = {'head_dim': HEAD, 'rope_theta': 10_000.0}


def config(**changes):
  return our_config('llama2', num_kv_heads=KV_HEADS, **{**CFG, **changes})


def their_read(content):
  """version 0 as run.c walks it, version 1 as export.py writes it: name -> array, layers first."""
  version, at = 0, 0
  if struct.unpack_from('I', content)[0] == 0x616B3432:
    version, at = struct.unpack_from('i', content, 4)[0], 8
  dim, hidden, layers, heads, kv_heads, vocab, positions = struct.unpack_from('7i', content, at)
  shared = vocab > 0 if version == 0 else bool(content[36])
  at, vocab, kv_dim = 28 if version == 0 else 256, abs(vocab), dim // heads * kv_heads
  emb = [('emb', (vocab, dim))]
  attention = [('wq', (layers, dim, dim)), ('wk', (layers, kv_dim, dim)), ('wv', (layers, kv_dim, dim))]
  attention += [('wo', (layers, dim, dim))]
  mlp = [('w1', (layers, hidden, dim)), ('w2', (layers, dim, hidden)), ('w3', (layers, hidden, dim))]
  norms = [('att_norm', (layers, dim)), ('ffn_norm', (layers, dim)), ('norm', (dim,))]
  tables = [(name, (positions, dim // heads // 2)) for name in ('cos', 'sin')]
  order = [*emb, norms[0], *attention, norms[1], *mlp, norms[2], *tables]
  if version == 1:
    order = [*norms, *emb, *attention, *mlp]
  order += [] if shared else [('out', (vocab, dim))]
  found = {}
  for name, shape in order:
    count = int(np.prod(shape))
    found[name] = np.frombuffer(content, '<f4', count, at).reshape(shape)
    at += 4 * count
  assert at == len(content)
  return found, (dim, hidden, layers, heads, kv_heads, vocab, positions)


def their_logits(found, counts, ids):
  """run.c in float64: neighbours are turned, one position after another."""
  dim, _, layers, heads, kv_heads, _, positions = counts
  size = dim // heads
  w = {name: array.astype(np.float64) for name, array in found.items()}
  angles = np.arange(positions)[:, None] * 10_000.0 ** (-np.arange(0, size, 2) / size)
  turn = np.exp(1j * angles)

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale

  def rotate(x):
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turn[: len(x), None]
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

  x = w['emb'][ids]
  for i in range(layers):
    h = norm(x, w['att_norm'][i])
    q = rotate((h @ w['wq'][i].T).reshape(len(ids), heads, size))
    k = rotate((h @ w['wk'][i].T).reshape(len(ids), kv_heads, size)).repeat(heads // kv_heads, 1)
    v = (h @ w['wv'][i].T).reshape(len(ids), kv_heads, size).repeat(heads // kv_heads, 1)
    scores = np.einsum('tnh,snh->nts', q, k) / size**0.5
    scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    x = x + np.einsum('nts,snh->tnh', weights, v).reshape(len(ids), dim) @ w['wo'][i].T
    h = norm(x, w['ffn_norm'][i])
    gate = h @ w['w1'][i].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ w['w3'][i].T)) @ w['w2'][i].T
  return norm(x, w['norm']) @ w.get('out', w['emb']).T


def interleaved(rows, heads):
  """Half-split rows to neighbours, number by number."""
  size = rows.shape[0] // heads
  out = np.empty_like(rows)
  for head in range(heads):
    for i in range(size // 2):
      out[head * size + 2 * i] = rows[head * size + i]
      out[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
  return out


def model(cfg):
  return Model(cfg, 'llama', None, {})


@pytest.mark.parametrize('version', [0, 1])
@pytest.mark.parametrize('tied', [False, True])
def test_written_as_the_published_format_says(tmp_path, version, tied):
  cfg = config(tie_embeddings=tied)
  arrays = draw(cfg)
  path = write(source(cfg, arrays), llama2c.Target(model(cfg), version), tmp_path / 'm.bin')
  found, counts = their_read(path.read_bytes())
  assert counts == (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, POSITIONS)
  np.testing.assert_array_equal(found['emb'], arrays['embed/table'])
  np.testing.assert_array_equal(found['norm'], arrays['final_norm/scale'])
  for i in range(LAYERS):
    ours = {
      name.removeprefix(f'layers/{i}/'): a for name, a in arrays.items() if name.startswith(f'layers/{i}/')
    }
    flat = {name: a.reshape(DIM, -1).T for name, a in ours.items() if a.ndim == 3 and not name.endswith('wo')}
    np.testing.assert_array_equal(found['wq'][i], interleaved(flat['attn/wq'], HEADS))
    np.testing.assert_array_equal(found['wk'][i], interleaved(flat['attn/wk'], KV_HEADS))
    np.testing.assert_array_equal(found['wv'][i], flat['attn/wv'])
    np.testing.assert_array_equal(found['wo'][i], ours['attn/wo'].reshape(-1, DIM).T)
    np.testing.assert_array_equal(found['w1'][i], ours['mlp/w_gate'].T)
    np.testing.assert_array_equal(found['w2'][i], ours['mlp/w_down'].T)
    np.testing.assert_array_equal(found['w3'][i], ours['mlp/w_up'].T)
    np.testing.assert_array_equal(found['att_norm'][i], ours['attn_norm/scale'])
    np.testing.assert_array_equal(found['ffn_norm'][i], ours['mlp_norm/scale'])
  if tied:
    assert 'out' not in found
  else:
    np.testing.assert_array_equal(found['out'], arrays['lm_head/kernel'].T)
  if version == 0:
    angles = np.arange(POSITIONS)[:, None] * 10_000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
    np.testing.assert_allclose(found['cos'], np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(found['sin'], np.sin(angles), atol=1e-5)


@pytest.mark.parametrize('version', [0, 1])
@pytest.mark.parametrize('tied', [False, True])
def test_read_back_bit_for_bit(tmp_path, version, tied):
  cfg = config(tie_embeddings=tied)
  arrays = draw(cfg)
  path = write(source(cfg, arrays), llama2c.Target(model(cfg), version), tmp_path / 'm.bin')
  assert llama2c.recognise(path)
  found = llama2c.open_source(path, None)
  assert (found.cfg, found.family, found.notes) == (cfg, 'llama', [])
  again = read_ours(found, tmp_path / 'kept')
  assert again.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize('tied', [False, True])
def test_transformers_weights_give_the_same_logits_in_llama2c(tmp_path, tied):
  torch = pytest.importorskip('torch')
  pytest.importorskip('transformers')
  from llamax.convert import hf

  theirs = their_model('llama2', num_key_value_heads=KV_HEADS, tie_word_embeddings=tied)
  theirs.config.rope_parameters['rope_theta'] = 10_000.0
  theirs = type(theirs)(theirs.config)
  theirs.eval().save_pretrained(tmp_path / 'hf')
  assert their_weights(theirs)
  from_ = hf.open_source(tmp_path / 'hf', None)
  path = write(from_, llama2c.Target(model(from_.cfg)), tmp_path / 'm.bin')
  ids = np.random.default_rng(1).integers(0, VOCAB, 40)
  with torch.no_grad():
    wanted = theirs(torch.from_numpy(ids)[None]).logits[0].numpy()
  np.testing.assert_allclose(their_logits(*their_read(path.read_bytes()), ids), wanted, atol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'norm_eps': 1e-6}, 'norm_eps'),
    ({'rope_theta': 5e5}, 'rope_theta'),
    ({'rope_scaling': 'linear', 'rope_factor': 2.0}, 'rope_scaling'),
    ({'head_dim': 10}, 'head_dim'),
    ({'d_model': 50}, 'head_dim'),
    ({'qkv_bias': True}, 'qkv_bias'),
    ({'qk_norm': True}, 'qk_norm'),
    ({'sliding_window': 7}, 'sliding_window'),
    ({'mlp_bias': True}, 'mlp_bias'),
  ],
)
def test_a_model_that_the_format_cannot_hold_is_refused_by_field(changes, named):
  with pytest.raises(UserError, match=f'model.{named}='):
    llama2c.Target(model(config(**changes)))


def test_other_dtypes_are_refused(tmp_path):
  cfg = config()
  from_ = source(cfg, draw(cfg, 'bfloat16'))
  with pytest.raises(UserError, match='--dtype=float32'):
    write(from_, llama2c.Target(model(cfg)), tmp_path / 'm.bin')
  path = write(from_, llama2c.Target(model(cfg)), tmp_path / 'm.bin', 'float32')
  assert {array.dtype.name for array in read(llama2c.open_source(path, None)).values()} == {'float32'}


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  (folder / 'tokenizer.model').write_bytes(made.llama_model())
  return open_tokenizer(folder)


def test_the_tokenizer_lies_beside(tmp_path, tokenizer):
  cfg = config(vocab_size=tokenizer.vocab_size + 3)
  from_ = source(cfg, draw(cfg))
  with_tokenizer = Model(cfg, 'llama', tokenizer, {})
  path = write(from_, llama2c.Target(with_tokenizer), tmp_path / 'm.bin')
  beside = tmp_path / 'm.tokenizer.bin'
  # As run.c reads it: so many pieces as the model has ids.
  content, at = beside.read_bytes(), 4
  for _ in range(cfg.vocab_size):
    at += 8 + struct.unpack_from('<i', content, at + 4)[0]
  assert at == len(content)
  for name in ('m.tokenizer.bin', 'tokenizer.bin'):
    beside = beside.rename(tmp_path / name)
    found = llama2c.open_source(path, None)
    assert probe(tokenizer, found.tokenizer) is None
    assert found.files == [path, beside]
  beside.write_bytes(content[:-1])
  found = llama2c.open_source(path, None)
  assert found.tokenizer is None
  assert '--tokenizer' in found.notes[0]


def test_a_tokenizer_of_another_model_is_not_overwritten(tmp_path, tokenizer):
  cfg = config(vocab_size=tokenizer.vocab_size)
  (tmp_path / 'm.tokenizer.bin').write_bytes(b'another')
  with pytest.raises(UserError, match='exists already'):
    write(source(cfg, draw(cfg)), llama2c.Target(Model(cfg, 'llama', tokenizer, {})), tmp_path / 'm.bin')
  # Before the first weight.
  assert not (tmp_path / 'm.bin.incomplete/model').exists()


@pytest.fixture
def content(tmp_path):
  def make(version=0, **changes):
    cfg = config(**changes)
    name = f'{version}{len(list(tmp_path.iterdir()))}.bin'
    return write(source(cfg, draw(cfg)), llama2c.Target(model(cfg), version), tmp_path / name)

  return make


def damaged(path, at, form, value):
  content = bytearray(path.read_bytes())
  struct.pack_into(form, content, at, value)
  path.write_bytes(content)
  return path


@pytest.mark.parametrize(
  ('version', 'at', 'form', 'value', 'field'),
  [
    (0, 0, '<i', 47, 'n_heads'),
    (0, 0, '<i', 1 << 30, 'dim'),
    (0, 4, '<i', 0, 'hidden_dim'),
    (0, 8, '<i', 4096, 'n_layers'),
    (0, 8, '<i', -3, 'n_layers'),
    (0, 12, '<i', 5, 'n_heads'),
    (0, 16, '<i', 4, 'n_kv_heads'),
    (0, 20, '<i', -(1 << 31), 'vocab_size'),
    (0, 20, '<i', 98, 'header'),
    (0, 24, '<i', 129, 'header'),
    (1, 4, '<i', 2, 'version'),
    (1, 36, '<B', 2, 'shared_classifier'),
    (1, 36, '<B', 1, 'header'),
  ],
)
def test_lying_headers_name_the_field(content, version, at, form, value, field):
  path = damaged(content(version), at, form, value)
  with pytest.raises(FormatError) as error:
    llama2c.open_source(path, None)
  assert error.value.field == field
  assert str(path) in str(error.value)


def test_a_truncated_file_says_so(content):
  path = content()
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(FormatError, match='is it whole'):
    llama2c.open_source(path, None)
  path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(FormatError):
    llama2c.open_source(path, None)
  assert not llama2c.recognise(path)


def test_rotary_tables_of_another_base_are_refused(content):
  path = content()
  found, _ = their_read(path.read_bytes())
  at = path.read_bytes().index(found['cos'].tobytes())
  angles = np.arange(POSITIONS)[:, None] * 5e5 ** (-np.arange(0, HEAD, 2) / HEAD)
  content_ = bytearray(path.read_bytes())
  content_[at : at + found['cos'].nbytes] = np.cos(angles).astype('<f4').tobytes()
  path.write_bytes(content_)
  with pytest.raises(FormatError, match='base 10000'):
    llama2c.open_source(path, None)
  content_[at : at + 2 * found['cos'].nbytes] = bytes(2 * found['cos'].nbytes)
  path.write_bytes(content_)
  assert 'empty' in llama2c.open_source(path, None).notes[0]


def test_signalling_nans_in_the_tables_are_refused_in_silence(content):
  path = content()
  found, _ = their_read(path.read_bytes())
  at = path.read_bytes().index(found['cos'].tobytes())
  # Warnings are errors here, and numpy warns of such numbers.
  with pytest.raises(FormatError, match='base 10000'):
    llama2c.open_source(damaged(path, at + 4, '<I', 0x7F800001), None)


def test_other_files_are_not_taken_for_it(tmp_path):
  for name, text in (
    ('a.bin', b'GGUF' + bytes(60)),
    ('b.bin', b'\x82' * 64),
    ('c.bin', b''),
    ('d.bin', bytes(64)),
  ):
    (tmp_path / name).write_bytes(text)
    assert not llama2c.recognise(tmp_path / name)
  assert not llama2c.recognise(tmp_path)
