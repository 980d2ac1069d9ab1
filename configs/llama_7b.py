"""LLaMA 7B as its paper trained it: one trillion tokens in batches of 4 million.

llamax prepare FOLDER_OF_TEXT --out=data/corpus --vocab_size=32000
llamax train --config=configs/llama_7b.py --dry_run --topology=v5e:16x16
llamax train --config=configs/llama_7b.py --workdir=runs/llama_7b

On a pod the last command starts on every worker. A microbatch has 1,024 rows: 4 for each of 256 devices.
"""

import base


def get_config():
  config = base.get_config()
  config.model.preset = 'llama_7b'
  config.compute.remat = 'full'
  config.compute.loss_chunks = 8
  config.data.sources = ('data/corpus',)
  config.data.read_threads = 16
  config.data.seq_len = 2048
  # arXiv 2302.13971, table 2, section 2.3; base has the same betas, decay, clipping, cosine to a tenth.
  config.train.batch_size = None
  config.train.batch_tokens = 2**22
  config.train.grad_accum = 2
  config.train.num_steps = 238_419  # 1.0e12 tokens
  config.optim.learning_rate = 3e-4
  config.optim.warmup_steps = 2000
  config.eval.splits = ('validation=data/corpus:validation',)
  config.eval.every = 2000
  config.eval.num_batches = 16
  config.sample.every = 10_000
  config.sample.prompts = ('The capital of France is', 'Once upon a time')
  config.checkpoint.every = 1000
  config.checkpoint.keep_every = 20_000
  return config
