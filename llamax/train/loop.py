"""The story of a training run, from its config to its last checkpoint."""

import dataclasses
import functools
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from llamax.checkpoint.claim import claim_workdir, write_config
from llamax.checkpoint.lease import Lease, acquire
from llamax.checkpoint.manager import Checkpoints, SaveError
from llamax.core.config import Config
from llamax.core.errors import UserError
from llamax.core.exits import STORAGE, Stop
from llamax.data.mixture import batch_of_step
from llamax.data.pipeline import EvalData, TrainingData, open_eval, open_training
from llamax.evaluate.heldout import heldout_metrics
from llamax.model.llama import param_dims
from llamax.observe import perf, report
from llamax.observe.batchlog import BatchLog
from llamax.observe.ledger import Ledger
from llamax.observe.progress import Progress, make_progress
from llamax.observe.writer import Writer, make_writers
from llamax.parallel.decide import by_first
from llamax.parallel.hosts import as_one, peers, platform, skip_absent_tpu
from llamax.parallel.rows import global_batch, host_rows, own_rows
from llamax.parallel.watchdog import Watchdog
from llamax.train.guard import Guard, Spike, Verdict, too_many
from llamax.train.preflight import data_lines, model_params, preflight
from llamax.train.program import Program, make_program
from llamax.train.resume import Start, record_rollback, require_finite, run_meta, start_or_resume
from llamax.train.samples import prompt_ids, write_samples
from llamax.train.state import TrainState
from llamax.train.stopping import Stopping, Wishes, signals


@dataclasses.dataclass(frozen=True)
class Result:
  """How a run ended. finished: all steps are done; False: `signal` asked it to stop, the next start goes on.

  saved: the state of `step` is on the disk; False: there was no time for that.
  """

  step: int
  finished: bool
  metrics: dict[str, float]
  signal: int = 0
  saved: bool = True


@dataclasses.dataclass
class Run:
  """What the parts of one run share."""

  cfg: Config
  workdir: Path
  program: Program
  data: TrainingData
  heldout: list[EvalData]
  checkpoints: Checkpoints
  writer: Writer
  progress: Progress
  clock: perf.StepClock
  ledger: Ledger
  lease: Lease | None  # on process 0
  watchdog: Watchdog
  stopping: Stopping
  guard: Guard
  tokens_seen: int = 0
  changed: dict[str, Any] = dataclasses.field(default_factory=dict)  # by --allow_change, so far
  step_fn: Callable[..., Any] | None = None  # compiled
  saving: int = 0  # the step that was saved last
  validation: tuple[int, float] | None = None  # (step, loss) of the newest evaluation on the first split
  batch_log: BatchLog | None = None
  latest: dict[str, float] = dataclasses.field(default_factory=dict)


