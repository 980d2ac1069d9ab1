"""What the folder of a run tells of it, be it still being written, torn or cut short."""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llamax.checkpoint import lease_folder
from llamax.checkpoint.claim import CONFIG_FILE, read_config
from llamax.checkpoint.holder import here
from llamax.core import exits
from llamax.core.config import flatten
from llamax.core.errors import UserError
from llamax.observe.jsonl import METRICS_FILE, read_metrics
from llamax.observe.ledger import read_ledger
from llamax.observe.report import Curve
from llamax.sweep.state import FAILED, FINISHED, PRUNED, RUNNING, STOPPED, WAITING, RunState
from llamax.train.supervise import FINAL, in_words

FIRST_SPLIT = 'eval/loss'  # the loss on the first held-out split, whatever its name
TRAIN_LOSS = 'loss'
_MOST = 50  # lines of a noisy metric that its value is the mean of, at most


class Sample(NamedTuple):
  """A number of a run: seconds are those of training steps so far, without compiling, evaluating, saving."""

  step: int
  tokens: float
  seconds: float
  value: float


class Value(NamedTuple):
  value: float
  step: int


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """One run.

  config: dotted key -> value, empty where it cannot be read. state: one of sweep/state.STATES. note: why it
  failed, was pruned, or cannot be read. series: metric -> what was logged of it, in order, the losses alone and
  the metrics asked for. seconds, tokens_per_second, mfu: means over all training steps, None where unknown.
  """

  name: str
  folder: Path
  config: Mapping[str, Any]
  state: str
  note: str
  step: int
  num_steps: int | None
  tokens: float | None
  seconds: float | None
  tokens_per_second: float | None
  mfu: float | None
  series: Mapping[str, list[Sample]]

  def metric(self, name: str) -> str | None:
    """`name` as this run has it: 'eval/loss' is its first held-out split; None where it has no such metric."""
    if name in self.series:
      return name
    section, _, kind = name.rpartition('/')
    if section != 'eval':
      return None
    return next((k for k in self.series if k.startswith('eval/') and k.endswith(f'/{kind}')), None)

  def value(self, name: str, maximize: bool = False) -> Value | None:
    """What stands for a metric: the best of a held-out split, of anything else the mean of its last tenth.

    None: there is none that is finite.
    """
    found = self.metric(name)
    samples = [s for s in self.series[found] if math.isfinite(s.value)] if found else []
    if not found or not samples:
      return None
    if found.startswith('eval/'):
      best = (max if maximize else min)(samples, key=lambda s: s.value)
      return Value(best.value, best.step)
    last = samples[-min(_MOST, max(1, len(samples) // 10)) :]
    return Value(statistics.fmean(s.value for s in last), samples[-1].step)

  def curve(self, name: str) -> list[Sample]:
    """The finite samples of a metric in order; the training loss as its centred moving mean."""
    found = self.metric(name)
    samples = [s for s in self.series[found] if math.isfinite(s.value)] if found else []
    if found == TRAIN_LOSS:
      smooth = Curve(losses=[s.value for s in samples]).smooth()
      return [s._replace(value=value) for s, value in zip(samples, smooth, strict=True)]
    return samples


def is_run(folder: Path) -> bool:
  return (folder / CONFIG_FILE).is_file() or (folder / METRICS_FILE).is_file()


def read_record(
  name: str,
  folder: Path,
  metrics: Iterable[str] = (),
  *,
  known: RunState | None = None,
  planned: Mapping[str, Any] | None = None,
) -> RunRecord:
  """A run's record; damage is told in `note`, it raises nothing.

  Args:
    metrics: to keep beside the losses.
    known: what the sweep says of the run.
    planned: its config by the sweep's plan, dotted, for a run that has not begun.
  """
  config, notes = dict(planned or {}), []
  try:
    config = {key: _tuples(value) for key, value in flatten(read_config(folder)).items()}
  except (UserError, AttributeError) as error:
    if known is None:
      notes.append(str(error))
  try:
    lines = read_metrics(folder / METRICS_FILE)
  except OSError as error:
    lines = []
    notes.append(f'{METRICS_FILE} cannot be read ({error})')
  state, why = _state(folder, known)
  if state == FINISHED and not folder.exists():
    notes.append(f'its folder {folder} is not here')
  series, totals = _series(lines, metrics)
  losses = [v for line in lines if (v := _number(line, TRAIN_LOSS)) is not None]
  if losses and not math.isfinite(losses[-1]):
    notes.append(f'its last loss is {losses[-1]}')
  step = max((int(s) for line in lines if (s := _finite(line, 'step')) is not None), default=0)
  num_steps = config.get('train.num_steps')
  return RunRecord(
    name=name,
    folder=folder,
    config=config,
    state=state,
    note='; '.join(filter(None, [why, *notes])),
    step=step,
    num_steps=num_steps if isinstance(num_steps, int) else None,
    series=series,
    **totals,
  )


def _tuples(value: Any) -> Any:
  """JSON's lists as what a Config has, so that they compare equal."""
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _series(lines: list[dict[str, float]], metrics: Iterable[str]) -> tuple[dict, dict]:
  """({metric: samples}, totals of the run)."""
  wanted = {TRAIN_LOSS, *metrics}
  series: dict[str, list[Sample]] = {}
  tokens, seconds, timed, busy = 0.0, 0.0, 0.0, 0.0
  since = 0.0  # the step up to which time is counted
  utilised: float | None = None
  for line in lines:
    now = _finite(line, 'step')
    if now is None:
      continue
    took, speed = _finite(line, 'step_seconds'), _finite(line, 'tokens_per_second')
    if took is not None and speed is not None:
      lasted = took * max(0, now - since)
      seconds, timed = seconds + lasted, timed + speed * lasted
      if (mfu := _finite(line, 'mfu')) is not None:
        utilised, busy = (utilised or 0.0) + mfu * lasted, busy + lasted
    seen, step = _finite(line, 'tokens_seen'), int(now)
    tokens = tokens if seen is None else seen
    # Of any other line, as that of an update that was left out, the next rate counts the steps too.
    if seen is not None or took is not None:
      since = now
    for name in line:
      if name in wanted or name.startswith('eval/'):
        value = _number(line, name)
        if value is not None:
          series.setdefault(name, []).append(Sample(step, tokens, seconds, value))
  return series, {
    'tokens': tokens if lines else None,
    'seconds': seconds or None,
    'tokens_per_second': timed / seconds if seconds else None,
    'mfu': utilised / busy if utilised is not None and busy else None,
  }


def _number(line: Mapping[str, Any], name: str) -> Any:
  value = line.get(name)
  return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _finite(line: Mapping[str, Any], name: str) -> Any:
  value = _number(line, name)
  return value if value is not None and math.isfinite(value) else None


def _state(folder: Path, known: RunState | None) -> tuple[str, str]:
  """(state, why): by the sweep where it has the last word, else by what the run itself left."""
  if known is not None and known.state in (FAILED, PRUNED):
    ended = known.code if known.state == FAILED else None
    return known.state, known.reason or (in_words(ended) if ended is not None else '')
  if known is not None and known.state == FINISHED:
    return FINISHED, ''  # Its folder may be on another machine.
  last = next((e for e in reversed(_events(folder)) if e.get('event') in ('start', 'end')), None)
  if last is not None and last['event'] == 'end' and last.get('finished'):
    return FINISHED, ''
  if _is_held(folder) or (known is not None and known.state == RUNNING):
    return RUNNING, ''
  ended = next((e for e in reversed(_events(folder, 'supervise.jsonl')) if e.get('event') == 'ended'), None)
  if ended is not None and ended.get('code') in FINAL and ended['code'] != exits.DONE:
    return FAILED, in_words(ended['code'])
  return (STOPPED if last is not None or (folder / METRICS_FILE).exists() else WAITING), ''


def _events(folder: Path, *name: str) -> list[dict[str, Any]]:
  try:
    return read_ledger(folder, *name)
  except OSError:
    return []


def _is_held(folder: Path) -> bool:
  """Whether a process holds the run's lease: where it can be seen by the process, elsewhere by its renewals."""
  leases = folder / 'lease'
  try:
    newest = lease_folder.newest(leases)
    holder = lease_folder.read(leases, newest) if newest is not None else None
  except OSError:
    return False
  if holder is None or holder.released:
    return False
  if holder.process.same_machine(here()):
    return holder.process.alive() is not False
  return time.time() - holder.renewed < holder.seconds
