"""Parts of this machine that runs have for themselves."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from llamax.core.errors import UserError

# Chips of one process on a TPU host -> how they are laid out (TPU_CHIPS_PER_PROCESS_BOUNDS).
_TPU_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1', 8: '2,4,1'}


@dataclasses.dataclass(frozen=True)
class Slot:
  """Room for one run at a time. cpus: the cores that it may use, None: all; environment: what it sees."""

  index: int
  cpus: frozenset[int] | None
  environment: Mapping[str, str]

  @contextlib.contextmanager
  def here(self) -> Iterator[None]:
    """What is started within it stays on the slot's cores."""
    if self.cpus is None:
      yield
      return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, self.cpus)
    try:
      yield
    finally:
      os.sched_setaffinity(0, before)


def make_slots(count: int | None, devices: Sequence[str] | None, devices_per_run: int) -> list[Slot]:
  """`count` slots with as many cores each, or one per `devices_per_run` of the accelerators `devices`.

  All have the same number of cores, so that a run that goes on in another slot goes on bit for bit: XLA cuts
  sums by the number of threads, which is that of the cores it may use.

  Raises:
    UserError: a number below 1; devices that do not divide; fewer slots' worth of devices than `count`.
  """
  if count is not None and count < 1:
    raise UserError(f'--slots={count}: want at least 1')
  if devices_per_run < 1:
    raise UserError(f'--devices_per_run={devices_per_run}: want at least 1')
  groups: list[list[str]] = []
  if devices is not None:
    devices = [str(int(word)) if word.isdecimal() else word for word in map(str.strip, devices)]
    if len(set(devices)) < len(devices) or not all(devices):
      raise UserError(f'--devices={",".join(devices)}: want each device once, such as 0,1,2,3')
    if len(devices) % devices_per_run:
      raise UserError(f'{len(devices)} devices do not divide into runs of --devices_per_run={devices_per_run}')
    groups = [list(devices[i : i + devices_per_run]) for i in range(0, len(devices), devices_per_run)]
    if count is not None and count > len(groups):
      raise UserError(f'--slots={count}: {len(devices)} devices are enough for {len(groups)}')
    groups = groups[:count]
  elif devices_per_run != 1:
    raise UserError('--devices_per_run says nothing without --devices')
  number = len(groups) or count or 1
  cores = shares(sorted(os.sched_getaffinity(0)), number) if sys.platform == 'linux' else [None] * number
  return [Slot(i, cores[i] if number > 1 else None, _sees(groups[i]) if groups else {}) for i in range(number)]


def shares(cores: Sequence[int], number: int) -> list[frozenset[int]]:
  """The cores of each of `number` slots: as many for each; where there are too few, several slots share one."""
  each = len(cores) // number
  if each == 0:
    return [frozenset({cores[i % len(cores)]}) for i in range(number)]
  return [frozenset(cores[i * each : (i + 1) * each]) for i in range(number)]


def _sees(devices: Sequence[str]) -> dict[str, str]:
  """Variables by which CUDA, libtpu show a process some devices alone."""
  found = {name: ','.join(devices) for name in ('CUDA_VISIBLE_DEVICES', 'TPU_VISIBLE_CHIPS')}
  if len(devices) in _TPU_BOUNDS:
    found |= {'TPU_CHIPS_PER_PROCESS_BOUNDS': _TPU_BOUNDS[len(devices)], 'TPU_PROCESS_BOUNDS': '1,1,1'}
  return found