def run(
  cfg: Config,
  workdir: str | Path,
  *,
  allow_change: Collection[str] = (),
  say: Callable[[str], None] = print,
) -> Result:
  """Trains, or goes on where the checkpoints in `workdir` end. Raises UserError before any work is lost.

  Args:
    allow_change: keys that may differ from the run found there, though a run does not change them by itself.
  """
  workdir = Path(workdir)
  skip_absent_tpu()
  set_compilation_cache(cfg)
  first, shout = jax.process_index() == 0, say
  if not first:
    say = silent
  # What goes wrong is told to the other processes first of all, before this one waits for them in its farewell.
  with ExitStack() as stack, as_one():
    watchdog = stack.enter_context(Watchdog(cfg.watchdog, workdir, peers()))
    lease = hold(stack, cfg, workdir, say)
    changed = by_first(lambda: [str(d) for d in claim_workdir(workdir, cfg.to_mapping(), allow_change)])
    ledger = Ledger(workdir, enabled=jax.process_index() == 0)
    stack.callback(ledger.close)
    program = make_program(cfg, jax.devices())
    data, heldout = open_data(cfg)
    if first:
      data.tokenizer.save(workdir / 'tokenizer.model')
    say(preflight(program, param_dims(cfg.model), platform()[1]))
    say('\n'.join(['', *data_lines(cfg, data, heldout), '']))
    for difference in changed:
      say(f'resuming with another {difference}')
    checkpoints = stack.enter_context(open_checkpoints(cfg, workdir, lease, ledger))
    begin = functools.partial(start_or_resume, cfg, program, data, workdir, checkpoints, allow_change)
    with watchdog.phase('restore'):
      start = begin(say)
    if first:
      write_config(workdir, cfg.to_mapping())
    if start.step >= cfg.train.num_steps:
      say(f'this run is complete: {start.step:,} of {cfg.train.num_steps:,} steps are done. For a longer one: '
          f'--config.train.num_steps={2 * start.step}')  # fmt: skip
      return Result(start.step, True, {})
    ledger.record('start', step=start.step, **whereabouts(program))
    writer = make_writers(cfg.log, workdir, cfg.to_mapping()) if first else Writer(())
    stack.callback(writer.close)
    screen = None if first else stack.enter_context(open(os.devnull, 'w'))
    progress = make_progress(cfg.train.num_steps, start.step, screen)
    stack.callback(progress.close)
    stack.enter_context(jax.set_mesh(program.mesh))
    clock = make_clock(cfg, program)
    stopping = Stopping(program.mesh, checkpoints, cfg.checkpoint.grace_seconds)
    r = Run(
      cfg=cfg,
      workdir=workdir,
      program=program,
      data=data,
      heldout=heldout,
      checkpoints=checkpoints,
      writer=writer,
      progress=progress,
      clock=clock,
      ledger=ledger,
      lease=lease,
      watchdog=watchdog,
      stopping=stopping,
      guard=start.guard,
    )
    watchdog.watch('write', lambda: None if checkpoints.finished() else r.saving)
    if cfg.log.batches:
      r.batch_log = BatchLog(workdir, jax.process_index())
      stack.callback(r.batch_log.close)
    stack.enter_context(signals(stopping.note, progress.say if first else shout))
    while True:
      try:
        result = train(r, start)
        break
      except Spike as found:
        spike = found.with_traceback(None)  # That holds on to the weights; there is room for one set.
      start = roll_back(r, spike, begin)
    ledger.record('end', step=result.step, finished=result.finished)
  if first and result.finished:
    say(report.terminal_curve(workdir))
  if first:
    say(report.loss_curve(workdir))
  return result


def silent(text: str) -> None:
  """What process 0 says need not be said again."""


def hold(stack: ExitStack, cfg: Config, workdir: Path, say: Callable[[str], None]) -> Lease | None:
  """Makes this run the only writer of its workdir, until the end of `stack`; the lease is with process 0.

  Raises UserError on every process when another run holds it.
  """
  held: list[Lease] = []
  by_first(lambda: held.append(acquire(workdir, cfg.checkpoint.lease_seconds, say)))
  if not held:
    return None
  others = peers()
  if others:
    others.at_end.append(held[0].release)
  return stack.enter_context(held[0])


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


def roll_back(r: Run, spike: Spike, begin: Callable[[Callable[[str], None]], Start]) -> Start:
  """Where the run goes on after a spike: where a new start would, so a kill on the way changes nothing."""
  with r.clock.phase('init'), r.watchdog.phase('restore'):
    with failed_saves(r):
      r.checkpoints.wait()
    way = record_rollback(r.guard, spike, r.checkpoints, r.ledger)
    first = batch_of_step(way.at, r.guard.skips)
    r.progress.say(
      f'warning: step {way.spike}: the loss leaps to {way.loss:.4g}; back to step {way.to}, leaving out '
      f'batches {first} to {first + way.skip - 1} of the stream'
    )
    r.checkpoints.protect(way.to, f'loss spike at step {way.spike}')
    return begin(r.progress.say)


