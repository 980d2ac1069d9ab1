"""How fast a run is: FLOPs per token, what the hardware could do, where the seconds go."""

import contextlib
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from llamax.core.config import ModelConfig


class Flops(NamedTuple):
  """Training FLOPs (forward plus backward) of one token under the two conventions of docs/metrics.md."""

  causal: float  # A, the headline: attention does the work that the causal mask leaves
  palm: float  # B: attention counted without the causal mask (PaLM, arXiv:2204.02311, appendix B)


def attention_span(seq_len: int, sliding_window: int) -> float:
  """S: the keys that a query of a full row would see without the causal mask, on average.

  With a window of W keys (0: none) that reaches both ways it is 2 W - W^2 / seq_len, cut at the row's ends;
  without one it is seq_len. The causal mask leaves half of it.
  """
  reach = min(sliding_window or seq_len, seq_len)
  return 2 * reach - reach * reach / seq_len


def flops_per_token(model: ModelConfig, num_params: int, seq_len: int) -> Flops:
  """A = 6 (N - V D) + 6 L H hd S; B doubles the attention term.

  N is `num_params`, H the query heads, S `attention_span`. Six: a multiply with an add forward, twice that
  backward. V D is the lookup table, which multiplies nothing; tied embeddings use their one table as the output
  layer too, so there it stays in. Recomputation by remat, segment masks, padding are not counted.
  """
  lookup = 0 if model.tie_embeddings else model.vocab_size * model.d_model
  dense = 6.0 * (num_params - lookup)
  width = model.num_layers * model.num_heads * model.head_dim
  attention = 6.0 * width * attention_span(seq_len, model.sliding_window)
  return Flops(causal=dense + attention, palm=dense + 2 * attention)


@dataclasses.dataclass(frozen=True)
class Chip:
  tflops: float  # dense bfloat16, TFLOP/s of the whole chip
  memory: int  # GiB of the whole chip; makers call it GB
  cores: int = 1  # TensorCores
  fused: bool = True  # whether jax shows the cores as one device by default


# device_kind, in full, without 'NVIDIA '. A kind that is not here has no MFU rather than a wrong one: the
# same name with another suffix may be half as fast (NVL, PCIe) or a slice of the chip (MIG).
_CHIPS = {
  r'TPU v4': Chip(275, 32, cores=2),
  r'TPU v5( lite|e)': Chip(197, 16),
  r'TPU v5p?': Chip(459, 95, cores=2),
  r'TPU v6( lite|e)': Chip(918, 32),
  r'TPU7x': Chip(2307, 192, cores=2, fused=False),
  r'A100-(SXM4|PCIE)-40GB|A100': Chip(312, 40),
  r'A100-SXM4-80GB|A100 80GB PCIe': Chip(312, 80),
  r'H100|H100 80GB HBM3': Chip(989, 80),
  r'H100 PCIe': Chip(756, 80),
  r'H100 NVL': Chip(835, 94),
  r'H200': Chip(989, 141),
  r'B200': Chip(2250, 180),
}


def _find(device_kind: str, num_cores: int | None) -> tuple[Chip, float] | None:
  """The chip, with the part of it that one jax device is."""
  for pattern, chip in _CHIPS.items():
    if re.fullmatch(pattern, device_kind.removeprefix('NVIDIA ')):
      shown = num_cores or (chip.cores if chip.fused else 1)
      return chip, min(shown, chip.cores) / chip.cores
  return None


def perplexity(loss: float) -> float:
  """e ** loss for a loss in nats a token, held below what a float cannot hold."""
  return math.exp(min(loss, 700.0))


def peak_flops(device_kind: str, num_cores: int | None = None) -> float | None:
  """Dense bfloat16 FLOP/s of one jax device, or None for a kind without an entry.

  `device_kind` is jax's string. `num_cores` (of a TPU device: `device.num_cores`) tells a TPU v4 split into its
  two cores from a whole one; None takes the hardware's default. A TPU7x device is half a chip.
  """
  found = _find(device_kind, num_cores)
  return found and found[0].tflops * 1e12 * found[1]


def hbm_bytes(device_kind: str, num_cores: int | None = None) -> int | None:
  """Memory of one jax device as the maker states it; a program gets some less (15.75 of 16 GiB on v5e)."""
  found = _find(device_kind, num_cores)
  return found and int(found[0].memory * 2**30 * found[1])


