"""Twenty steps of muP give the losses of torch with muP written the other way: a multiplier before the logits.

Table 8 of Yang et al. 2022 (what their mup package does) keeps the head's first weights with its learning rate,
then divides the logits by m. It is the same training as Table 3, which llamax does, in exact arithmetic.
"""

import functools

import jax
import numpy as np
import pytest

from llamax.core.config import OptimConfig
from llamax.model.llama import param_dims
from llamax.model.mup import lr_factors
from llamax.optim.optimizer import make_optimizer
from llamax.train.state import TrainState
from llamax.train.step import train_step

WHY = 'needs torch and transformers: pip install llamax[parity]'
torch = pytest.importorskip('torch', reason=WHY)
pytest.importorskip('transformers', reason=WHY)

STEPS, ROWS, T, VOCAB, RATE, DECAY = 20, 4, 16, 61, 1e-2, 0.3
BASE, M = 12, 3
OPTIM = OptimConfig(
  name='adamw',
  learning_rate=RATE,
  b1=0.9,
  b2=0.95,
  # Beside the square roots of gradients that differ m times between the two, it would be seen.
  eps=1e-16,
  weight_decay=DECAY,
  decay=('w[a-z_]*', 'kernel', 'table'),
  clip_norm=None,  # A norm of gradients is not the same in both.
  schedule='constant',
  warmup_steps=0,
  decay_steps=0,
  end_lr_fraction=1.0,
)
THEIRS = {
  'vocab_size': VOCAB,
  'hidden_size': BASE * M,
  'intermediate_size': 20 * M,
  'num_hidden_layers': 2,
  'num_attention_heads': 2 * M,
  'num_key_value_heads': M,
  'head_dim': 6,
  'max_position_embeddings': T,
  'rms_norm_eps': 1e-6,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0},
}
OURS = {
  'vocab_size': VOCAB,
  'd_model': BASE * M,
  'd_ff': 20 * M,
  'num_layers': 2,
  'num_heads': 2 * M,
  'num_kv_heads': M,
  'head_dim': 6,
  'max_seq_len': T,
  'norm_eps': 1e-6,
  'rope_scaling': 'none',
  'rope_theta': 500.0,
  'mup_base_width': BASE,
}


def batches():
  """STEPS of [ROWS, T + 1]: random walks that often repeat a step."""
  rng = np.random.default_rng(3)
  for _ in range(STEPS):
    steps = np.where(rng.random((ROWS, T + 1)) < 0.8, 3, rng.integers(VOCAB, size=(ROWS, T + 1)))
    yield (np.cumsum(steps, axis=1) % VOCAB).astype(np.int32)


def by_hand(model):
  """The logits over m; torch's AdamW by the rows of Table 8. What decays does so by RATE * DECAY a step."""
  model.lm_head.register_forward_hook(lambda module, args, logits: logits / M)
  groups = []
  for name, p in model.named_parameters():
    m = M if p.ndim == 2 and 'embed' not in name and 'lm_head' not in name else 1
    groups.append({'params': [p], 'lr': RATE / m, 'weight_decay': DECAY * m * (p.ndim == 2)})
  return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-16)


def by_package(model):
  """Their MuReadout, MuAdamW, which find out by themselves what grows with the width."""
  mup = pytest.importorskip('mup', reason='needs the mup package of Microsoft: pip install mup')
  transformers = pytest.importorskip('transformers')
  grows = ('hidden_size', 'intermediate_size', 'num_attention_heads', 'num_key_value_heads')
  models = [model]
  for times in (1, 2):  # The base; one that differs from it in all that grows.
    sizes = THEIRS | {name: THEIRS[name] // M * times for name in grows}
    models.append(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)))
  for each in models:
    each.lm_head.__class__, each.lm_head.output_mult = mup.MuReadout, 1.0
  mup.set_base_shapes(model, models[1], delta=models[2], rescale_params=False)
  groups = [
    {'params': [p for p in model.parameters() if p.ndim == n], 'weight_decay': DECAY * (n == 2)} for n in (1, 2)
  ]
  return mup.MuAdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-16)


def torch_losses(twins, make_optimizer):
  model = twins.torch_model
  optimizer = make_optimizer(model)
  history = []
  for rows in map(torch.from_numpy, batches()):
    logits = model(rows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), rows[:, 1:].reshape(-1).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(loss.item())
  return np.array(history)


def llamax_losses(twins, factors):
  tx = make_optimizer(OPTIM, lambda step: RATE, factors)
  step = jax.jit(functools.partial(train_step, model=twins.llama(), tx=tx, z_loss=0.0, grad_accum=1, seed=0))
  params = jax.tree.map(jax.numpy.asarray, twins.params)
  params['lm_head']['kernel'] /= M
  state = TrainState(jax.numpy.zeros((), jax.numpy.int32), params, tx.init(params))
  history = []
  for rows in batches():
    batch = {'tokens': rows[:, :-1], 'targets': rows[:, 1:], 'segment_ids': np.ones((ROWS, T), np.int32)}
    batch['positions'] = np.broadcast_to(np.arange(T, dtype=np.int32), (ROWS, T))
    state, metrics = step(state, batch)
    history.append(float(metrics['loss']))
  return np.array(history)


def test_losses_equal_those_of_the_other_formulation(make_twins):
  twins = make_twins('Llama', THEIRS, OURS)
  factors = lr_factors(twins.cfg, param_dims(twins.cfg))
  ours, plain = (llamax_losses(twins, each) for each in (factors, None))
  theirs = torch_losses(twins, by_hand)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)
  # It learned; what was compared is not what the same rate everywhere gives.
  assert theirs[-1] < 0.8 * theirs[0]
  assert np.abs(plain - theirs).max() > 0.05


def test_the_other_formulation_is_that_of_its_authors(make_twins):
  by = [torch_losses(make_twins('Llama', THEIRS, OURS), optimizer) for optimizer in (by_hand, by_package)]
  np.testing.assert_allclose(*by, rtol=1e-6)
