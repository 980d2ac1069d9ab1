"""GGUF files of every family: by the gguf package's reader, from its writer, bit for bit there and back."""

import numpy as np
import pytest

from llamax.convert import gguf as ours
from llamax.convert import gguf_model, hf, layout, reference
from llamax.convert.conventions import convention
from llamax.convert.errors import FormatError
from llamax.convert.gguf_file import open_gguf
from llamax.convert.gguf_types import OF_DTYPE
from llamax.convert.source import DTYPES
from llamax.convert.target import Model
from llamax.convert.vocabulary import probe
from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from tests.convert.drawn import draw, read_ours, source, write
from tests.convert.families import FAMILIES, our_config, their_model, their_weights
from tests.data.tokenizers import made

gguf = pytest.importorskip('gguf')
FAMILY = {'mistral': 'mistral', 'qwen25': 'qwen2', 'qwen3': 'qwen3'}
# transformers' name -> llama.cpp's, as its converter maps them.
NAMES = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}


def their_name(name):
  if name in NAMES:
    return NAMES[name]
  _, _, layer, rest = name.split('.', 3)
  part, kind = rest.rsplit('.', 1)
  return f'blk.{layer}.{NAMES[part]}.{kind}'


def permuted(weights, heads):
  """What llama.cpp's converter does to q, k of its llama: pairs from halves to neighbours."""
  return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def as_llama_cpp(weights, cfg, family):
  """transformers' tensors -> those of a GGUF file."""
  found = {}
  for name, array in weights.items():
    if family in ('llama', 'mistral') and '.q_proj.' in name:
      array = permuted(array, cfg.num_heads)
    elif family in ('llama', 'mistral') and '.k_proj.' in name:
      array = permuted(array, cfg.num_kv_heads)
    found[their_name(name)] = array
  return found


def model(cfg, family='llama', **generation):
  return Model(cfg, family, None, generation)


def written(tmp_path, cfg, family='llama', dtype='float32', quantise=None, name='m.gguf', **draws):
  arrays = draw(cfg, dtype, **draws)
  target = ours.Target(model(cfg, family), quantise)
  return write(source(cfg, arrays, family), target, tmp_path / name), arrays


