"""Types that several rooms share."""

from typing import Any, TypedDict

Array = Any  # numpy on the host, jax.Array on devices: core imports neither.
PyTree = Any


class Batch(TypedDict):
  """Packed rows, each [B, T] int32.

  tokens: input ids. targets: the id that follows in the same document. segment_ids: which document of
  the row a token belongs to, from 1; 0 marks padding, which bears no loss. positions: index in the
  segment, from 0.
  """

  tokens: Array
  targets: Array
  segment_ids: Array
  positions: Array
