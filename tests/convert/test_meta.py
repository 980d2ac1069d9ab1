"""Meta's folders: logits of an independent model, parts as fairscale cuts them, bytes that come back."""

import json

import numpy as np
import pytest

from llamax.convert import copy, formats, meta
from llamax.convert.errors import FormatError
from llamax.convert.target import Model
from llamax.core.errors import UserError
from tests.data.tokenizers import made as made_tokenizers

from . import meta_model

torch = pytest.importorskip('torch')

# D 48, N 6, K 2, H 8, F 56 (multiple_of 8), V 62, 3 layers
PARAMS = {
  'dim': 48,
  'n_layers': 3,
  'n_heads': 6,
  'n_kv_heads': 2,
  'vocab_size': 62,
  'multiple_of': 8,
  'ffn_dim_multiplier': 0.4,
  'norm_eps': 1e-5,
}
LLAMA1 = {'n_kv_heads': None, 'vocab_size': -1, 'norm_eps': 1e-6}
LLAMA3 = {'rope_theta': 500_000.0}
LLAMA31 = LLAMA3 | {'use_scaled_rope': True}
MISTRAL = {
  'hidden_dim': 56,
  'head_dim': 10,
  'sliding_window': 5,
  'multiple_of': None,
  'ffn_dim_multiplier': None,
}


def made(changes):
  return {name: value for name, value in (PARAMS | changes).items() if value is not None}


def is_llama3(params):
  return params.get('rope_theta') == 500_000.0


def weights(params, dtype=torch.float32, seed=0, tied=False):
  """Random tensors of Meta's names, shapes; norms near 1."""
  generator = torch.Generator().manual_seed(seed)
  D, N, F = params['dim'], params['n_heads'], 56
  V = params['vocab_size'] if params['vocab_size'] > 0 else 62
  K, H = params.get('n_kv_heads', N), params.get('head_dim', D // N)
  shapes = {'tok_embeddings.weight': (V, D), 'norm.weight': (D,), 'output.weight': (V, D)}
  for layer in range(params['n_layers']):
    at = f'layers.{layer}'
    shapes |= {
      f'{at}.attention.wq.weight': (N * H, D),
      f'{at}.attention.wk.weight': (K * H, D),
      f'{at}.attention.wv.weight': (K * H, D),
      f'{at}.attention.wo.weight': (D, N * H),
      f'{at}.feed_forward.w1.weight': (F, D),
      f'{at}.feed_forward.w2.weight': (D, F),
      f'{at}.feed_forward.w3.weight': (F, D),
      f'{at}.attention_norm.weight': (D,),
      f'{at}.ffn_norm.weight': (D,),
    }
  found = {}
  for name, shape in shapes.items():
    noise = torch.randn(shape, generator=generator)
    found[name] = (1 + 0.3 * noise if len(shape) == 1 else noise / shape[1] ** 0.5).to(dtype)
  if tied:
    found['output.weight'] = found['tok_embeddings.weight']
  return found


def folder(path, params, ranks):
  path.mkdir()
  (path / 'params.json').write_text(json.dumps(params))
  for index, rank in enumerate(ranks):
    torch.save(rank, path / f'consolidated.{index:02d}.pth')
  return path


@pytest.fixture
def make(tmp_path):
  """(changes of PARAMS, files, ...) -> (folder, params, tensors)."""

  def make(changes=(), files=1, name='meta', extra=(), **options):
    params = made(dict(changes))
    tensors = weights(params, **options)
    llama3 = is_llama3(params)
    ranks = meta_model.split(tensors | dict(extra), files, llama3) if files > 1 else [tensors | dict(extra)]
    return folder(tmp_path / name, params, ranks), params, tensors

  return make


def convert(path, destination, to, **options):
  source = formats.open_source(path)
  model = Model(source.cfg, source.family, source.tokenizer, source.generation)
  target = formats.open_target(to, model, **options)
  steps = copy.make_plan(source, target, None)
  written = []
  copy.copy(source, target, steps, destination, {}, threads=2, progress=written.append, say=lambda text: None)
  assert sum(written) == sum(step.num_bytes for step in steps)
  return destination


def load(path):
  """Each rank's tensors, by torch's own loader."""
  return [torch.load(file, weights_only=True) for file in sorted(path.glob('consolidated.*.pth'))]


def same(first, second):
  assert first.keys() == second.keys()
  for name, tensor in first.items():
    other = second[name]
    assert tensor.dtype == other.dtype and tensor.shape == other.shape, name
    assert torch.equal(tensor.view(torch.uint8), other.view(torch.uint8)), name


def hf_logits(path, tokens, positions):
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=torch.float64, attn_implementation='eager'
  )
  with torch.no_grad():
    return model(torch.tensor([tokens]), position_ids=torch.tensor([positions])).logits[0].numpy()


