"""What `make train` runs: a model of 3 million parameters learns to write Python in minutes on two CPU cores.

llamax prepare stdlib --out=data/stdlib --vocab_size=4096
llamax train --config=configs/quickstart.py --workdir=runs/quickstart

Ten times as long, for text that holds together longer:

llamax train --config=configs/quickstart.py:long --workdir=runs/quickstart_long
"""

import base


def get_config(arg=''):
  if arg not in ('', 'long'):
    raise ValueError(f"the argument is {arg!r}; want 'long' or none")
  config = base.get_config()
  config.model.preset = 'llamax_quickstart'
  config.data.seq_len = 256
  config.compute.loss_chunks = 4
  config.train.batch_size = 16
  config.train.num_steps = 3000 if arg == 'long' else 300
  config.optim.learning_rate = 4e-3
  config.optim.warmup_steps = 30
  config.eval.every = 100
  config.eval.num_batches = 8
  config.sample.every = 100
  config.sample.prompts = ('def ', 'import ', 'class ')
  config.checkpoint.every = 100
  return config
