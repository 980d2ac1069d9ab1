"""15 million parameters, 6 layers of 288: the smallest of the experiments, the shape of stories15M.

llamax prepare FOLDER_OF_TEXT --out=data/corpus --vocab_size=32000
llamax train --config=configs/15m.py --workdir=runs/15m
llamax train --config=configs/15m.py --dry_run

Some 20 tokens for each parameter (arXiv 2203.15556). Where memory runs out: --config.train.grad_accum=64
"""

import base


def get_config():
  config = base.get_config()
  config.model.preset = 'llamax_15m'
  config.data.sources = ('data/corpus',)
  config.data.seq_len = 256
  config.compute.loss_chunks = 4
  config.train.batch_size = None
  config.train.batch_tokens = 2**17  # As stories15M (github.com/karpathy/llama2.c).
  config.train.grad_accum = 8
  config.train.num_steps = 2300
  config.optim.learning_rate = 1e-3
  config.optim.warmup_steps = 100
  config.eval.splits = ('validation=data/corpus:validation',)
  return config
