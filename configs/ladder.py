"""A scaling-law ladder: five sizes from 100 thousand to 10 million parameters, each on several token counts.

llamax prepare stdlib --out=data/stdlib --vocab_size=2048
llamax sweep --config=configs/ladder.py --workdir=runs/ladder
llamax scaling runs/ladder --flops=1e15 --png=runs/ladder/scaling.png

Three of the sizes, briefly, to see that all of it works:

llamax sweep --config=configs/ladder.py:small --workdir=runs/ladder_small

One rung alone; without a name it is 1m-0.4M:

llamax train --config=configs/ladder.py --workdir=runs/rung
llamax train --config=configs/ladder.py:10m-0.4M --dry_run
"""

import base

# Size -> d_model, num_layers, d_ff, peak learning rate. Heads are 32 wide. A size is named by what its layers
# hold; the token table is not counted.
SIZES = {
  '100k': (64, 2, 176, 8e-3),
  '320k': (96, 3, 256, 6e-3),
  '1m': (128, 5, 344, 4e-3),
  '3m': (192, 7, 512, 3e-3),
  '10m': (320, 8, 856, 2e-3),
}
# In steps of 1024 tokens: so small a batch that the number of updates is never what is missing.
STEPS = {'0.05M': 50, '0.1M': 100, '0.2M': 200, '0.4M': 400, '0.8M': 800, '1.6M': 1600}
# 1.3e14 FLOPs in all. The corpus has 3.2 million tokens: no run reads one twice.
LADDER = {
  '100k': ('0.1M', '0.2M', '0.4M', '0.8M', '1.6M'),
  '320k': ('0.1M', '0.2M', '0.4M', '0.8M', '1.6M'),
  '1m': ('0.1M', '0.2M', '0.4M', '0.8M', '1.6M'),
  '3m': ('0.1M', '0.2M', '0.4M', '0.8M'),
  '10m': ('0.1M', '0.2M', '0.4M'),
}
SMALL = dict.fromkeys(('100k', '320k', '1m'), ('0.05M', '0.1M', '0.2M'))


def rung(size, tokens):
  """The keys in which one run of the ladder differs from the others."""
  d_model, num_layers, d_ff, learning_rate = SIZES[size]
  steps = STEPS[tokens]
  return {
    'model.d_model': d_model,
    'model.num_layers': num_layers,
    'model.num_heads': d_model // 32,
    'model.num_kv_heads': d_model // 32,
    'model.d_ff': d_ff,
    'optim.learning_rate': learning_rate,
    # Each run decays to its own end: a point from the middle of a longer one would lie too high.
    'train.num_steps': steps,
    'optim.warmup_steps': max(steps // 10, 10),
  }


def get_config(arg=''):
  size, _, tokens = (arg if arg not in ('', 'small') else '1m-0.4M').partition('-')
  if size not in SIZES or tokens not in STEPS:
    raise ValueError(
      f"the argument is {arg!r}; want 'small', or one of {list(SIZES)}, '-', one of {list(STEPS)}"
    )
  config = base.get_config()
  config.model.preset = 'llamax_quickstart'
  config.model.head_dim = 32
  config.compute.scan_layers = False
  config.data.seq_len = 256
  config.train.batch_size = 4
  for key, value in rung(size, tokens).items():
    section, name = key.split('.')
    config[section][name] = value
  # What counts is the loss at the end, on all of the held-out text.
  config.eval.every = None
  config.eval.batch_size = 16
  config.sample.every = None
  config.sample.prompts = ()
  config.checkpoint.every = 200
  config.checkpoint.keep_best = 0
  config.log.every = 20
  return config


def get_sweep(s, arg=''):
  ladder = SMALL if arg == 'small' else LADDER
  return s.chain(
    *(s.named(f'{size}-{tokens}', rung(size, tokens)) for size in ladder for tokens in ladder[size])
  )
