"""Compiling the train step of a config for a TPU slice that this machine does not have."""

import collections
import dataclasses
import re
import time
from typing import Any

import jax

from llamax.core.config import Config
from llamax.core.errors import UserError
from llamax.observe.perf import hbm_bytes
from llamax.parallel.mesh import describe
from llamax.plan.topology import compiler_warnings, num_chips, topology_devices
from llamax.train.budget import GIB, estimate
from llamax.train.program import make_program

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_REMAT = 'Involuntary full rematerialization'


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device during a step, as the compiler laid them out."""

  arguments: int  # train state with batch; the new state takes the place of the old
  temporaries: int  # may be more than peak - arguments: they do not all live at one time
  peak: int


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """What the TPU compiler made of a train step.

  cfg: with `compute` settled. sizes: mesh axis -> devices. memory: None where the program does not fit.
  needed, available: bytes of one device that the program takes, that there are. collectives: kind -> how many
  the program has; one in the loop over layers counts once. whole: tensors that the partitioner could only move
  by making them whole on every device, each a loss of speed; None where the compiler's log cannot be read.
  text: the scheduled program.
  """

  cfg: Config
  topology: str
  mesh: str
  sizes: dict[str, int]
  num_chips: int
  num_devices: int
  memory: Memory | None
  needed: int
  available: int
  trace_seconds: float
  compile_seconds: float
  collectives: dict[str, int]
  whole: int | None
  text: str = dataclasses.field(repr=False)

  @property
  def fits(self) -> bool:
    return self.memory is not None

  @property
  def rows(self) -> int:
    """Sequences that a device works on at a time."""
    return self.cfg.batch_size // self.sizes['data'] // self.sizes['fsdp'] // self.cfg.train.grad_accum


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
  """The compiler found no way to fit a program into a memory space ('hbm', 'vmem'); in bytes of one device."""

  space: str
  needed: int
  available: int


def compile_train_step(cfg: Config, topology: str) -> CompiledStep:
  """Compiles the very step that `llamax train` would run on that slice; takes minutes for a large model.

  A program too large for the devices is an answer as well: `fits` is False.

  Raises:
    UserError: no such slice, no libtpu, a config that does not fit the slice, attention blocks too large.
  """
  devices = topology_devices(topology)
  program = make_program(cfg, devices)
  started = time.monotonic()
  with jax.set_mesh(program.mesh):
    lowered = program.step.lower(program.state, program.batch)
  traced = time.monotonic()
  before = compiler_warnings()
  compiled, full = _compile(lowered, cfg)
  done = time.monotonic()
  after = compiler_warnings()

  memory = _memory(compiled) if compiled else None
  text = compiled.as_text() if compiled else ''
  stated = hbm_bytes(devices[0].device_kind, getattr(devices[0], 'num_cores', None))
  return CompiledStep(
    cfg=program.cfg,
    topology=topology,
    mesh=describe(program.mesh),
    sizes=dict(program.mesh.shape),
    num_chips=num_chips(topology),
    num_devices=len(devices),
    memory=memory,
    needed=memory.peak if memory else full.needed,
    available=full.available if full else stated or 0,
    trace_seconds=traced - started,
    compile_seconds=done - traced,
    collectives=count_collectives(text),
    whole=None if after is None else after.count(_REMAT) - (before or '').count(_REMAT),
    text=text,
  )


def _compile(lowered: Any, cfg: Config) -> tuple[Any, Any]:
  """(the compiled program, None) or (None, OutOfMemory)."""
  try:
    return lowered.compile(), None
  except jax.errors.JaxRuntimeError as error:
    full = out_of_memory(str(error))
    if full is None:
      raise UserError(
        f'the TPU compiler itself fails on this program ({str(error).splitlines()[0][:300]}); another '
        'train.grad_accum, compute.remat or mesh may get past it'
      ) from None
    if full.space != 'hbm':
      raise UserError(
        f'a kernel needs {full.needed:,} of the {full.available:,} bytes of {full.space}; take smaller blocks, '
        f'compute.splash_block={max(cfg.compute.splash_block // 2, 128)} (now {cfg.compute.splash_block})'
      ) from None
    return None, full


def out_of_memory(message: str) -> OutOfMemory | None:
  """The numbers in the compiler's message; None where it says something else."""
  number = r'([\d.]+)([KMGT]?)'
  by_layout = rf'out of memory in memory space (\w+).*?Used {number} of {number}'
  # When it sees before it lays memory out; what is needed is then without the train state.
  early = rf'out of memory on (\w+), .*?temporaries \({number}\) exceeds available HBM \({number}\)'
  found = re.search(by_layout, message, re.DOTALL) or re.search(early, message)
  if not found:
    return None
  powers = {'': 0, 'K': 1, 'M': 2, 'G': 3, 'T': 4}
  space, *pairs = found.groups()
  needed, available = (int(float(n) * 1024 ** powers[unit]) for n, unit in (pairs[:2], pairs[2:]))
  return OutOfMemory(space.lower(), needed, available)


