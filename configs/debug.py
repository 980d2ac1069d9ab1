"""The smallest run that has every part: for tests, for trying a change.

llamax train --config=configs/debug.py --workdir=runs/debug
"""

import base


def get_config():
  config = base.get_config()
  config.model.update(
    {
      'preset': 'llamax_15m',
      'vocab_size': 512,
      'd_model': 32,
      'num_layers': 2,
      'num_heads': 4,
      'num_kv_heads': 2,
      'head_dim': 8,
      'd_ff': 80,
    }
  )
  config.data.seq_len = 64
  config.train.batch_size = 8
  config.train.num_steps = 20
  config.optim.learning_rate = 3e-3
  config.optim.warmup_steps = 4
  config.eval.every = 10
  config.eval.num_batches = 4
  config.sample.every = None
  config.sample.max_new_tokens = 16
  config.checkpoint.every = 10
  config.log.every = 5
  return config