MODELS = {
  'llama 1': LLAMA1,
  'llama 2': {},
  'code llama': {'rope_theta': 1e6},
  'llama 3': LLAMA3,
  'llama 3.1': LLAMA31,
  'mistral': MISTRAL,
}
TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 62, 14)]
# Far apart, so that slow pairs turn too; in a row where a window counts neighbours.
POSITIONS = [index * 150 for index in range(14)]


@pytest.mark.parametrize('files', [1, 2])
@pytest.mark.parametrize('model', [*MODELS, 'llama 3.2'])
def test_logits_of_an_independent_model(make, tmp_path, model, files):
  pytest.importorskip('transformers')
  tied = model == 'llama 3.2'
  path, params, tensors = make(LLAMA31 if tied else MODELS[model], files, tied=tied)
  numbers = {name: tensor.double().numpy() for name, tensor in tensors.items()}
  positions = list(range(14)) if model == 'mistral' else POSITIONS
  params['test_factor'] = 32.0 if tied else 8.0
  wanted = meta_model.logits(params, numbers, TOKENS, np.array(positions))
  hf = convert(path, tmp_path / 'hf', 'hf')
  np.testing.assert_allclose(hf_logits(hf, TOKENS, positions), wanted, atol=1e-5, rtol=0)

  back = convert(hf, tmp_path / 'back', 'meta', shards=files)
  written = json.loads((back / 'params.json').read_text()) | {'test_factor': params['test_factor']}
  joined = meta_model.join(load(back), is_llama3(params))
  numbers = {name: tensor.double().numpy() for name, tensor in joined.items()}
  found = meta_model.logits(written, numbers, TOKENS, np.array(positions))
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('model', ['llama 2', 'llama 3'])
@pytest.mark.parametrize('files', [1, 2])
def test_bytes_come_back(make, tmp_path, model, files, dtype):
  path, params, _ = make(MODELS[model], files, dtype=dtype)
  hf = convert(path, tmp_path / 'hf', 'hf')
  back = convert(hf, tmp_path / 'back', 'meta', shards=files)
  for old, new in zip(load(path), load(back), strict=True):
    table = new.pop('rope.freqs', None)
    assert (table is None) == ('rope_theta' in params)
    if table is not None:
      plain = 10_000.0 ** (-np.arange(0, 8, 2) / 8)
      torch.testing.assert_close(table, torch.tensor(plain).to(dtype), rtol=0, atol=0)
    same(old, new)
  assert formats.open_source(path).cfg == formats.open_source(back).cfg


@pytest.mark.parametrize('llama3', [False, True])
def test_cut_and_joined_as_fairscale_does(make, tmp_path, llama3):
  path, _, tensors = make(LLAMA3 if llama3 else {})
  parts = convert(path, tmp_path / 'parts', 'meta', shards=2)
  ranks = [{name: t for name, t in rank.items() if name != 'rope.freqs'} for rank in load(parts)]
  for wanted, rank in zip(meta_model.split(tensors, 2, llama3), ranks, strict=True):
    same(wanted, rank)
  whole = convert(parts, tmp_path / 'whole', 'meta')
  (rank,) = load(whole)
  rank.pop('rope.freqs', None)
  same(tensors, rank)


def test_more_files_than_key_heads(make, tmp_path):
  """As Llama 3.1 405B on 16: neighbours have the same head (reshard_mp in Meta's checkpoint.py)."""
  path, _, tensors = make(LLAMA3 | {'n_heads': 8, 'dim': 64, 'vocab_size': 64, 'ffn_dim_multiplier': 0.32})
  tensors = {name: torch.cat([t, t[:2]]) if t.shape[0] == 62 else t for name, t in tensors.items()}
  torch.save(tensors, path / 'consolidated.00.pth')
  parts = convert(path, tmp_path / 'parts', 'meta', shards=4)
  ranks = load(parts)
  for name in ('layers.1.attention.wk.weight', 'layers.1.attention.wv.weight'):
    repeated = tensors[name].view(2, 1, 8, 64).repeat(1, 2, 1, 1).reshape(4, 8, 64)
    for wanted, rank in zip(repeated, ranks, strict=True):
      assert torch.equal(rank[name], wanted)
  whole = convert(parts, tmp_path / 'whole', 'meta')
  same(tensors, load(whole)[0])

  ranks[3]['layers.1.attention.wk.weight'] = ranks[3]['layers.1.attention.wk.weight'] + 1
  torch.save(ranks[3], parts / 'consolidated.03.pth')
  with pytest.raises(FormatError, match=r'layers\.1\.attention\.wk\.weight: differs between files'):
    convert(parts, tmp_path / 'bad', 'meta')
  assert not (tmp_path / 'bad').exists()


