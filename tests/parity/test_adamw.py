"""Twenty AdamW steps give the losses of a plain torch loop."""

import functools
import math

import jax
import numpy as np
import pytest

from llamax.core.config import OptimConfig
from llamax.optim.optimizer import make_optimizer
from llamax.optim.schedule import make_schedule
from llamax.train.state import TrainState
from llamax.train.step import train_step

WHY = 'needs torch and transformers: pip install llamax[parity]'
torch = pytest.importorskip('torch', reason=WHY)
pytest.importorskip('transformers', reason=WHY)

STEPS, ROWS, T, VOCAB = 20, 8, 24, 61
OPTIM = OptimConfig(
  name='adamw',
  learning_rate=1e-2,
  b1=0.9,
  b2=0.95,
  eps=1e-8,
  weight_decay=0.1,
  decay=('w[a-z_]*', 'kernel', 'table'),
  clip_norm=1.0,
  schedule='cosine',
  warmup_steps=5,
  decay_steps=0,
  end_lr_fraction=0.1,
)
THEIRS = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'intermediate_size': 52,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': T,
  'rms_norm_eps': 1e-6,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0},
}
OURS = {
  'vocab_size': VOCAB,
  'd_model': 32,
  'd_ff': 52,
  'num_layers': 3,
  'num_heads': 4,
  'num_kv_heads': 2,
  'head_dim': 8,
  'max_seq_len': T,
  'norm_eps': 1e-6,
  'rope_scaling': 'none',
  'rope_theta': 500.0,
  'qkv_bias': True,  # Qwen 2.5: parameters of every kind, decayed or not
}


def documents(rng):
  """The documents of each row, each a random walk that often repeats a fixed step: learnable, not at once."""
  # Uneven on purpose: a row may be full, nearly empty, or empty.
  lengths = [[T], [9, 7], [2], [], [5, 3, 6], [T - 1], [11], [4, 4, 4, 4]]
  rows = []
  for row in lengths:
    rows.append([])
    for n in row:
      steps = np.where(rng.random(n + 1) < 0.8, 3, rng.integers(VOCAB, size=n + 1))
      rows[-1].append(np.cumsum(steps) % VOCAB)
  return rows


def packed(rows):
  """What llamax reads: a document of n + 1 tokens gives n (input, target) pairs."""
  batch = {k: np.zeros((ROWS, T), np.int32) for k in ('tokens', 'targets', 'segment_ids', 'positions')}
  for b, row in enumerate(rows):
    start = 0
    for i, document in enumerate(row):
      span = slice(start, start + len(document) - 1)
      batch['tokens'][b, span], batch['targets'][b, span] = document[:-1], document[1:]
      batch['segment_ids'][b, span] = i + 1
      batch['positions'][b, span] = np.arange(len(document) - 1)
      start = span.stop
  return batch


def torch_rate(step):
  """5 steps up a line, then half a cosine down to a tenth at step 20."""
  if step < 5:
    return 1e-2 * (step + 1) / 5
  return 1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - 5) / 15)) / 2)


def torch_losses(model, steps_of_documents, z_loss):
  """(loss, z loss, gradient norm) of each step. A row is one document, padded where no earlier token looks."""
  decayed = [p for p in model.parameters() if p.ndim == 2]
  rest = [p for p in model.parameters() if p.ndim == 1]
  groups = [{'params': decayed, 'weight_decay': 0.1}, {'params': rest, 'weight_decay': 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
  history = []
  for step, rows in enumerate(steps_of_documents):
    every = [torch.from_numpy(document) for row in rows for document in row]
    padded = torch.nn.utils.rnn.pad_sequence(every, batch_first=True, padding_value=-100)
    targets = padded[:, 1:]
    logits = model(padded[:, :-1].clamp(min=0)).logits
    nll = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), targets.reshape(-1), ignore_index=-100)
    z = torch.logsumexp(logits, -1).square()[targets != -100].mean()
    optimizer.zero_grad()
    (nll + z_loss * z).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
      group['lr'] = torch_rate(step)
    optimizer.step()
    history.append([nll.item(), z_loss * z.item(), norm.item()])
  return np.array(history)


def llamax_losses(twins, steps_of_documents, z_loss, grad_accum, **compute):
  tx = make_optimizer(OPTIM, make_schedule(OPTIM, STEPS))
  step = functools.partial(
    train_step, model=twins.llama(**compute), tx=tx, z_loss=z_loss, grad_accum=grad_accum, seed=0
  )
  step = jax.jit(step, donate_argnums=0)
  params = jax.tree.map(jax.numpy.asarray, twins.params)
  state = TrainState(jax.numpy.zeros((), jax.numpy.int32), params, tx.init(params))
  history = []
  for rows in steps_of_documents:
    state, metrics = step(state, packed(rows))
    history.append([metrics['loss'], metrics['z_loss'], metrics['grad_norm']])
  return np.array(history, np.float64)


@pytest.mark.parametrize(
  'z_loss, grad_accum, compute',
  [
    (0.0, 1, {}),
    (0.0, 4, {'loss_chunks': 3, 'remat': 'qkv', 'scan_layers': False}),
    (1e-2, 1, {'loss_chunks': 8}),
  ],
  ids=['plain', 'accumulated', 'z_loss'],
)
def test_losses_equal_those_of_torch(make_twins, z_loss, grad_accum, compute):
  twins = make_twins('Qwen2', THEIRS, OURS)
  rng = np.random.default_rng(5)
  steps_of_documents = [documents(rng) for _ in range(STEPS)]
  ours = llamax_losses(twins, steps_of_documents, z_loss, grad_accum, **compute)
  theirs = torch_losses(twins.torch_model, steps_of_documents, z_loss)
  np.testing.assert_allclose(ours[:, 0], theirs[:, 0], rtol=1e-4)
  np.testing.assert_allclose(ours[:, 1], theirs[:, 1], rtol=1e-4)
  np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-3)
  # It learned, it was clipped at times: what was equal was not nothing.
  assert theirs[-1, 0] < 0.6 * theirs[0, 0]
  assert (theirs[:, 2] > 1.0).any()