@pytest.mark.parametrize('name', FAMILIES)
def test_transformers_models_as_llama_cpp_has_them(tmp_path, name):
  torch = pytest.importorskip('torch')
  cfg, family = our_config(name), FAMILY.get(name, 'llama')
  theirs = their_model(name)
  theirs.save_pretrained(tmp_path / 'hf')
  from_ = hf.open_source(tmp_path / 'hf', None)
  assert from_.family == family
  path = write(from_, ours.Target(model(from_.cfg, family)), tmp_path / 'm.gguf')
  wanted = as_llama_cpp(their_weights(theirs), cfg, family)
  reader = gguf.GGUFReader(path)
  found = {tensor.name: tensor.data for tensor in reader.tensors}
  found.pop('rope_freqs.weight', None)
  assert found.keys() == wanted.keys()
  for tensor, array in wanted.items():
    np.testing.assert_array_equal(found[tensor], array, err_msg=tensor)
  again = ours.open_source(path, None)
  assert (again.cfg, again.family) == (from_.cfg, family)
  # The float64 reference reads the file's raw tensors by its own description of the format.
  ids = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, 40))
  with torch.no_grad():
    logits = theirs(torch.from_numpy(ids)).logits.numpy()
  by_reference = reference.logits(again.entries, convention('gguf', again.family), again.cfg, ids)
  np.testing.assert_allclose(by_reference, logits, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('name', FAMILIES)
def test_there_and_back_bit_for_bit(tmp_path, name, dtype):
  cfg, family = our_config(name), FAMILY.get(name, 'llama')
  path, arrays = written(tmp_path, cfg, family, dtype)
  assert ours.recognise(path)
  found = ours.open_source(path, None)
  assert (found.cfg, found.family, found.notes, found.tokenizer) == (cfg, family, [], None)
  again = read_ours(found, tmp_path / 'kept')
  assert again.keys() == arrays.keys()
  for tensor, array in arrays.items():
    assert again[tensor].dtype == array.dtype, tensor
    assert again[tensor].tobytes() == array.tobytes(), tensor
  kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
  for tensor, kind in kinds.items():
    vector = tensor.endswith(('norm.weight', '.bias', 'freqs.weight'))
    assert kind == ('F32' if vector else OF_DTYPE[dtype].name), tensor


def test_keys_are_llama_cpps(tmp_path):
  cfg = our_config('yarn', sliding_window=7)
  keys = written(tmp_path, cfg, 'mistral', 'bfloat16')[0]
  reader = gguf.GGUFReader(keys)

  def value(key):
    return reader.get_field(key).contents()

  names = gguf.Keys
  for key, wanted in {
    names.General.ARCHITECTURE: 'llama',
    names.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
    names.General.FILE_TYPE: gguf.LlamaFileType.MOSTLY_BF16,
    names.LLM.VOCAB_SIZE: 97,
    names.LLM.CONTEXT_LENGTH: 128,
    names.LLM.EMBEDDING_LENGTH: 48,
    names.LLM.BLOCK_COUNT: 3,
    names.LLM.FEED_FORWARD_LENGTH: 56,
    names.Attention.HEAD_COUNT: 6,
    names.Attention.HEAD_COUNT_KV: 2,
    names.Attention.KEY_LENGTH: 10,
    names.Attention.VALUE_LENGTH: 10,
    names.Attention.LAYERNORM_RMS_EPS: np.float32(1e-5),
    names.Attention.SLIDING_WINDOW: 7,
    names.Rope.DIMENSION_COUNT: 10,
    names.Rope.FREQ_BASE: 500.0,
    names.Rope.SCALING_TYPE: gguf.RopeScalingType.YARN.value,
    names.Rope.SCALING_FACTOR: 4.0,
    names.Rope.SCALING_ORIG_CTX_LEN: 32,
    '{arch}.rope.scaling.yarn_beta_fast': 4.0,
    '{arch}.rope.scaling.yarn_beta_slow': 1.0,
  }.items():
    assert value(key.format(arch='llama')) == wanted, key
  assert value('tokenizer.ggml.model') == 'no_vocab'


def test_generation_travels(tmp_path):
  cfg = our_config('llama2')
  told = {'bos_token_id': 1, 'eos_token_id': [2, 5], 'temperature': 0.6}
  path = write(source(cfg, draw(cfg)), ours.Target(model(cfg, **told)), tmp_path / 'm.gguf')
  assert ours.open_source(path, None).generation == told


def foreign(tmp_path, keys=None, dtype='float32', name='llama2', drop=(), tensors=None, **changes):
  """A file as llama.cpp's converter writes it, by the gguf package: nothing of our own in it."""
  cfg = our_config(name, **changes)
  family = FAMILY.get(name, 'llama')
  arch = 'llama' if family == 'mistral' else family
  writer = gguf.GGUFWriter(tmp_path / 'foreign.gguf', arch)
  told = {
    'context_length': cfg.max_seq_len,
    'embedding_length': cfg.d_model,
    'block_count': cfg.num_layers,
    'feed_forward_length': cfg.d_ff,
    'attention.head_count': cfg.num_heads,
    'attention.head_count_kv': cfg.num_kv_heads,
    'attention.key_length': cfg.head_dim,
    'attention.layer_norm_rms_epsilon': cfg.norm_eps,
    'rope.freq_base': cfg.rope_theta,
  }
  for key, value in (told | (keys or {})).items():
    if key in drop:
      continue
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add |= {bool: writer.add_bool, list: writer.add_array}
    add[type(value)](
      key if '.' in key and key.split('.')[0] in ('llamax', 'tokenizer') else f'{arch}.{key}', value
    )
  arrays = draw(cfg, dtype)
  from_ = source(cfg, arrays, family)
  hf_target = hf.Target(model(cfg, family))
  from tests.convert.conftest import read_weights

  weights = read_weights(write(from_, hf_target, tmp_path / 'foreign_hf'))
  for tensor, array in (as_llama_cpp(weights, cfg, family) | (tensors or {})).items():
    if array.ndim == 1:
      writer.add_tensor(tensor, array.astype(np.float32))
    elif array.dtype == DTYPES['bfloat16']:
      writer.add_tensor(tensor, array.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
      writer.add_tensor(tensor, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return tmp_path / 'foreign.gguf', cfg, arrays


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('name', ['llama2', 'biases', 'qwen25', 'qwen3'])
def test_files_of_others_are_read_bit_for_bit(tmp_path, name, dtype):
  path, cfg, arrays = foreign(tmp_path, name=name, dtype=dtype)
  found = ours.open_source(path, None)
  assert found.cfg == cfg
  again = read_ours(found, tmp_path / 'kept')
  for tensor, array in arrays.items():
    assert again[tensor].dtype == array.dtype, tensor
    assert again[tensor].tobytes() == array.tobytes(), tensor


def test_vectors_of_full_precision_stay_so(tmp_path):
  cfg = our_config('llama2')
  arrays = draw(cfg, 'bfloat16')
  arrays['final_norm/scale'] = draw(cfg)['final_norm/scale']
  arrays['layers/1/attn_norm/scale'] = np.ones(cfg.d_model, np.float32)
  path = write(source(cfg, arrays), ours.Target(model(cfg)), tmp_path / 'm.gguf')
  again = read_ours(ours.open_source(path, None), tmp_path / 'kept')
  for tensor, array in arrays.items():
    assert again[tensor].dtype == array.dtype, tensor
    assert again[tensor].tobytes() == array.tobytes(), tensor


def test_cast_matrices_leave_vectors_exact(tmp_path):
  cfg = our_config('llama2')
  arrays = draw(cfg)
  path = write(source(cfg, arrays), ours.Target(model(cfg)), tmp_path / 'm.gguf', 'bfloat16')
  again = read_ours(ours.open_source(path, None), tmp_path / 'kept')
  for tensor, array in arrays.items():
    wanted = array if array.ndim == 1 else array.astype(DTYPES['bfloat16'])
    assert again[tensor].tobytes() == wanted.tobytes(), tensor


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_q8_0_is_ggmls(tmp_path, monkeypatch, dtype):
  monkeypatch.setattr(layout, 'BLOCK_BYTES', 2000)  # several pieces a tensor
  monkeypatch.setattr(ours, '_PACKED_AT_A_TIME', 150)
  # 56 is no multiple of 32: those rows become float16.
  cfg = our_config('llama2', d_model=64, num_heads=8, num_kv_heads=2)
  path, arrays = written(tmp_path, cfg, dtype=dtype, quantise='q8_0')
  reader = gguf.GGUFReader(path)
  assert reader.get_field('general.file_type').contents() == gguf.LlamaFileType.MOSTLY_Q8_0
  assert reader.get_field('general.quantization_version').contents() == gguf.GGML_QUANT_VERSION
  kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
  assert kinds['token_embd.weight'] == kinds['output.weight'] == kinds['blk.0.attn_q.weight'] == 'Q8_0'
  assert kinds['blk.0.ffn_down.weight'] == 'F16'
  assert kinds['blk.0.attn_norm.weight'] == 'F32'
  table = next(tensor for tensor in reader.tensors if tensor.name == 'token_embd.weight')
  wide = arrays['embed/table'].astype(np.float32)
  np.testing.assert_array_equal(table.data, gguf.quants.quantize(wide, gguf.GGMLQuantizationType.Q8_0))
  again = read_ours(ours.open_source(path, None), tmp_path / 'kept')
  assert {array.dtype.name for array in again.values()} == {'float32', 'float16'}
  wanted = gguf.quants.dequantize(table.data, gguf.GGMLQuantizationType.Q8_0)
  np.testing.assert_array_equal(again['embed/table'], wanted)
  for tensor, array in arrays.items():
    assert (
      np.abs(again[tensor] - array.astype(np.float32)).max() <= np.abs(array.astype(np.float32)).max() / 100
    )


@pytest.mark.parametrize('kind', ['Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q4_K', 'Q6_K'])
def test_quantised_files_of_others_are_read(tmp_path, kind):
  packing = gguf.GGMLQuantizationType[kind]
  cfg = our_config('llama2', d_model=256, d_ff=512, num_heads=8, num_kv_heads=2, head_dim=32, num_layers=1)
  path, _ = written(tmp_path, cfg)
  plain, packed = gguf.GGUFReader(path), gguf.GGUFWriter(tmp_path / 'packed.gguf', 'llama')
  for key, value in gguf_model.write_keys(cfg, 'llama').items():
    {int: packed.add_uint32, float: packed.add_float32}[type(value)](key, value)
  wanted, rng = {}, np.random.default_rng(0)
  for tensor in plain.tensors:
    if tensor.data.ndim == 1:
      wanted[tensor.name] = tensor.data
      packed.add_tensor(tensor.name, tensor.data)
      continue
    if kind.endswith('_K'):
      # Their library has no packer: any bytes are blocks.
      shape = gguf.quant_shape_to_byte_shape(tensor.data.shape, packing)
      blocks = rng.integers(0, 60, shape, dtype=np.uint8)
    else:
      blocks = gguf.quants.quantize(tensor.data, packing)
    packed.add_tensor(tensor.name, blocks, raw_dtype=packing)
    wanted[tensor.name] = gguf.quants.dequantize(blocks, packing)
  packed.write_header_to_file()
  packed.write_kv_data_to_file()
  packed.write_tensors_to_file()
  packed.close()
  found = ours.open_source(tmp_path / 'packed.gguf', None)
  assert found.cfg == cfg
  for place in found.places.values():
    stored = found.entries[place.theirs]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored.read(0, stored.shape[0]), wanted[place.theirs])
  # The values lie in the order of the architecture, whatever packs them.
  arrays = read_ours(found, tmp_path / 'kept')
  query = wanted['blk.0.attn_q.weight'].reshape(8, 16, 2, 256)
  np.testing.assert_array_equal(arrays['layers/0/attn/wq'], query.transpose(3, 0, 2, 1).reshape(256, 8, 32))


META = {'llama31': (8.0, 1.0, 4.0, 8192), 'llama32': (32.0, 1.0, 4.0, 8192), 'own': (4.0, 1.0, 2.5, 64)}


def their_factors(torch, theta, dim, factor, low, high, original):
  """llama.cpp's converter, in torch's float32."""
  factors = []
  for freq in 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
    wavelength = 2 * np.pi / freq
    if wavelength < original / high:
      factors.append(1)
    elif wavelength > original / low:
      factors.append(factor)
    else:
      smooth = (original / wavelength - low) / (high - low)
      factors.append(1 / ((1 - smooth) / factor + smooth))
  return torch.tensor(factors, dtype=torch.float32).numpy()


def scaled(name, **changes):
  factor, low, high, original = META[name]
  return our_config(
    'llama2',
    head_dim=32,
    rope_theta=5e5,
    rope_scaling='llama3',
    rope_factor=factor,
    rope_low_freq_factor=low,
    rope_high_freq_factor=high,
    rope_original_max_len=original,
    **changes,
  )


@pytest.mark.parametrize('name', META)
def test_rope_factors_are_llama_cpps(tmp_path, name):
  torch = pytest.importorskip('torch')
  cfg = scaled(name)
  path, _ = written(tmp_path, cfg)
  found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}['rope_freqs.weight']
  wanted = their_factors(torch, 5e5, 32, *META[name])
  assert len(set(wanted.tolist())) >= 3
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  assert ours.open_source(path, None).cfg == cfg
  assert (gguf_model.SCALING_KEY in open_gguf(path).keys) == (name == 'own')


def test_a_scaling_is_told_where_a_short_head_has_the_factors_of_another(tmp_path):
  shape = {'head_dim': 4, 'rope_theta': 1e10, 'rope_scaling': 'llama3'}
  cfg = our_config('llama2', **shape, rope_factor=8.0, rope_original_max_len=512)
  path, _ = written(tmp_path, cfg)
  published = gguf_model.rope_factors(1e10, 4, META['llama31'])
  np.testing.assert_array_equal(gguf_model.factors_of(cfg), published)
  assert ours.open_source(path, None).cfg == cfg


@pytest.mark.parametrize('name', ['llama31', 'llama32'])
def test_published_scalings_are_known_by_their_factors(tmp_path, name):
  torch = pytest.importorskip('torch')
  cfg = scaled(name)
  factors = their_factors(torch, 5e5, 32, *META[name])
  path, _, _ = foreign(tmp_path, head_dim=32, rope_theta=5e5, tensors={'rope_freqs.weight': factors})
  assert ours.open_source(path, None).cfg == cfg


def test_unknown_factors_are_refused_by_name(tmp_path):
  factors = np.linspace(1, 9, 4).astype(np.float32)
  path, _, _ = foreign(tmp_path, tensors={'rope_freqs.weight': factors})
  with pytest.raises(FormatError, match='none of the scalings') as error:
    ours.open_source(path, None)
  assert error.value.field == 'rope_freqs.weight'


def test_a_window_that_llama_cpp_does_not_compute_is_told():
  assert 'sliding window of 7' in ours.Target(model(our_config('mistral'), 'mistral')).notes[0]
  assert ours.Target(model(our_config('llama2'))).notes == []


@pytest.fixture(scope='module', params=['sentencepiece', 'merges'])
def tokenizer(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  if request.param == 'merges':
    made.qwen_folder(folder / 'qwen')
    return open_tokenizer(folder / 'qwen')
  (folder / 'tokenizer.model').write_bytes(made.llama_model())
  return open_tokenizer(folder)


def test_the_tokenizer_travels(tmp_path, tokenizer):
  # More rows than ids, as trained models have.
  cfg = our_config('llama2', vocab_size=tokenizer.vocab_size + 5)
  path = write(source(cfg, draw(cfg)), ours.Target(Model(cfg, 'llama', tokenizer, {})), tmp_path / 'm.gguf')
  reader = gguf.GGUFReader(path)
  tokens = reader.get_field('tokenizer.ggml.tokens').contents()
  assert len(tokens) == len(reader.get_field('tokenizer.ggml.token_type').contents()) == cfg.vocab_size
  assert reader.get_field('tokenizer.ggml.eos_token_id').contents() == tokenizer.eos_id
  found = ours.open_source(path, None)
  assert found.notes == []
  assert probe(tokenizer, found.tokenizer) is None
  assert (found.tokenizer.bos_id, found.tokenizer.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
  assert ours.open_source(path, tokenizer).tokenizer is tokenizer


def test_a_tokenizer_of_an_unknown_kind_is_left_out_with_a_note(tmp_path):
  path, cfg, _ = foreign(tmp_path, {'tokenizer.ggml.model': 'bert', 'tokenizer.ggml.tokens': ['a', 'b']})
  found = ours.open_source(path, None)
  assert (found.cfg, found.tokenizer) == (cfg, None)
  assert 'bert' in found.notes[0] and '--tokenizer' in found.notes[0]


@pytest.mark.parametrize(
  ('keys', 'drop', 'field', 'problem'),
  [
    ({}, ('block_count',), 'llama.block_count', 'missing'),
    ({'block_count': 1 << 30}, (), 'llama.block_count', 'tensors'),
    ({'attention.head_count_kv': 4}, (), 'llama.attention.head_count_kv', 'divide'),
    ({'attention.key_length': 7}, (), 'llama.attention.key_length', 'even'),
    ({'attention.value_length': 16}, (), 'llama.attention.value_length', 'key length'),
    ({'rope.dimension_count': 4}, (), 'llama.rope.dimension_count', 'key length'),
    ({'rope.scaling.type': 'longrope'}, (), 'llama.rope.scaling.type', 'longrope'),
    ({'expert_count': 8}, (), 'llama.expert_count', 'does not compute'),
    ({'attention.scale': 0.5}, (), 'llama.attention.scale', 'does not compute'),
    ({'attention.causal': False}, (), 'llama.attention.causal', 'causal'),
    ({'rope.freq_base': float('nan')}, (), 'llama.rope.freq_base', 'above 0'),
    (
      {'attention.layer_norm_rms_epsilon': float('inf')},
      (),
      'llama.attention.layer_norm_rms_epsilon',
      'above 0',
    ),
    ({'context_length': 'long'}, (), 'llama.context_length', 'whole number'),
    ({'attention.head_count_kv': [6, 2, 6]}, (), 'llama.attention.head_count_kv', 'whole number'),
    ({'llamax.vector_dtypes': '[' * 99_999}, (), 'llamax.vector_dtypes', 'deep'),
  ],
)
def test_what_llamax_does_not_compute_is_refused_by_key(tmp_path, keys, drop, field, problem):
  path, _, _ = foreign(tmp_path, keys, drop=drop)
  with pytest.raises(UserError, match=problem) as error:
    assert ours.open_source(path, None).places
  assert error.value.field == field


def test_harmless_keys_are_passed_over(tmp_path):
  keys = {
    'expert_count': 0,
    'attention.head_count': [6, 6, 6],
    'rope.scaling.finetuned': True,
    'vocab_size': 97,
  }
  path, cfg, _ = foreign(tmp_path, keys, drop=('attention.key_length',))
  assert ours.open_source(path, None).cfg == cfg


def test_other_architectures_are_refused(tmp_path):
  path, _, _ = foreign(tmp_path)
  content = path.read_bytes().replace(b'llama', b'gemma')
  path.write_bytes(content)
  with pytest.raises(FormatError, match='gemma') as error:
    ours.open_source(path, None)
  assert error.value.field == 'general.architecture'


def test_missing_and_extra_tensors_are_a_table(tmp_path):
  path, _, _ = foreign(tmp_path, tensors={'blk.1.attn_rot': np.ones((4, 3), np.float32)})
  with pytest.raises(UserError, match=r'blk\.1\.attn_rot +wanted nothing +found \[4, 3\]'):
    assert ours.open_source(path, None).places


@pytest.mark.parametrize(
  ('name', 'family', 'changes', 'problem'),
  [
    ('qwen3', 'qwen3', {'qkv_bias': True, 'out_bias': True}, 'no biases'),
    ('qwen25', 'qwen2', {'rope_scaling': 'llama3'}, 'llama alone'),
    ('llama2', 'llama', {'norm': 'layernorm'}, 'llamax alone'),
  ],
)
def test_models_that_llama_cpp_does_not_know_are_refused(name, family, changes, problem):
  with pytest.raises(UserError, match=problem):
    ours.Target(model(our_config(name, **changes), family))
