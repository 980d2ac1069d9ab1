"""350 million parameters, 24 layers of 1024, with the batch and learning rate of GPT-3 Medium.

llamax prepare FOLDER_OF_TEXT --out=data/corpus --vocab_size=32000
llamax train --config=configs/350m.py --workdir=runs/350m
llamax train --config=configs/350m.py --dry_run --topology=v5e:4x4

Some 20 tokens for each parameter (arXiv 2203.15556). On fewer than 16 devices: --config.train.grad_accum=32
"""

import base


def get_config():
  config = base.get_config()
  config.model.preset = 'llamax_350m'
  config.data.sources = ('data/corpus',)
  config.data.seq_len = 2048
  config.compute.loss_chunks = 8
  config.compute.remat = 'full'
  # Batch, learning rate: arXiv 2005.14165, table 2.1.
  config.train.batch_size = None
  config.train.batch_tokens = 2**19
  config.train.grad_accum = 2
  config.train.num_steps = 13_000
  config.optim.learning_rate = 3e-4
  config.optim.warmup_steps = 500
  config.eval.every = 1000
  config.eval.splits = ('validation=data/corpus:validation',)
  config.sample.every = 1000
  config.checkpoint.every = 1000
  return config
