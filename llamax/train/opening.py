"""What a run opens before its first step: the lease, the data, the checkpoints, the clock."""

import os
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jaxlib

from llamax.checkpoint.holder import Holder, from_bytes
from llamax.checkpoint.lease import Lease, acquire
from llamax.checkpoint.manager import Checkpoints
from llamax.checkpoint.sight import unseen
from llamax.core.config import Config, flatten
from llamax.core.errors import UserError
from llamax.data.pipeline import EvalData, TrainingData, open_eval, open_training
from llamax.observe import perf
from llamax.observe.ledger import Ledger
from llamax.parallel.alike import require_alike
from llamax.parallel.decide import by_first, none_complains
from llamax.parallel.hosts import peers
from llamax.train.preflight import model_params
from llamax.train.program import Program
from llamax.train.samples import prompt_ids


def hold(stack: ExitStack, cfg: Config, workdir: Path, say: Callable[[str], None]) -> Lease | None:
  """Makes this run the only writer of its workdir, until the end of `stack`; the lease is with process 0.

  Raises UserError on every process when another run holds it, or one of them has another disk as its workdir.
  """
  held: list[Lease] = []

  def take() -> list[str]:
    held.append(acquire(workdir, cfg.checkpoint.lease_seconds, say))
    return [held[0].holder.to_bytes().decode(), str(workdir.absolute())]

  text, where = by_first(take)
  if held:
    others = peers()
    if others:
      others.at_end.append(held[0].release)
    stack.enter_context(held[0])
  none_complains(None if held else _elsewhere(workdir, from_bytes(text.encode()), where))
  return held[0] if held else None


def _elsewhere(workdir: Path, first: Holder | None, where: str) -> str | None:
  """What is wrong with this process's workdir, in which the lease of process 0 does not show."""
  assert first
  why = unseen(workdir, first)
  return why and (
    f'process {jax.process_index()} (host {socket.gethostname()}) does not see the workdir of process 0 (host '
    f'{first.process.host}, {where}): {why}; all processes need one workdir, on a shared disk'
  )


def require_one_command(cfg: Config, allow_change: Collection[str]) -> None:
  """UserError on every process unless all have one config, one version of what computes."""
  if jax.process_count() == 1:
    return
  require_alike(
    {
      **flatten(cfg.to_mapping()),
      '--allow_change': sorted(allow_change),
      'llamax': import_module('llamax').__version__,  # By name: it also imports the layers above this one.
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
    }
  )


def open_data(cfg: Config) -> tuple[TrainingData, list[EvalData]]:
  """What is trained on, what is held out; all that could be wrong with it is found here."""
  share = (jax.process_index(), jax.process_count())
  data = open_training(cfg.data, share)
  data.check_ids(cfg.model.vocab_size)
  heldout = [open_eval(entry, cfg.data, data.tokenizer, share) for entry in cfg.eval.splits]
  for split in heldout:
    split.source.check_ids(cfg.model.vocab_size)
  prompt_ids(cfg, data.tokenizer)
  return data, heldout


def open_checkpoints(cfg: Config, workdir: Path, lease: Lease | None, ledger: Ledger) -> Checkpoints:
  def warn(text: str) -> None:
    ledger.record('checkpoint', problem=text)
    print(f'WARNING: {text}', file=sys.stderr, flush=True)

  return Checkpoints(
    workdir / 'checkpoints',
    cfg.checkpoint,
    token=by_first(lambda: lease.token if lease else 0),
    fence=lease.require if lease else lambda: None,
    timeout_seconds=cfg.watchdog.save_seconds,
    warn=warn,
  )


def whereabouts(program: Program) -> dict[str, Any]:
  """What the ledger says of a start: where it runs, on what."""
  return {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'processes': jax.process_count(),
    'mesh': dict(program.mesh.shape),
    'devices': jax.devices()[0].device_kind,
    'jax': jax.__version__,
  }


def make_clock(cfg: Config, program: Program) -> perf.StepClock:
  device = jax.devices()[0]
  return perf.StepClock(
    now=time.monotonic,
    num_devices=program.mesh.size,
    num_steps=cfg.train.num_steps,
    flops=perf.flops_per_token(cfg.model, model_params(program), cfg.data.seq_len),
    peak=perf.peak_flops(device.device_kind, getattr(device, 'num_cores', None)),
  )


def set_compilation_cache(cfg: Config) -> None:
  """Programs compiled once are read from disk the next time: a restart costs seconds.

  Not with several processes on CPUs: process 0 alone would have its programs at once, and gloo gives the others
  no more than 30 s to compile theirs.
  """
  if cfg.compute.compilation_cache is None or (jax.process_count() > 1 and jax.default_backend() == 'cpu'):
    return
  folder = Path(cfg.compute.compilation_cache).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'compute.compilation_cache={str(folder)!r} cannot be made ({error.strerror}); name another, or none'
    ) from None
  jax.config.update('jax_compilation_cache_dir', str(folder))
