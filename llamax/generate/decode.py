"""Continues prompts with text."""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from llamax.core.config import ComputeConfig, ModelConfig
from llamax.core.errors import UserError
from llamax.core.types import PyTree
from llamax.generate.sampling import Sampling
from llamax.generate.steps import CHUNK, Rows, cast, draw_tokens, empty_rows, prefill, uncached_logits
from llamax.generate.text import Completion, Continuation
from llamax.model.llama import Llama
from llamax.parallel.mesh import BATCH_AXES

if TYPE_CHECKING:
  from llamax.data.tokenizer import Tokenizer

# Prompts are read in pieces of at most so many tokens: bounds the attention scores that exist at one time.
_PIECE = 256
_LEAST = 16  # the smallest shape along a sequence


def generate(
  model_cfg: ModelConfig,
  compute: ComputeConfig,
  params: PyTree,
  prompts_ids: Sequence[Sequence[int]],
  sampling: Sampling,
  tokenizer: 'Tokenizer',
  batch_size: int = 32,
) -> list[Completion]:
  """A completion per prompt, in order. To be called under `jax.set_mesh` where parameters are sharded.

  What a prompt draws depends on the seed, its tokens, how many equal prompts stand before it; other prompts of
  the call change it by rounding only.

  Args:
    compute: settled; attention is computed by the xla backend whatever it says.
    prompts_ids: token ids of each prompt, one at least (the tokenizer's bos_id begins a text).
    batch_size: prompts decoded at a time, at most.

  Raises:
    UserError: see `check_prompts`.
  """
  check_prompts(model_cfg, prompts_ids, sampling.max_new_tokens, tokenizer)
  model, params = _decoder(model_cfg, compute, params)
  keys_R2 = _row_keys(prompts_ids, sampling.seed)
  texts = [Continuation(tokenizer, sampling.stop, sampling.max_new_tokens) for _ in prompts_ids]
  for first in range(0, len(texts), batch_size):
    part = slice(first, first + batch_size)
    for _ in _grow(model, params, prompts_ids[part], keys_R2[part], sampling, tokenizer, texts[part], CHUNK):
      pass
  return [text.completion() for text in texts]


def stream(
  model_cfg: ModelConfig,
  compute: ComputeConfig,
  params: PyTree,
  prompt_ids: Sequence[int],
  sampling: Sampling,
  tokenizer: 'Tokenizer',
) -> Generator[str, None, Completion]:
  """Yields the text of `generate` for one prompt as it is drawn; returns the Completion (StopIteration.value).

  No piece is empty, none holds half a character or a part of a stop string.
  """
  check_prompts(model_cfg, [prompt_ids], sampling.max_new_tokens, tokenizer)
  model, params = _decoder(model_cfg, compute, params)
  text = Continuation(tokenizer, sampling.stop, sampling.max_new_tokens)
  keys_12 = _row_keys([prompt_ids], sampling.seed)
  for (new,) in _grow(model, params, [prompt_ids], keys_12, sampling, tokenizer, [text], 1):
    if new:
      yield new
  return text.completion()


def check_prompts(
  model_cfg: ModelConfig, prompts_ids: Sequence[Sequence[int]], max_new_tokens: int, tokenizer: 'Tokenizer'
) -> None:
  """UserError for an empty prompt, an id that the model lacks, more tokens than model.max_seq_len, a tokenizer
  with more ids than the model.
  """
  V = model_cfg.vocab_size
  if tokenizer.vocab_size > V:
    raise UserError(
      f'the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size={V}: it is not the one of this model'
    )
  for index, ids in enumerate(prompts_ids):
    _check_ids(model_cfg, ids, max_new_tokens, f'prompt {index}')


def _check_ids(model_cfg: ModelConfig, ids: Sequence[int], max_new_tokens: int, what: str) -> None:
  V, most = model_cfg.vocab_size, model_cfg.max_seq_len
  if len(ids) == 0:
    raise UserError(f'{what} has no token; begin it with the id that every document begins with')
  if min(ids) < 0 or max(ids) >= V:
    raise UserError(f'{what} has ids from {min(ids)} to {max(ids)}; want 0 to {V - 1} (model.vocab_size={V})')
  if len(ids) + max_new_tokens > most:
    new = f' with max_new_tokens={max_new_tokens}' if max_new_tokens else ''
    room = f'; at most {most - len(ids)} new ones fit' if len(ids) < most else '; shorten it'
    raise UserError(f'{what} has {len(ids)} tokens:{new} that is more than model.max_seq_len={most}{room}')