def test_norms_must_be_the_same_in_all_files(make, tmp_path):
  path, _, _ = make(LLAMA3, 2)
  rank = torch.load(path / 'consolidated.01.pth', weights_only=True)
  rank['layers.0.ffn_norm.weight'][3] += 1
  torch.save(rank, path / 'consolidated.01.pth')
  with pytest.raises(FormatError, match=r'layers\.0\.ffn_norm\.weight: differs between files'):
    convert(path, tmp_path / 'hf', 'hf')


def test_a_tied_head_is_stored_again(make, tmp_path):
  path, _, tensors = make(LLAMA31, tied=True)
  source = formats.open_source(path)
  assert source.cfg.tie_embeddings and source.cfg.rope_factor == 32.0 and 'output.weight' not in source.entries
  back = convert(path, tmp_path / 'back', 'meta')
  (rank,) = load(back)
  same(tensors, rank)
  assert rank['output.weight'].data_ptr() == rank['tok_embeddings.weight'].data_ptr()
  for files in (1, 2):
    cut = convert(back, tmp_path / f'cut{files}', 'meta', shards=files)
    assert formats.open_source(cut).cfg == source.cfg


@pytest.mark.parametrize('head', ['absent', 'apart', 'another'])
def test_heads_of_tied_models(make, head):
  path, _, tensors = make(LLAMA3, tied=True)
  copied = tensors['tok_embeddings.weight'].clone()
  if head == 'another':
    copied[61, 47] += 1
  tensors['output.weight'] = copied
  if head == 'absent':
    del tensors['output.weight']
  torch.save(tensors, path / 'consolidated.00.pth')
  assert formats.open_source(path).cfg.tie_embeddings == (head != 'another')


def test_an_untied_model_of_equal_matrices_stays_untied(make, tmp_path):
  path, _, tensors = make(LLAMA3, tied=True)
  tensors['output.weight'] = tensors['output.weight'].clone()
  torch.save(tensors, path / 'consolidated.00.pth')
  (path / 'llamax.json').write_text('{"max_seq_len": 77, "tie_embeddings": false}')
  source = formats.open_source(path)
  assert not source.cfg.tie_embeddings and source.cfg.max_seq_len == 77 and len(source.places) == 3 + 9 * 3
  assert formats.open_source(convert(path, tmp_path / 'back', 'meta')).cfg == source.cfg


FREQUENCIES = torch.tensor(10_000.0) ** (-torch.arange(0, 8, 2) / 8)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rotary_tables_must_fit_the_config(make, dtype):
  per_layer = {f'layers.{i}.attention.inner_attention.rope.freqs': FREQUENCIES.to(dtype) for i in range(3)}
  path, _, tensors = make(LLAMA1, 2, extra={'rope.freqs': FREQUENCIES.to(dtype), **per_layer})
  source = formats.open_source(path)
  assert not any('freqs' in name for name in source.entries) and len(source.notes) == 1

  for wrong in (FREQUENCIES * 1.02, FREQUENCIES.flip(0), torch.tensor(500.0) ** (-torch.arange(0, 8, 2) / 8)):
    rank = meta_model.split(tensors | {'rope.freqs': wrong.to(dtype)}, 2, False)[1]
    first = meta_model.split(tensors | {'rope.freqs': FREQUENCIES.to(dtype)}, 2, False)[0]
    torch.save(first, path / 'consolidated.00.pth')
    torch.save(rank, path / 'consolidated.01.pth')
    with pytest.raises(
      FormatError, match=r'consolidated\.01\.pth: rope\.freqs: is not what rope_theta=10000 makes'
    ):
      formats.open_source(path)


def test_tables_that_were_left_from_another_base(make):
  """Meta's code computes them anew from rope_theta, if params.json has one."""
  path, _, _ = make({'rope_theta': 1e6}, extra={'rope.freqs': FREQUENCIES})
  assert any('rope.freqs is of rope_theta=10000' in note for note in formats.open_source(path).notes)


def test_a_missing_file_is_named(make):
  path, _, _ = make(LLAMA3, 2)
  (path / 'consolidated.01.pth').rename(path / 'consolidated.02.pth')
  with pytest.raises(FormatError, match=r'consolidated\.01\.pth: file: is missing'):
    formats.open_source(path)
  (path / 'consolidated.02.pth').unlink()
  with pytest.raises(UserError, match=r'consolidated\.01\.pth: file: is missing; there are 1 files of 2'):
    formats.open_source(path)


def test_files_of_several_models(make, tmp_path):
  path, _, _ = make(LLAMA3, 2)
  rank = torch.load(path / 'consolidated.01.pth', weights_only=True)
  del rank['layers.2.ffn_norm.weight']
  torch.save(rank, path / 'consolidated.01.pth')
  with pytest.raises(FormatError, match=r'layers\.2\.ffn_norm\.weight: is not in each of the 2 files'):
    formats.open_source(path)
  rank['layers.2.ffn_norm.weight'] = torch.zeros(47)
  torch.save(rank, path / 'consolidated.01.pth')
  with pytest.raises(FormatError, match=r'float32\[47\] here, another in consolidated\.00'):
    formats.open_source(path)