def train(r: Run, begin: Start) -> Result:
  """All steps from `begin` to the end. The host stays one step ahead of the devices: it reads a step's numbers
  while they work on the next one. Raises Stop, Spike.
  """
  cfg, num_steps, state, start = r.cfg, r.cfg.train.num_steps, begin.state, begin.step
  r.guard, r.tokens_seen, r.validation, r.changed = begin.guard, begin.tokens_seen, None, begin.changed
  if r.lease:
    r.lease.require()  # Another run may have taken over since; what it writes is not to be cut off.
  r.writer.truncate_after(start)
  rows = host_rows(r.program.mesh, cfg.batch_size)
  batches = r.data.batches(batch_size=cfg.batch_size, start_step=start, rows=rows, skips=r.guard.skips)
  if r.batch_log:
    batches = r.batch_log.follow(batches, start, rows, r.guard.skips)
  with r.clock.first_step():
    r.watchdog.enter('first_batch', start)
    batch = global_batch(next(batches), r.program.mesh)
    r.watchdog.enter('compile', start)
    step_fn = r.step_fn = r.step_fn or r.program.step.lower(state, batch).compile()
    r.watchdog.enter('first_step', start)
    state, metrics = jax.block_until_ready(step_fn(state, batch))
    r.stopping.tell(metrics['loss'])
  step, window = start + 1, []
  while True:
    r.watchdog.enter('log', step)
    window.append(metrics)
    r.progress.advance(step)
    r.watchdog.enter('step', step)
    wishes = r.stopping.wishes()
    check_saves(r, wishes)
    finished = step == num_steps
    done = finished or wishes.signal
    # Who is asked to stop has little time: the next start evaluates.
    evaluating = finished or (due(cfg.eval.every, step) and not done)
    sampling = finished or (due(cfg.sample.every, step) and not done)
    saving = done or r.checkpoints.should_save(step, wishes.now)
    if evaluating or sampling or saving or step % cfg.log.every == 0 or step == start + 1:
      # Before anything else that takes time: what the step took is not booked to that.
      window = log_window(r, step, window)
    if evaluating:
      evaluate(r, state, step)
    if sampling:
      with r.clock.phase('sample'), r.watchdog.phase('sample'):
        write_samples(r.workdir, r.program, state.params, r.data.tokenizer, step, r.progress.say, r.writer)
    if done:
      saved = finished or wishes.time_to_save
      if saved:
        save_last(r, state, step)
      break
    if saving:
      save(r, state, step)
    r.watchdog.enter('data', step)
    with r.clock.phase('data_wait'):
      batch = global_batch(next(batches), r.program.mesh)
    r.watchdog.enter('step', step)
    state, metrics = step_fn(state, batch)
    r.stopping.tell(metrics['loss'])
    if window:  # One step in flight, so that time is booked to the step that took it.
      window[-1] = jax.device_get(window[-1])
      judge(r, step, window[-1], logged=False)
    step += 1
    if r.lease and r.lease.lost:
      r.lease.require()
  r.writer.write(step, r.clock.goodput())
  return Result(step, finished, r.latest, 0 if finished else wishes.signal, saved)


def due(every: int | None, step: int) -> bool:
  return every is not None and step % every == 0


