"""Llama 3 8B with the recipe of its paper, on 256 v5e chips (an argument tells of other machines).

llamax prepare FOLDER_OF_TEXT --out=data/corpus
llamax train --config=configs/llama3_8b.py --dry_run --topology=v5e:16x16
llamax train --config=configs/llama3_8b.py --workdir=runs/llama3_8b

On a pod the last command starts on every worker. 64 v5p chips have room to keep more activations:

llamax train --config=configs/llama3_8b.py:v5p --dry_run --topology=v5p:4x4x4

The published vocabulary has 128,256 ids; a tokenizer of your own with that many or fewer fits.
"""

import llama_7b


def get_config(arg=''):
  if arg not in ('', 'v5p'):
    raise ValueError(f"the argument is {arg!r}; want 'v5p' or none")
  config = llama_7b.get_config()
  config.model.preset = 'llama3_8b'
  config.data.seq_len = 8192
  # arXiv 2407.21783, section 3.4.1, table 3. The paper starts with 4 million tokens for a moment, has 8 million
  # till 2.87e12 tokens are seen, then 16 million; the batch here stays at 8 million. It prints the warm-up, the
  # length and the end of the schedule for 405B alone: assumed to hold for this size.
  config.train.batch_tokens = 2**23
  config.train.num_steps = 1_200_000
  config.optim.learning_rate = 3e-4
  config.optim.warmup_steps = 8000
  config.optim.end_lr_fraction = 0.01
  # Rows of a microbatch: 1 for each of 256 chips; 2 for each of 64.
  config.train.grad_accum = 8 if arg == 'v5p' else 4
  config.compute.remat = 'qkv' if arg == 'v5p' else 'full'
  return config