def text_logits(
  model_cfg: ModelConfig, compute: ComputeConfig, params: PyTree, ids: Sequence[int]
) -> np.ndarray:
  """[T, V] float32: row t scores what follows ids[: t + 1]. Without a cache, in one pass over the T ids.

  Raises:
    UserError: no id, one that the model lacks, more of them than model.max_seq_len.
  """
  _check_ids(model_cfg, ids, 0, 'the text')
  model, params = _decoder(model_cfg, compute, params)
  tokens_BT = np.zeros((_batch_shards(), _bucket(len(ids), _LEAST, 1)), np.int32)
  tokens_BT[:, : len(ids)] = ids
  return np.asarray(uncached_logits(params, tokens_BT, model=model))[: len(ids)]


def _decoder(model_cfg: ModelConfig, compute: ComputeConfig, params: PyTree) -> tuple[Llama, PyTree]:
  """The model as it decodes, its parameters cast once instead of at each token."""
  dtype = compute.compute_dtype
  compute = dataclasses.replace(compute, param_dtype=dtype, attention='xla', remat='none', scan_layers=True)
  if any(leaf.dtype != dtype for leaf in jax.tree.leaves(params)):
    params = cast(params, dtype)
  return Llama(model_cfg, compute), params


def _row_keys(prompts_ids: Sequence[Sequence[int]], seed: int) -> np.ndarray:
  """[R, 2] uint32 from the seed, a prompt, how many equal ones stand before it: nothing else of the batch."""
  seen: collections.Counter[bytes] = collections.Counter()
  keys = []
  for ids in prompts_ids:
    prompt = np.asarray(ids, '<i4').tobytes()
    digest = hashlib.sha256(b'%d %d ' % (seed, seen[prompt]) + prompt).digest()
    keys.append(np.frombuffer(digest[:8], '<u4').astype(np.uint32))
    seen[prompt] += 1
  return np.asarray(keys, np.uint32).reshape(-1, 2)


def _grow(
  model: Llama,
  params: PyTree,
  prompts_ids: Sequence[Sequence[int]],
  keys_R2: np.ndarray,
  sampling: Sampling,
  tokenizer: 'Tokenizer',
  texts: Sequence[Continuation],
  chunk: int,
) -> Iterator[list[str]]:
  """Decodes until every text has ended; after each `chunk` tokens yields what each text said anew."""
  rows = _prefilled(model, params, prompts_ids, keys_R2, sampling)
  drawn = 0
  while not all(text.finish for text in texts):
    limit = min(chunk, sampling.max_new_tokens - drawn)
    rows, tokens_BC, logprobs_BC = draw_tokens(
      params,
      rows,
      np.int32(limit),
      model=model,
      filters=sampling.filters,
      num_ids=tokenizer.vocab_size,
      eos_id=tokenizer.eos_id,
    )
    drawn += limit
    tokens, logprobs = np.asarray(tokens_BC)[:, :limit].tolist(), np.asarray(logprobs_BC)[:, :limit].tolist()
    yield [
      ''.join(text.push(*pair) for pair in zip(tokens[b], logprobs[b], strict=True))
      for b, text in enumerate(texts)
    ]


def _prefilled(
  model: Llama, params: PyTree, prompts_ids: Sequence[Sequence[int]], keys_R2: np.ndarray, sampling: Sampling
) -> Rows:
  """The prompts in the cache, all but their last tokens, which the first step reads."""
  lengths = [len(ids) for ids in prompts_ids]
  B = _bucket(len(lengths), 1, _batch_shards())
  S = _bucket(max(lengths) + sampling.max_new_tokens, _LEAST, 1)
  T = min(_bucket(max(lengths) - 1, _LEAST, 1), _PIECE)
  tokens_BS = np.zeros((B, S), np.int32)
  token_B, position_B = np.zeros((2, B), np.int32)
  keys_B2 = np.zeros((B, 2), np.uint32)
  keys_B2[: len(lengths)] = keys_R2
  for b, ids in enumerate(prompts_ids):
    tokens_BS[b, : len(ids)] = ids
    token_B[b], position_B[b] = ids[-1], len(ids) - 1

  rows = empty_rows(token_B, position_B, keys_B2, np.arange(B) >= len(lengths), model=model, S=S)
  for start in range(0, max(lengths) - 1, T):
    rows = prefill(params, rows, tokens_BS[:, start : start + T], np.int32(start), model=model)
  return rows


def _bucket(size: int, least: int, multiple: int) -> int:
  """The next power of two, from `least`, rounded up to a multiple: few shapes, few programs to compile."""
  size = max(least, 1 << (max(size, 1) - 1).bit_length())
  return -(-size // multiple) * multiple


def _batch_shards() -> int:
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
