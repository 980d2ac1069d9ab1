"""Loss, perplexity, bits per byte on held-out splits."""

import math
from collections.abc import Callable, Iterable

import jax
import numpy as np

from llamax.core.types import Array, Batch, PyTree
from llamax.observe.perf import perplexity

_AHEAD = 3  # batches that the devices may have before them


def heldout_metrics(
  eval_step: Callable[[PyTree, Batch], dict[str, Array]],
  params: PyTree,
  batches: Iterable[Batch],
  to_global: Callable[[Batch], Batch],
  byte_lengths: np.ndarray,
  stop: Callable[[Array], bool] | None = None,
) -> dict[str, float] | None:
  """{'loss', 'perplexity', 'bits_per_byte', 'tokens'} over the real tokens of all batches.

  Padding bears no loss, so ragged tails weigh what they should. Sums are kept in float64 on the host: the
  result does not depend on how the split was cut into batches beyond the rounding of one batch.

  Args:
    eval_step: (params, global batch) -> {'nll' in nats, 'tokens'}, sums.
    batches: host rows, each of one shape. to_global: host rows -> global batch.
    byte_lengths: [V], UTF-8 bytes that each id stands for.
    stop: asked once per batch, with an array of the batch just dispatched; True: the result is None.
  """
  results, num_bytes = [], 0
  for batch in batches:
    num_bytes += int(byte_lengths[batch['targets']][batch['segment_ids'] != 0].sum())
    results.append(eval_step(params, to_global(batch)))
    if stop is not None:
      # Whoever is to stop soon has no long queue to wait for.
      jax.block_until_ready(results[-_AHEAD:][0])
      if stop(results[-1]['nll']):
        return None
  sums = jax.device_get(results)
  nll = math.fsum(float(r['nll']) for r in sums)
  tokens = math.fsum(float(r['tokens']) for r in sums)
  loss = nll / max(tokens, 1)
  return {
    'loss': loss,
    'perplexity': perplexity(loss),
    'bits_per_byte': nll / math.log(2) / max(num_bytes, 1),
    'tokens': tokens,
  }
