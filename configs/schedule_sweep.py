"""Schedules of the learning rate compared: constant, inverse square root, cosine, linear, warm-up-stable-decay.

llamax prepare stdlib --out=data/stdlib --vocab_size=2048
llamax sweep --config=configs/schedule_sweep.py --workdir=runs/schedule_sweep --slots=2

One run, with the cosine:

llamax train --config=configs/schedule_sweep.py --workdir=runs/schedule --dry_run

Each at its own best of two peak rates, for the best peak is not the same for all.
"""

import quickstart

STEPS = 400


def get_config(arg=''):
  config = quickstart.get_config(arg)
  config.train.num_steps = STEPS
  config.optim.warmup_steps = STEPS // 10
  config.optim.end_lr_fraction = 0.05
  config.eval.every = 100
  config.eval.num_batches = 8
  config.sample.every = None
  config.sample.prompts = ()
  config.checkpoint.every = None
  return config


def get_sweep(s):
  shapes = s.chain(
    s.grid('optim.schedule', ['constant', 'inverse_sqrt', 'cosine', 'linear']),
    s.product(s.grid('optim.schedule', ['wsd']), s.grid('optim.decay_steps', [STEPS // 5, STEPS // 2])),
  )
  return s.product(shapes, s.grid('optim.learning_rate', [4e-3, 8e-3]))
