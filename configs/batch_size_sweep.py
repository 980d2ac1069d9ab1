"""What a batch size costs: the same tokens in 1 to 16 sequences a step, each at several learning rates.

llamax prepare stdlib --out=data/stdlib --vocab_size=2048
llamax sweep --config=configs/batch_size_sweep.py --workdir=runs/batch_size_sweep --slots=2

One run, at the batch size of the quickstart:

llamax train --config=configs/batch_size_sweep.py --workdir=runs/batch_size --dry_run

On as many tokens, small batches take more updates, so they learn more; large ones keep a large machine busy.
The loss tells how far the batch may grow before that costs tokens; the best learning rate grows with it.
"""

import quickstart

SEQUENCES = 1600  # of 256 tokens, in each run


def of_batch(size):
  """Steps, warm-up, logging in proportion: a tenth of the tokens warms up."""
  steps = SEQUENCES // size
  return {
    'train.batch_size': size,
    'train.num_steps': steps,
    'optim.warmup_steps': steps // 10,
    'log.every': max(steps // 40, 1),
  }


def get_config(arg=''):
  config = quickstart.get_config(arg)
  config.train.num_steps = SEQUENCES // config.train.batch_size
  config.optim.warmup_steps = config.train.num_steps // 10
  config.eval.every = None
  config.eval.num_batches = 8
  config.sample.every = None
  config.sample.prompts = ()
  config.checkpoint.every = None
  return config


def get_sweep(s):
  batches = s.chain(*(s.named(f'batch-{size}', of_batch(size)) for size in (1, 4, 16)))
  return s.product(batches, s.grid('optim.learning_rate', [1e-3, 2e-3, 4e-3, 8e-3]))