def test_tensors_that_do_not_fit_are_listed(make):
  path, params, _ = make(extra={'layers.0.attention.bias': torch.zeros(3)})
  with pytest.raises(UserError, match=r'layers\.0\.attention\.bias +wanted nothing +found \[3\]'):
    assert formats.open_source(path).places
  (path / 'params.json').write_text(json.dumps(params | {'n_layers': 2_000_000_000}))
  with pytest.raises(FormatError, match='n_layers: is 2,000,000,000; there are 31 tensors'):
    formats.open_source(path)


@pytest.mark.parametrize(
  'shards, words',
  [
    (0, 'want 1 to'),
    (4, 'does not divide num_heads=6; give 3 or 6'),
    (3, 'does not divide d_ff=56'),
    (1000, 'want 1 to'),
  ],
)
def test_shards_that_do_not_divide(make, tmp_path, shards, words):
  path, _, _ = make()
  with pytest.raises(UserError, match=f'--shards={shards}.*{words}'):
    convert(path, tmp_path / 'out', 'meta', shards=shards)


def test_the_plan_says_the_sizes_of_the_files(make, tmp_path):
  path, _, _ = make(LLAMA3)
  source = formats.open_source(path)
  target = meta.Target(Model(source.cfg, source.family, None, {}), shards=2)
  said = target.files([step.wanted for step in copy.make_plan(source, target, None)])
  out = convert(path, tmp_path / 'out', 'meta', shards=2)
  assert said == {file.name: file.stat().st_size for file in sorted(out.glob('*.pth'))}


def test_a_copy_that_was_cut_off_goes_on(make, tmp_path):
  path, _, _ = make()
  whole = convert(path, tmp_path / 'whole', 'meta', shards=2)
  source = formats.open_source(path)

  class CutOff(Exception):
    pass

  written = []

  def progress(count):
    written.append(count)
    if len(written) == 12:
      raise CutOff

  def run(progress):
    target = meta.Target(Model(source.cfg, source.family, None, {}), shards=2)
    steps = copy.make_plan(source, target, None)
    copy.copy(source, target, steps, tmp_path / 'out', {}, threads=1, progress=progress, say=lambda text: None)

  with pytest.raises(CutOff):
    run(progress)
  assert not (tmp_path / 'out').exists()
  run(lambda count: None)
  for file in whole.iterdir():
    assert (tmp_path / 'out' / file.name).read_bytes() == file.read_bytes()


def with_tokenizer(make, kind, name='meta'):
  """(folder, content of its tokenizer.model)."""
  from llamax.data.tokenizer import open_tokenizer

  content = made_tokenizers.llama_model() if kind == 'sentencepiece' else made_tokenizers.llama3_ranks()
  path, *_ = make(name=f'{name} empty')
  (path / 'tokenizer.model').write_bytes(content)
  size = open_tokenizer(path / 'tokenizer.model').vocab_size
  path, *_ = make({'vocab_size': size} | (LLAMA3 if kind == 'ranks' else {}), name=name)
  return path, content


@pytest.mark.parametrize('kind', ['sentencepiece', 'ranks'])
def test_a_tokenizer_travels(make, tmp_path, kind):
  path, content = with_tokenizer(make, kind)
  (path / 'tokenizer.model').write_bytes(content)
  hf = convert(path, tmp_path / 'hf', 'hf')
  back = convert(hf, tmp_path / 'back', 'meta')
  assert (back / 'tokenizer.model').read_bytes() == content
  assert formats.open_source(back).tokenizer.fingerprint == formats.open_source(path).tokenizer.fingerprint


def test_one_tokenizer_above_the_folders_of_all_sizes(make, tmp_path):
  path, content = with_tokenizer(make, 'sentencepiece')
  (tmp_path / 'tokenizer.model').write_bytes(content)
  assert formats.open_source(path).tokenizer.model == content
  other, *_ = make(name='other vocabulary')
  assert formats.open_source(other).tokenizer is None


def test_a_tokenizer_that_is_none_is_left_out(make):
  path, *_ = make()
  (path / 'tokenizer.model').write_bytes(b'version https://git-lfs.github.com/spec/v1')
  source = formats.open_source(path)
  assert source.tokenizer is None and any('give --tokenizer' in note for note in source.notes)


def test_recognised(make, make_hf, tmp_path):
  assert formats.recognise(make()[0]) == 'meta'
  assert not meta.recognise(make_hf()[0]) and not meta.recognise(tmp_path / 'nothing')
