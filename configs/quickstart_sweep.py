"""The best learning rate of the quickstart's model, found in minutes on two CPU cores.

llamax prepare stdlib --out=data/stdlib --vocab_size=2048
llamax sweep --config=configs/quickstart_sweep.py --workdir=runs/quickstart_sweep --dry_run
llamax sweep --config=configs/quickstart_sweep.py --workdir=runs/quickstart_sweep --slots=2
"""

import quickstart


def get_config():
  config = quickstart.get_config()
  config.train.num_steps = 200
  config.optim.warmup_steps = 20
  config.eval.every = 100
  config.eval.num_batches = 8
  config.sample.every = None
  config.checkpoint.every = 50
  config.log.every = 10
  return config


def get_sweep(s):
  return s.grid('optim.learning_rate', [1e-3, 4e-3, 1.6e-2, 6.4e-2])
