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

# Size -> d_model, num_layers. A size is named by what its layers hold; the token tables are not counted.
SIZES = {'100k': (64, 2), '320k': (96, 3), '1m': (128, 5), '3m': (192, 7), '10m': (320, 8)}
HEAD_DIM = 32
# In steps of 512 tokens: with larger ones the shortest runs are too few updates to have learned anything.
STEPS = {'0.05M': 100, '0.1M': 200, '0.2M': 400, '0.4M': 800, '0.8M': 1600, '1.6M': 3200}
# 9e13 FLOPs in all. The corpus has 3.2 million tokens: no run reads one twice. In fewer tokens than these a
# large model is not ahead of a small one yet, which no law of this form can say.
LADDER = {
  '100k': ('0.2M', '0.4M', '0.8M', '1.6M'),
  '320k': ('0.2M', '0.4M', '0.8M', '1.6M'),
  '1m': ('0.4M', '0.8M', '1.6M'),
  '3m': ('0.4M', '0.8M'),
  '10m': ('0.4M',),
}
SMALL = dict.fromkeys(('100k', '320k', '1m'), ('0.05M', '0.1M', '0.2M'))


def rung(size, tokens):
  """The keys in which one run of the ladder differs from the others."""
  (d_model, num_layers), steps = SIZES[size], STEPS[tokens]
  return {
    'model.d_model': d_model,
    'model.num_layers': num_layers,
    'model.num_heads': d_model // HEAD_DIM,
    'model.num_kv_heads': d_model // HEAD_DIM,
    'model.d_ff': d_model * 11 // 4,
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
  config.model.head_dim = HEAD_DIM
  # One learning rate for all widths: sizes that are not tuned alike follow no law.
  config.model.mup_base_width = 64
  config.model.tie_embeddings = False
  config.model.init = 'fan_in'
  config.model.init_std = 0.3
  config.optim.learning_rate = 0.01
  config.compute.scan_layers = False
  config.data.seq_len = 128
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
