"""LLaMA 65B as its paper trained it: 1.4 trillion tokens in batches of 4 million.

llamax prepare FOLDER_OF_TEXT --out=data/corpus --vocab_size=32000
llamax train --config=configs/llama_65b.py --dry_run --topology=v5p:8x8x8
llamax train --config=configs/llama_65b.py --workdir=runs/llama_65b

On a pod the last command starts on every worker. The batch has 2,048 rows: 4 for each of 512 devices.
"""

import llama_7b


def get_config():
  config = llama_7b.get_config()
  config.model.preset = 'llama_65b'
  # arXiv 2302.13971, table 2.
  config.train.grad_accum = 1
  config.train.num_steps = 333_786  # 1.4e12 tokens
  config.optim.learning_rate = 1.5e-4
  return config