def peak_memory_bytes(devices: Iterable[Any]) -> int:
  """The most that any of `devices` (local jax devices) has had in use; on CPU the process's peak instead."""
  peaks = []
  for device in devices:
    with contextlib.suppress(Exception):  # Some backends raise where others return None.
      peaks.append(int((device.memory_stats() or {})['peak_bytes_in_use']))
  return max(peaks, default=0) or _process_peak_bytes()


def _process_peak_bytes() -> int:
  # Before getrusage: that one also counts the process that started this one, up to its exec.
  with contextlib.suppress(OSError), open('/proc/self/status') as status:
    for line in status:
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 1024
  import resource

  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


PHASES = ('init', 'compile', 'train', 'data_wait', 'eval', 'sample', 'save', 'report')


class StepClock:
  """Books every second of a run to one phase; turns token counts into rates.

  Outside any `phase` block time goes to 'init' before `first_step`, to 'train' after it. Of two nested phases
  the inner gets the time. `now` is a monotonic clock in seconds. Nothing here waits for a device: call `rates`
  when the numbers of its last step have arrived on the host.
  """

  def __init__(
    self,
    *,
    now: Callable[[], float],
    num_devices: int,
    num_steps: int,
    flops: Flops | None,
    peak: float | None,
  ):
    """`num_devices` and token counts are global, `peak` FLOP/s per device (None: no MFU)."""
    self._now = now
    self._num_devices = num_devices
    self._num_steps = num_steps
    self._flops = flops
    self._peak = peak
    self._seconds = dict.fromkeys(PHASES, 0.0)
    self._stack = ['init']
    self._since = now()
    self._window = dict(self._seconds)  # the books when the current window began
    self._first_step_end: float | None = None
    self._drop_first = False
    self._steps_timed = 0

  def _book(self) -> float:
    now = self._now()
    self._seconds[self._stack[-1]] += now - self._since
    self._since = now
    return now

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Books the time of the block to `name`, one of PHASES."""
    assert name in PHASES, name
    self._book()
    self._stack.append(name)
    try:
      yield
    finally:
      self._book()
      self._stack.pop()

  @contextlib.contextmanager
  def first_step(self) -> Iterator[None]:
    """Around compiling with the first step: their time is 'compile', that step is in no average.

    The block has to end by waiting for the step's result, else the wait is counted as training.
    """
    with self.phase('compile'):
      yield
    self._stack[0] = 'train'
    self._drop_first = True
    self._first_step_end = self._since
    self._window = dict(self._seconds)

  def rates(self, step: int, step_tokens: Sequence[float]) -> dict[str, float]:
    """The metrics of the steps since the last call, the last of which made `step` steps done.

    `step_tokens`: real target tokens of each of these steps, in order, over all processes. After only the first
    step of a process there is no rate yet: what comes back is `compile_seconds`.
    """
    end = self._book()
    seconds = {name: self._seconds[name] - self._window[name] for name in PHASES}
    self._window = dict(self._seconds)
    timed = list(step_tokens)
    metrics = {}
    if self._drop_first:
      self._drop_first = False
      timed = timed[1:]
      metrics['compile_seconds'] = self._seconds['compile']
    elapsed = seconds['train'] + seconds['data_wait']
    if not timed or elapsed <= 0:
      return metrics
    self._steps_timed += len(timed)
    speed = sum(timed) / elapsed
    metrics |= {
      'tokens_per_second': speed,
      'tokens_per_second_per_device': speed / self._num_devices,
      'step_seconds': elapsed / len(timed),
      'data_wait_fraction': seconds['data_wait'] / elapsed,
    }
    if self._flops and self._peak:
      per_flop = speed / (self._peak * self._num_devices)
      metrics |= {'mfu': self._flops.causal * per_flop, 'mfu_palm': self._flops.palm * per_flop}
    if self._first_step_end is not None:
      # Evaluations with saves included, as often as they came so far.
      wall_per_step = (end - self._first_step_end) / self._steps_timed
      metrics['eta_seconds'] = wall_per_step * max(0, self._num_steps - step)
    return metrics

  def goodput(self) -> dict[str, float]:
    """`goodput/<phase>_seconds`, which sum to the wall time, with `goodput/fraction`, the share of 'train'."""
    self._book()
    total = sum(self._seconds.values())
    books = {f'goodput/{name}_seconds': seconds for name, seconds in self._seconds.items()}
    return books | {'goodput/fraction': self._seconds['train'] / total if total > 0 else 0.0}
