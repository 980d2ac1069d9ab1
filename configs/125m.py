"""125 million parameters, 12 layers of 768, with the batch and learning rate of GPT-3 Small.

llamax prepare FOLDER_OF_TEXT --out=data/corpus --vocab_size=32000
llamax train --config=configs/125m.py --workdir=runs/125m
llamax train --config=configs/125m.py --dry_run --topology=v5e:2x4

Some 20 tokens for each parameter (arXiv 2203.15556). On fewer than 8 devices: --config.train.grad_accum=32
"""

import base


def get_config():
  config = base.get_config()
  config.model.preset = 'llamax_125m'
  config.data.sources = ('data/corpus',)
  config.data.seq_len = 2048
  config.compute.loss_chunks = 8
  config.compute.remat = 'qkv'
  # Batch, learning rate: arXiv 2005.14165, table 2.1.
  config.train.batch_size = None
  config.train.batch_tokens = 2**19
  config.train.grad_accum = 4
  config.train.num_steps = 5000
  config.optim.learning_rate = 6e-4
  config.optim.warmup_steps = 500
  config.eval.splits = ('validation=data/corpus:validation',)
  return config
