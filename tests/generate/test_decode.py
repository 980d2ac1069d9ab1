"""The cached decoder against the uncached forward, in batches of ragged prompts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizer import StreamDecoder
from llamax.generate import decode, steps
from llamax.generate.decode import generate, stream, text_logits
from llamax.generate.sampling import Sampling
from llamax.model.llama import Llama, init_params, logits, param_dims, settle
from llamax.parallel.mesh import make_mesh
from llamax.parallel.rules import tree_shardings

SAMPLING = Sampling(max_new_tokens=24, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
GREEDY = dataclasses.replace(SAMPLING, temperature=0.0)
# Ids 3 and up, as the text tests have them: id n + 3 is byte n.
PROMPTS = [list(np.random.default_rng(n).integers(3, 259, n)) for n in (1, 3, 40, 17, 16)]


@dataclasses.dataclass
class ByteTokenizer:
  eos_id: int = 2
  vocab_size: int = 512

  def stream(self):
    return StreamDecoder([b''] * 3 + [bytes([n]) for n in range(256)] + [b'.'] * 253)


@pytest.fixture
def make(tiny_config):
  """(**changes) -> model config, compute, params whose logits differ much between tokens."""

  def build(**changes):
    cfg = tiny_config(**{'model.max_seq_len': 64} | changes)
    compute = settle(cfg.compute, 'cpu')
    return cfg.model, compute, random_params(Llama(cfg.model, compute))

  return build


def random_params(model):
  """By numpy: compiling the initialisation takes longer than a test."""
  rng, shapes = np.random.default_rng(7), jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.25, leaf.shape), leaf.dtype), shapes)


def reference_logprobs(model_cfg, compute, params, prompts, done):
  """For each row, of each id after the prompt and the ids before it: from one uncached pass, in float64."""
  rows = [[*prompt, *one.ids] for prompt, one in zip(prompts, done, strict=True)]
  scores_BTV = uncached(Llama(model_cfg, compute), params, rows)
  scores_BTV -= scores_BTV.max(-1, keepdims=True)
  scores_BTV -= np.log(np.exp(scores_BTV).sum(-1, keepdims=True))
  found = []
  for row, prompt, scores_TV in zip(rows, prompts, scores_BTV, strict=True):
    found += [scores_TV[t - 1, row[t]] for t in range(len(prompt), len(row))]
  return found


def uncached(model, params, rows):
  tokens_BT = np.zeros((len(rows), 64), np.int32)
  for b, row in enumerate(rows):
    tokens_BT[b, : len(row)] = row
  positions_BT = np.broadcast_to(np.arange(64, dtype=np.int32), tokens_BT.shape)
  return np.asarray(forward(params, tokens_BT, positions_BT, model=model), np.float64)


@functools.partial(jax.jit, static_argnames='model')
def forward(params, tokens_BT, positions_BT, *, model):
  return logits(model.apply({'params': params}, tokens_BT, positions_BT, jnp.ones_like(tokens_BT)))


def logprobs(done):
  return [logprob for one in done for logprob in one.logprobs]


YARN = {'model.rope_scaling': 'yarn', 'model.rope_factor': 4.0, 'model.rope_original_max_len': 32}
VARIANTS = {
  'grouped': {},
  'window, qk_norm, biases': {'model.sliding_window': 5, 'model.qk_norm': True, 'model.qkv_bias': True},
  'tied, yarn': {'model.tie_embeddings': True} | YARN,
}


@pytest.mark.parametrize('changes', VARIANTS.values(), ids=VARIANTS)
def test_logprobs_equal_the_uncached_forward(make, monkeypatch, changes):
  monkeypatch.setattr(decode, '_PIECE', 16)  # The longest prompt is read in three pieces.
  model = make(**changes)
  done = generate(*model, PROMPTS, SAMPLING, ByteTokenizer())
  assert all(len(one.ids) == 24 or one.finish == 'eos' for one in done)
  np.testing.assert_allclose(logprobs(done), reference_logprobs(*model, PROMPTS, done), atol=1e-5)
  assert np.std(logprobs(done)) > 0.3  # Else the comparison would say nothing.


def test_logprobs_are_those_before_temperature_or_filters(make):
  model = make()
  sharp = dataclasses.replace(SAMPLING, temperature=0.5, top_k=4, top_p=0.9, min_p=0.01)
  done = generate(*model, PROMPTS, sharp, ByteTokenizer())
  np.testing.assert_allclose(logprobs(done), reference_logprobs(*model, PROMPTS, done), atol=1e-5)


def test_a_prompt_draws_the_same_in_any_batch(make):
  model = make()
  together = generate(*model, PROMPTS, SAMPLING, ByteTokenizer())
  turned = generate(*model, PROMPTS[::-1], SAMPLING, ByteTokenizer(), batch_size=2)[::-1]
  alone = [generate(*model, [prompt], SAMPLING, ByteTokenizer())[0] for prompt in PROMPTS[:2]]
  assert [one.ids for one in together] == [one.ids for one in turned]
  assert [one.ids for one in together[:2]] == [one.ids for one in alone]


def test_equal_prompts_draw_different_texts_of_their_seed(make):
  model = make()
  twice = [PROMPTS[1]] * 2
  first, second = (one.ids for one in generate(*model, twice, SAMPLING, ByteTokenizer()))
  other, _ = (
    one.ids for one in generate(*model, twice, dataclasses.replace(SAMPLING, seed=1), ByteTokenizer())
  )
  assert len({first, second, other}) == 3


def test_greedy_takes_the_uncached_argmax(make):
  model = make()
  one = generate(*model, PROMPTS, GREEDY, ByteTokenizer())[3]
  scores_TV = text_logits(*model, [*PROMPTS[3], *one.ids])
  assert one.ids == tuple(scores_TV.argmax(-1)[len(PROMPTS[3]) - 1 : -1])


def test_end_of_text_ends_a_row_alone(make, monkeypatch):
  model = make()
  free = generate(*model, PROMPTS, GREEDY, ByteTokenizer(eos_id=511))
  eos = free[0].ids[5]
  calls = []
  monkeypatch.setattr(decode, 'draw_tokens', lambda *a, **k: calls.append(a[2]) or steps.draw_tokens(*a, **k))
  monkeypatch.setattr(decode, 'CHUNK', 10)
  done = generate(*model, PROMPTS, GREEDY, ByteTokenizer(eos_id=eos))
  for one, was in zip(done, free, strict=True):
    end = was.ids.index(eos) + 1 if eos in was.ids else 24
    assert one.ids == was.ids[:end]
    assert one.finish == ('eos' if eos in was.ids else 'length')
  assert calls == [10, 10, 4]
  calls.clear()
  generate(*model, PROMPTS[:1], GREEDY, ByteTokenizer(eos_id=eos))
  assert calls == [10]  # Nothing is drawn when all have ended.


def test_a_chunk_ends_with_its_last_text(make):
  model_cfg, compute, params = make()
  ids = generate(model_cfg, compute, params, PROMPTS, GREEDY, ByteTokenizer())[0].ids
  eos = ids[5]
  end = ids.index(eos)  # A greedy text may repeat itself before.
  model, params = decode._decoder(model_cfg, compute, params)
  rows = decode._prefilled(model, params, PROMPTS[:1], [[0, 0]], GREEDY)
  how = {'model': model, 'filters': GREEDY.filters, 'num_ids': 512, 'eos_id': eos}
  rows, tokens_BC, _ = steps.draw_tokens(params, rows, np.int32(20), **how)
  assert tokens_BC[0, end] == eos
  assert not tokens_BC[0, end + 1 :].any()  # Never written: the loop ended there.
  assert (rows.position_B.tolist(), rows.done_B.tolist()) == ([end + len(PROMPTS[0])], [True])


def test_a_stop_string_ends_a_row_alone(make):
  model = make()
  free = generate(*model, PROMPTS, SAMPLING, ByteTokenizer())
  stop = free[1].text[6:8]
  done = generate(*model, PROMPTS, dataclasses.replace(SAMPLING, stop=(stop,)), ByteTokenizer())
  assert done[1].finish == 'stop'
  for one, was in zip(done, free, strict=True):
    assert one.text == was.text.split(stop)[0]
    assert one.ids == was.ids[: len(one.ids)]


def test_stream_gives_the_same_text_in_pieces(make):
  model = make()
  (wanted,) = generate(*model, PROMPTS[2:3], SAMPLING, ByteTokenizer())
  pieces, text = stream(*model, PROMPTS[2], SAMPLING, ByteTokenizer()), []
  with pytest.raises(StopIteration) as end:
    while True:
      text.append(next(pieces))
  assert end.value.value.ids == wanted.ids
  assert ''.join(text) == wanted.text
  assert all(text) and len(text) > 5


def test_ids_without_text_are_never_drawn(make):
  model = make()
  hot = dataclasses.replace(SAMPLING, temperature=100.0)
  done = generate(*model, [[n] for n in range(3, 13)], hot, ByteTokenizer(vocab_size=20))
  drawn = {token for one in done for token in one.ids}
  assert max(drawn) < 20
  assert len(drawn) > 10


def test_a_mesh_changes_nothing(make, tiny_config, monkeypatch):
  model_cfg, compute, params = make()
  plain = generate(model_cfg, compute, params, PROMPTS, SAMPLING, ByteTokenizer())
  mesh_cfg = tiny_config(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}).mesh
  mesh = make_mesh(mesh_cfg, jax.devices())
  params = jax.device_put(params, tree_shardings(params, mesh, param_dims(model_cfg)))
  with jax.set_mesh(mesh):
    monkeypatch.setattr(decode, 'CHUNK', 10)
    before = steps.draw_tokens._cache_size()
    sharded = generate(model_cfg, compute, params, PROMPTS, SAMPLING, ByteTokenizer())
    assert steps.draw_tokens._cache_size() == before + 1  # One program for all chunks.
    scores_TV = text_logits(model_cfg, compute, params, PROMPTS[2])
    rows = decode._prefilled(Llama(model_cfg, compute), params, PROMPTS[1:2], [[0, 0]], SAMPLING)
  for one, was in zip(sharded, plain, strict=True):
    assert one.ids == was.ids
    np.testing.assert_allclose(one.logprobs, was.logprobs, atol=1e-5)
  assert scores_TV.shape == (40, 512)
  # The one prompt became a row for each of the four batch shards; the heads are split too.
  assert rows.cache.k.shape == (2, 4, 32, 2, 8)
  assert rows.cache.k.sharding.shard_shape(rows.cache.k.shape) == (2, 1, 32, 1, 8)


def test_bfloat16_is_close(make):
  exact = make()
  rounded = make(**{'compute.compute_dtype': 'bfloat16'})
  done = generate(*rounded, PROMPTS, GREEDY, ByteTokenizer())
  np.testing.assert_allclose(logprobs(done), reference_logprobs(*exact, PROMPTS, done), atol=0.15)


def test_the_decoder_computes_its_own_way(make):
  model_cfg, compute, params = make()
  how = {'scan_layers': False, 'remat': 'full', 'attention': 'splash', 'compute_dtype': 'bfloat16'}
  model, params = decode._decoder(model_cfg, dataclasses.replace(compute, **how), params)
  assert (model.compute.attention, model.compute.remat, model.compute.scan_layers) == ('xla', 'none', True)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
  assert decode._prefilled(model, params, [[5]], [[0, 0]], GREEDY).cache.k.dtype == jnp.bfloat16


def test_like_shapes_share_a_program(make):
  model = make()
  counts = []
  for prompts in (PROMPTS, [[5, 7]] * 6 + [[9] * 34]):
    generate(*model, prompts, GREEDY, ByteTokenizer())
    counts.append((steps.draw_tokens._cache_size(), steps.prefill._cache_size()))
  assert counts[0] == counts[1]


@pytest.mark.parametrize(
  'prompts, new, message',
  [
    ([[5], []], 1, 'prompt 1 has no token'),
    ([[5, 512]], 1, r'prompt 0 has ids from 5 to 512; want 0 to 511 \(model.vocab_size=512\)'),
    ([[-1]], 1, 'prompt 0 has ids from -1 to -1'),
    ([[5] * 50], 15, '50 tokens: with max_new_tokens=15 .* model.max_seq_len=64; at most 14 new ones fit'),
    ([[5] * 64], 1, '64 tokens: with max_new_tokens=1 .* model.max_seq_len=64; shorten it'),
  ],
)
def test_prompts_that_cannot_work(make, prompts, new, message):
  sampling = dataclasses.replace(SAMPLING, max_new_tokens=new)
  with pytest.raises(UserError, match=message):
    generate(*make(), prompts, sampling, ByteTokenizer())


def test_a_text_too_long_is_refused(make):
  with pytest.raises(
    UserError, match=r'the text has 65 tokens: that is more than model.max_seq_len=64; shorten it'
  ):
    text_logits(*make(), [5] * 65)


def test_a_tokenizer_of_another_model_is_refused(make):
  with pytest.raises(UserError, match=r'the tokenizer has 513 ids, model.vocab_size=512'):
    generate(*make(), [[5]], SAMPLING, ByteTokenizer(vocab_size=513))


def test_no_prompts_give_no_completions(make):
  assert generate(*make(), [], SAMPLING, ByteTokenizer()) == []
