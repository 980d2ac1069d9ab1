"""60 million parameters, 8 layers of 512: an experiment of an evening on one accelerator.

llamax prepare FOLDER_OF_TEXT --out=data/corpus --vocab_size=32000
llamax train --config=configs/60m.py --workdir=runs/60m
llamax train --config=configs/60m.py --dry_run --topology=v5e:1x1

Some 20 tokens for each parameter (arXiv 2203.15556). Where memory runs out: --config.train.grad_accum=16
"""

import base


def get_config():
  config = base.get_config()
  config.model.preset = 'llamax_60m'
  config.data.sources = ('data/corpus',)
  config.data.seq_len = 512
  config.compute.loss_chunks = 4
  config.train.batch_size = None
  config.train.batch_tokens = 2**18
  config.train.grad_accum = 8
  config.train.num_steps = 4600
  config.optim.learning_rate = 1e-3
  config.optim.warmup_steps = 200
  config.eval.splits = ('validation=data/corpus:validation',)
  return config
