"""Small numbers that all hosts must hold alike: what a signal or a clock told one of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from llamax.parallel.rules import one_row_each, param_spec


class Agreement:
  """The greatest of each number over all hosts, one step late; with one process, the number itself, at once.

  Every host calls `send` once per step, at the same place, and gets the same from `read` afterwards. What is
  sent travels in a program of its own, on the heels of the step's: nobody waits for it.
  """

  def __init__(self, mesh: jax.sharding.Mesh, names: Sequence[str]):
    self._names = tuple(names)
    self._hosts = jax.process_count()
    self._local = dict.fromkeys(self._names, 0)
    self._result: Any = None
    if self._hosts == 1:
      return
    self._rows = one_row_each(mesh)
    self._shape = (mesh.size, len(self._names))
    self._cached: tuple[dict[str, int], jax.Array] | None = None
    everywhere = NamedSharding(mesh, param_spec(''))
    self._max = jax.jit(
      lambda numbers, after: jnp.max(numbers, axis=0), keep_unused=True, out_shardings=everywhere
    )

  def send(self, numbers: Mapping[str, int], after: Any) -> None:
    """Offers this host's numbers, 0 to 2**31 - 1. after: an array that the step just dispatched computes."""
    self._local = {name: int(numbers[name]) for name in self._names}
    if self._hosts > 1:
      self._result = self._max(self._array(), after)

  def read(self) -> dict[str, int]:
    """What was agreed on with the last `send`; all 0 before the first."""
    if self._hosts > 1 and self._result is not None:
      found = np.asarray(self._result)
      return {name: int(n) for name, n in zip(self._names, found, strict=True)}
    return dict.fromkeys(self._names, 0) if self._hosts > 1 else dict(self._local)

  def _array(self) -> jax.Array:
    """[devices, numbers], this host's numbers in the rows of its devices."""
    if self._cached is None or self._cached[0] != self._local:
      row = np.array([list(self._local.values())], np.int32)
      array = jax.make_array_from_callback(
        self._shape, self._rows, lambda index: np.broadcast_to(row, _size(index, self._shape))
      )
      self._cached = (self._local, array)
    return self._cached[1]


def _greatest(numbers: jax.Array, after: jax.Array) -> jax.Array:
  del after  # It is there so that no device runs this before the step that computes it.
  return jnp.max(numbers, axis=0)


def _size(index: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of the part of an array that a tuple of slices takes."""
  return tuple(len(range(n)[part]) for part, n in zip(index, shape, strict=True))