def _memory(compiled: Any) -> Memory:
  stats = compiled.memory_analysis()
  return Memory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, stats.peak_memory_in_bytes)


def count_collectives(text: str) -> dict[str, int]:
  """Kind -> how many collectives of that kind a scheduled program has.

  The compiler writes an asynchronous one several times, cut into steps: its channel tells that it is one.
  """
  channels = collections.defaultdict(set)
  for index, line in enumerate(text.splitlines()):
    found = re.search(rf' ({"|".join(COLLECTIVES)})(?:-start)?\(', line)
    if found:
      channel = re.search(r'channel_id=(\d+)', line)
      channels[found[1]].add(channel[1] if channel else f'line {index}')
  return {kind: len(channels[kind]) for kind in COLLECTIVES if channels[kind]}


def report(step: CompiledStep) -> str:
  """What a user wants to know of a compiled step, as aligned lines; what to change where it does not fit."""
  tokens = f'{step.rows} rows x {step.cfg.data.seq_len:,} tokens'
  rows = [
    ('slice', f'{step.topology}: {step.num_chips} chips, {step.num_devices} devices'),
    ('mesh', step.mesh),
    ('compute', f'attention {step.cfg.compute.attention}, remat {step.cfg.compute.remat}'),
    ('on a device at a time', f'{tokens}, {step.cfg.train.grad_accum} times a step'),
    *(_memory_rows(step, step.memory) if step.memory else _too_large_rows(step)),
    ('estimate without compiling', f'{_gib(estimate(step.cfg, step.sizes).total)} per device'),
    ('tracing, compiling', f'{step.trace_seconds:.0f} s, {step.compile_seconds:.0f} s'),
  ]
  if step.fits:
    moved = 'unknown: the log of the compiler is elsewhere' if step.whole is None else str(step.whole)
    counts = ', '.join(f'{count} {kind}' for kind, count in step.collectives.items())
    rows += [('collectives', counts or 'none'), ('tensors made whole to move', moved)]
  width = max(len(name) for name, _ in rows)
  lines = [f'{name:<{width}}  {value}' for name, value in rows]
  return '\n'.join(lines if step.fits else [*lines, '', *advice(step)])


def _memory_rows(step: CompiledStep, memory: Memory) -> list[tuple[str, str]]:
  share = f'{memory.peak / step.available:.0%} of {_gib(step.available)}'
  return [
    ('state and batch', f'{_gib(memory.arguments)} per device'),
    ('temporaries', f'{_gib(memory.temporaries)} per device, not all at one time'),
    ('peak memory', f'{_gib(memory.peak)} per device, {share}'),
    ('fits', 'yes'),
  ]


def _too_large_rows(step: CompiledStep) -> list[tuple[str, str]]:
  return [('peak memory', f'{_gib(step.needed)} per device of {_gib(step.available)}'), ('fits', 'NO')]


def advice(step: CompiledStep) -> list[str]:
  """What to change so that a step fits, each with the estimate that it leads to."""
  cfg, sizes = step.cfg, step.sizes
  changes: list[tuple[str, Config]] = []
  if cfg.compute.remat != 'full':
    compute = dataclasses.replace(cfg.compute, remat='full')
    changes.append(('--config.compute.remat=full', dataclasses.replace(cfg, compute=compute)))
  if step.rows > 1:
    train = dataclasses.replace(cfg.train, grad_accum=cfg.train.grad_accum * step.rows)
    changes.append((f'--config.train.grad_accum={train.grad_accum}', dataclasses.replace(cfg, train=train)))
  chunks = 2 * cfg.compute.loss_chunks
  if cfg.data.seq_len % chunks == 0:
    compute = dataclasses.replace(cfg.compute, loss_chunks=chunks)
    changes.append((f'--config.compute.loss_chunks={chunks}', dataclasses.replace(cfg, compute=compute)))
  lines = [f'estimated now: {_gib(estimate(cfg, sizes).total)} per device. What would lower it:']
  lines += [f'  {flag:<36} {_gib(estimate(changed, sizes).total)}' for flag, changed in changes]
  return [*lines, '  more devices on mesh.fsdp or mesh.tensor, a shorter data.seq_len']


def _gib(count: float) -> str:
  return f'{count / GIB:.2f} GiB'
