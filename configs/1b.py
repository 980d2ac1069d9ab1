"""1 billion parameters, 18 layers of 2048, with the batch and learning rate of TinyLlama.

llamax prepare FOLDER_OF_TEXT --out=data/corpus --vocab_size=32000
llamax train --config=configs/1b.py --workdir=runs/1b
llamax train --config=configs/1b.py --dry_run --topology=v5e:4x4

On a pod the second command starts on every worker. Some 20 tokens for each parameter (arXiv 2203.15556).
On fewer than 16 devices: --config.train.grad_accum=64
"""

import base


def get_config():
  config = base.get_config()
  config.model.preset = 'llamax_1b'
  config.data.sources = ('data/corpus',)
  config.data.seq_len = 2048
  config.compute.loss_chunks = 8
  config.compute.remat = 'full'
  # Batch, learning rate, warm-up: arXiv 2401.02385, section 2.4.
  config.train.batch_size = None
  config.train.batch_tokens = 2**21
  config.train.grad_accum = 16
  config.train.num_steps = 10_000
  config.optim.learning_rate = 4e-4
  config.optim.warmup_steps = 2000
  config.eval.every = 1000
  config.eval.num_batches = 64
  config.eval.splits = ('validation=data/corpus:validation',)
  config.sample.every = 1000
  config.sample.prompts = ('The capital of France is', 'Once upon a time')
  config.checkpoint.every = 1000
  return config
