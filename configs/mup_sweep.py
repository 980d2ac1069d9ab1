"""The learning rate at three widths, under muP beside the standard parametrisation.

llamax prepare stdlib --out=data/stdlib --vocab_size=2048
llamax sweep --config=configs/mup_sweep.py --workdir=runs/mup_sweep --slots=2

One of the two alone (standard is the other):

llamax sweep --config=configs/mup_sweep.py:mup --workdir=runs/mup_sweep_mup --slots=2

What one run is, at the base width:

llamax train --config=configs/mup_sweep.py --workdir=runs/mup --dry_run
"""

import base

BASE, WIDTHS = 64, (64, 128, 256)
HEAD_DIM = 16
RATES = tuple(2.0**power for power in range(-9, -4))


def of_width(d_model):
  """What grows with the width; head_dim, the depth, the vocabulary stay."""
  return {
    'model.d_model': d_model,
    'model.num_heads': d_model // HEAD_DIM,
    'model.num_kv_heads': d_model // HEAD_DIM // 2,
    'model.d_ff': d_model * 11 // 4,
  }


def get_config(arg=''):
  if arg not in ('', 'mup', 'standard'):
    raise ValueError(f"the argument is {arg!r}; want 'mup', 'standard' or none, which is both")
  config = base.get_config()
  config.model.preset = 'llamax_quickstart'
  config.model.update({key.removeprefix('model.'): value for key, value in of_width(BASE).items()})
  config.model.num_layers = 2
  config.model.head_dim = HEAD_DIM
  config.model.tie_embeddings = False
  config.model.mup_base_width = BASE if arg == 'mup' else None
  # The standard one of the paper: variance 1 / fan_in, embeddings about as large as what layers add to them.
  config.model.init = 'fan_in'
  config.model.init_std = 0.3
  config.data.seq_len = 128
  config.train.batch_size = 4
  config.train.num_steps = 200
  config.optim.warmup_steps = 20
  config.eval.every = None
  config.eval.batch_size = 32
  config.eval.num_batches = 6
  config.sample.every = None
  config.sample.prompts = ()
  config.checkpoint.every = None
  config.log.every = 10
  return config


def get_sweep(s, arg=''):
  # Narrow ones first: they are done soon. At the base width both are one model: it runs once.
  spaces = []
  for d_model in WIDTHS:
    for kind, base_width in (('standard', None), ('mup', BASE)):
      if arg == kind or (not arg and (kind, d_model) != ('mup', BASE)):
        keys = of_width(d_model) | {'model.mup_base_width': base_width}
        spaces.append(s.named(f'{kind}-{d_model}', keys))
  return s.product(s.chain(*spaces), s.grid('optim.learning_rate', RATES))
