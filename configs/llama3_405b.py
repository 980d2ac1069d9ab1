"""Llama 3.1 405B as its paper pre-trained it on rows of 8,192, on 2,048 v5p chips.

llamax prepare FOLDER_OF_TEXT --out=data/corpus
llamax train --config=configs/llama3_405b.py --dry_run --topology=v5p:8x16x16
llamax train --config=configs/llama3_405b.py --workdir=runs/llama3_405b

On a pod the last command starts on every worker. A microbatch has 256 rows: 1 for each group of 8 chips.
"""

import llama3_8b


def get_config():
  config = llama3_8b.get_config()
  config.model.preset = 'llama31_405b'
  # The preset has the positions of the released model: 131,072, reached in a later stage of long rows.
  config.model.max_seq_len = 8192
  config.model.rope_scaling = 'none'
  # More devices than rows: the 8 key/value heads go to as many chips.
  config.mesh.tensor = 8
  # arXiv 2407.21783, section 3.4.1, table 3: 8e-5, after 8,000 steps of warm-up, to 8e-7 at step 1,200,000.
  config.optim.learning_rate = 8e-5
  return config
