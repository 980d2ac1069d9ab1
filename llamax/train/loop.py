"""The story of a training run, from its config to its last checkpoint."""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

import jax

from llamax.checkpoint.claim import claim_workdir, write_config
from llamax.core.config import Config
from llamax.core.screen import lasting
from llamax.core.storage import needed
from llamax.data.mixture import batch_of_step
from llamax.model.llama import param_dims
from llamax.observe import report
from llamax.observe.batchlog import BatchLog
from llamax.observe.ledger import Ledger
from llamax.observe.progress import make_progress
from llamax.observe.writer import Writer, make_writers
from llamax.parallel.decide import by_first
from llamax.parallel.hosts import as_one, peers, platform, skip_absent_tpu
from llamax.parallel.rows import global_batch, host_rows
from llamax.parallel.watchdog import Watchdog
from llamax.train.between import (
  Run,
  check_saves,
  closed,
  due,
  evaluate,
  evaluation_owed,
  failed_saves,
  judge,
  log_window,
  sample,
  save,
  save_last,
)
from llamax.train.early import sigterm_ends
from llamax.train.guard import Spike
from llamax.train.opening import (
  hold,
  make_clock,
  open_checkpoints,
  open_data,
  require_one_command,
  set_compilation_cache,
  whereabouts,
)
from llamax.train.preflight import data_lines, preflight
from llamax.train.program import make_program
from llamax.train.resume import Start, record_rollback, start_or_resume
from llamax.train.stopping import Stopping, signals


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
  with lasting(), ExitStack() as stack, as_one(), sigterm_ends(stack) as early:
    watchdog = stack.enter_context(Watchdog(cfg.watchdog, workdir, peers()))
    require_one_command(cfg, allow_change)
    lease = hold(stack, cfg, workdir, say)
    if lease and early:
      early.at_end.append(lease.release)
    changed = by_first(lambda: [str(d) for d in claim_workdir(workdir, cfg.to_mapping(), allow_change)])
    ledger = Ledger(workdir, enabled=jax.process_index() == 0)
    stack.callback(ledger.close)
    program = make_program(cfg, jax.devices())
    data, heldout = open_data(cfg)
    if first:
      with needed(workdir / next(iter(data.tokenizer.files))):
        data.tokenizer.save(workdir)
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
    beyond = start.step - cfg.train.num_steps
    if beyond > 0 or (beyond == 0 and by_first(lambda: closed(workdir, start.step))):
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
  with lasting():
    if first and result.finished:
      say(report.terminal_curve(workdir))
    if first:
      say(report.loss_curve(workdir))
  return result


def silent(text: str) -> None:
  """What process 0 says need not be said again."""


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
  r.initial = begin.initial
  if r.lease:
    r.lease.require()  # Another run may have taken over since; what it writes is not to be cut off.
  r.writer.truncate_after(start)
  if evaluation_owed(r, start) and not evaluate(r, state, start):
    return Result(start, False, r.latest, r.stopping.wishes().signal)
  if start == num_steps:  # It was cut off between its last save and its end.
    sample(r, state, start)
    return Result(start, True, r.latest)
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
    # Before what takes long. Where the best are kept, a save waits for the loss that it is judged by.
    early = saving and not wishes.signal and not (evaluating and cfg.checkpoint.keep_best and r.heldout)
    if early:
      save(r, state, step)
    if evaluating and not evaluate(r, state, step):
      wishes, done, finished, sampling = r.stopping.wishes(), True, False, False
    if sampling:
      sample(r, state, step)
    if done:
      saved = finished or early or wishes.time_to_save
      if saved:
        save_last(r, state, step)
      break
    if saving and not early:
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
  r.watchdog.enter('report', step)
  r.writer.write(step, r.clock.goodput())
  return Result(step, finished, r.latest, 0 if finished else wishes.signal, saved)