def log_window(r: Run, step: int, window: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Writes the numbers of `step` with the rates since the last call; returns an empty window."""
  host = jax.device_get(window)
  if r.batch_log:
    for done, found in enumerate(host, step - len(host) + 1):
      r.batch_log.write(done, found['loss'])
  tokens = [float(metrics['tokens']) for metrics in host]
  r.tokens_seen += int(sum(tokens))
  metrics = {name: float(value) for name, value in host[-1].items()}
  metrics |= {
    'perplexity': perf.perplexity(metrics['loss']),
    'learning_rate': float(r.program.schedule(step - 1 - r.guard.skipped)),  # It counts the updates made.
    'tokens_seen': r.tokens_seen,
    'memory_gb': perf.peak_memory_bytes(jax.local_devices()) / 1e9,
    **r.clock.rates(step, tokens),
  }
  with r.watchdog.phase('log'):
    r.writer.write(step, metrics)
  r.progress.train(step, metrics)
  r.latest |= metrics
  judge(r, step, metrics, logged=True)
  return []


def judge(r: Run, step: int, metrics: Mapping[str, Any], logged: bool) -> None:
  """Deals with numbers that went bad; to be called once for each step. Raises Stop, Spike."""
  loss = float(metrics['loss'])
  verdict = r.guard.see(loss, bool(metrics['skipped']))
  if verdict is Verdict.FINE:
    return
  if verdict is Verdict.SPIKE:
    raise Spike(step, loss)
  batch = batch_of_step(step - 1, r.guard.skips)
  documents = r.data.documents(step - 1, r.cfg.batch_size, r.guard.skips)
  facts = {'loss': loss, 'grad_norm': float(metrics['grad_norm'])}
  r.ledger.record('skipped', step=step, **facts, batch=batch, documents=documents[:20])
  if not logged:
    r.writer.write(step, facts | {'skipped': 1.0})
  r.progress.say(
    f'warning: step {step}: loss {loss:.4g}, gradient norm {facts["grad_norm"]:.4g}: the update is left out '
    f'({r.guard.streak} in a row, {r.guard.skipped} in all)'
  )
  with failed_saves(r):
    r.checkpoints.wait()
  newest = max((good for good in r.checkpoints.steps() if good < step), default=None)
  if newest is not None and r.guard.streak == 1:
    r.checkpoints.protect(newest, f'NaN or Inf at step {step}')
  if verdict is Verdict.TOO_MANY:
    raise too_many(r.guard, step, batch, documents, newest)


def evaluate(r: Run, state: TrainState, step: int) -> None:
  """Every held-out split, logged as eval/<name>/..."""
  cfg = r.cfg
  metrics: dict[str, float] = {}
  batch_size = cfg.eval.batch_size or cfg.batch_size // cfg.train.grad_accum
  with r.clock.phase('eval'):
    for split in r.heldout:
      r.watchdog.enter('eval', step)
      found = heldout_metrics(
        r.program.eval_step,
        state.params,
        split.batches(batch_size=batch_size, num_batches=cfg.eval.num_batches),
        lambda rows: global_batch(own_rows(rows, r.program.mesh), r.program.mesh),
        r.data.tokenizer.byte_lengths,
      )
      metrics |= {f'eval/{split.name}/{key}': value for key, value in found.items()}
    r.validation = (step, metrics[f'eval/{r.heldout[0].name}/loss']) if r.heldout else None
  r.writer.write(step, metrics)
  r.progress.evaluated(step, metrics)
  r.latest |= metrics


def save(r: Run, state: TrainState, step: int, last: bool = False) -> None:
  """Starts to write the state after `step` updates. last: no later save can make up for this one."""
  meta = run_meta(r.program, r.cfg, r.data, r.tokens_seen)
  meta |= {'guard': r.guard.to_meta(), 'changed': r.changed}
  if r.validation and r.validation[0] == step:
    meta['validation_loss'] = r.validation[1]
  with r.clock.phase('save'), r.watchdog.phase('save'), failed_saves(r, last):
    require_finite(state, f'the weights after step {step} are not saved', r.checkpoints)
    r.saving = step
    r.checkpoints.save(step, state, meta)


def save_last(r: Run, state: TrainState, step: int) -> None:
  """Once it returns, the state is on the disk. Tries twice: a save refuses when the one before it failed."""
  for last in (False, True):
    with failed_saves(r, last):
      r.checkpoints.wait()
      save(r, state, step, last)
      r.checkpoints.wait()
    if step in r.checkpoints.steps():
      return


def check_saves(r: Run, wishes: Wishes) -> None:
  """Finds out whether the save in the background has failed, as soon as all processes have ended theirs."""
  if not wishes.saving:
    with failed_saves(r):
      r.checkpoints.wait()


@contextmanager
def failed_saves(r: Run, last: bool = False) -> Iterator[None]:
  """A failed save costs a warning; the run, if the config says so or no later save can make up for it."""
  try:
    yield
  except SaveError as error:
    if last or r.cfg.checkpoint.on_failed_save == 'stop':
      raise Stop(STORAGE, f'{error} The same command goes on from the newest checkpoint.') from None
    r.ledger.record('save_failed', problem=str(error))
    r.progress.say(f'warning: {error}')


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
  """Programs compiled once are read from disk the next time: a restart costs seconds."""
  if cfg.compute.compilation_cache is None:
    return
  folder = Path(cfg.compute.compilation_cache).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'compute.compilation_cache={str(folder)!r} cannot be made ({error.strerror}); name another, or none'
    ) from None
  jax.config.update('jax_compilation_cache_dir', str(folder))
