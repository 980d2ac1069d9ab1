"""Llama 2 70B as its paper trained it: 2 trillion tokens, rows of 4,096, batches of 4 million.

llamax prepare FOLDER_OF_TEXT --out=data/corpus --vocab_size=32000
llamax train --config=configs/llama2_70b.py --dry_run --topology=v5p:8x8x8
llamax train --config=configs/llama2_70b.py --workdir=runs/llama2_70b

On a pod the last command starts on every worker. The batch has 1,024 rows: 2 for each of 512 devices.
"""

import llama_7b


def get_config():
  config = llama_7b.get_config()
  config.model.preset = 'llama2_70b'
  config.data.seq_len = 4096
  # arXiv 2307.09288, table 1, section 2.2; the rest is as in LLaMA.
  config.train.grad_accum = 1
  config.train.num_steps = 476_837  # 2.0e12 tokens
  config.optim.learning_rate = 1.5e-4
  config.optim.eps = 1e-5
  return config
