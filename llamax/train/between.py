"""What a run does between two steps: logs, judges, evaluates, saves."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from llamax.checkpoint.lease import Lease
from llamax.checkpoint.manager import Checkpoints, SaveError
from llamax.core.config import Config
from llamax.core.exits import STORAGE, Stop
from llamax.data.mixture import batch_of_step
from llamax.data.pipeline import EvalData, TrainingData
from llamax.evaluate.heldout import heldout_metrics
from llamax.observe import perf
from llamax.observe.batchlog import BatchLog
from llamax.observe.jsonl import METRICS_FILE, read_metrics
from llamax.observe.ledger import Ledger, read_ledger
from llamax.observe.progress import Progress
from llamax.observe.writer import Writer
from llamax.parallel.decide import by_first
from llamax.parallel.rows import global_batch, own_rows
from llamax.parallel.watchdog import Watchdog
from llamax.train.guard import Guard, Spike, Verdict, too_many
from llamax.train.program import Program
from llamax.train.resume import require_finite, run_meta
from llamax.train.samples import write_samples
from llamax.train.state import TrainState
from llamax.train.stopping import Stopping, Wishes


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
  initial: dict[str, Any] | None = None  # what the first weights were read from
  step_fn: Callable[..., Any] | None = None  # compiled
  saving: int = 0  # the step that was saved last
  validation: tuple[int, float] | None = None  # (step, loss) of the newest evaluation on the first split
  batch_log: BatchLog | None = None
  latest: dict[str, float] = dataclasses.field(default_factory=dict)


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
    raise too_many(r.guard, step, batch, documents, newest, r.cfg.optim.clip_norm)


def evaluate(r: Run, state: TrainState, step: int) -> bool:
  """Every held-out split, logged as eval/<name>/...; False: asked to stop on the way, none of it counts."""
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
        r.stopping.asked,
      )
      if found is None:
        r.progress.say(
          f'warning: the evaluation at step {step} is left to the next start: there may be no time for it'
        )
        return False
      metrics |= {f'eval/{split.name}/{key}': value for key, value in found.items()}
    r.validation = (step, metrics[f'eval/{r.heldout[0].name}/loss']) if r.heldout else None
  r.writer.write(step, metrics)
  r.progress.evaluated(step, metrics)
  r.latest |= metrics
  return True


def evaluation_owed(r: Run, step: int) -> bool:
  """Whether the evaluation due after `step` was cut off, by a kill or a wish to stop. All processes ask."""
  if not r.heldout or not (step == r.cfg.train.num_steps or (step and due(r.cfg.eval.every, step))):
    return False
  return not by_first(lambda: evaluated(r.workdir, step))


def evaluated(workdir: Path, step: int) -> bool:
  lines = read_metrics(workdir / METRICS_FILE)
  return any(line['step'] == step and any(key.startswith('eval/') for key in line) for line in lines)


def closed(workdir: Path, step: int) -> bool:
  """Whether a run that was to end after `step` has done so, with its last evaluation and samples."""
  ends = (event for event in read_ledger(workdir) if event['event'] == 'end')
  return any(event.get('finished') and event.get('step') == step for event in ends)


def due(every: int | None, step: int) -> bool:
  return every is not None and step % every == 0


def sample(r: Run, state: TrainState, step: int) -> None:
  with r.clock.phase('sample'), r.watchdog.phase('sample'):
    write_samples(r.workdir, r.program, state.params, r.data.tokenizer, step, r.progress.say, r.writer)


def save(r: Run, state: TrainState, step: int, last: bool = False) -> None:
  """Starts to write the state after `step` updates. last: no later save can make up for this one."""
  meta = run_meta(r.program, r.cfg, r.data, r.tokens_seen)
  meta |= {'guard': r.guard.to_meta(), 'changed': r.changed}
  if r.initial is not None:
    meta['initial'] = r.initial
  if r.validation and r.validation[0] == step:
    meta['validation_loss'] = r.validation[1]
  with r.clock.phase('save'), failed_saves(r, last):
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
    with r.watchdog.phase('save'):
      yield
  except SaveError as error:
    if last or r.cfg.checkpoint.on_failed_save == 'stop':
      begins = 'starts again' if r.checkpoints.latest() is None else 'goes on from the newest checkpoint'
      raise Stop(STORAGE, f'{error} The same command {begins}.') from None
    r.ledger.record('save_failed', problem=str(error))
    r.progress.say(f'warning: {error}')
