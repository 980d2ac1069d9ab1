"""Computes tiny models of all families by transformers in float64: FILE of tokens -> FOLDER/FAMILY.npz.

A process of its own: transformers computes norms, softmax, rotations in float32 whatever it is asked for, so
float32 is made to mean float64 before any of its modules is loaded.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from tests.convert.families import FAMILIES, their_model, their_weights


def main(file: str, folder: str) -> None:
  torch.float32 = torch.float = torch.float64
  torch.Tensor.float = torch.Tensor.double
  torch.set_default_dtype(torch.float64)
  torch.set_num_threads(1)
  tokens = torch.from_numpy(np.load(file))
  for name in FAMILIES:
    model = their_model(name)
    with torch.no_grad():
      logits = model(tokens).logits
    assert logits.dtype is torch.float64
    np.savez(Path(folder, f'{name}.npz'), logits=logits.numpy(), **their_weights(model))


if __name__ == '__main__':
  main(*sys.argv[1:])
