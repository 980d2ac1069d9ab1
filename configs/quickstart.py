"""What `make train` runs: a model of one million parameters learns to write Python in minutes on two CPU cores.

llamax prepare stdlib --out=data/stdlib --vocab_size=2048
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
  # Small batches: in so few tokens the number of updates decides what is learnt.
  config.train.batch_size = 4
  config.train.num_steps = 10_000 if arg == 'long' else 1000
  # On a CPU a fifth faster than the scan, and compiled in seconds all the same: there are four layers.
  config.compute.scan_layers = False
  config.optim.learning_rate = 4e-3
  config.optim.warmup_steps = 50
  config.eval.every = 250
  config.eval.batch_size = 16
  config.sample.every = 250
  config.sample.prompts = ('def __init__(self, ', 'class ', 'The ')
  config.sample.temperature = 0.7
  config.sample.max_new_tokens = 96
  config.checkpoint.every = 250
  config.log.every = 20
  return config
