"""What the runs of a sweep cost: parameters, tokens, FLOPs, hours."""

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamax.core.config import Config
from llamax.core.errors import UserError
from llamax.observe.jsonl import METRICS_FILE, read_metrics
from llamax.observe.perf import flops_per_token
from llamax.observe.progress import human, human_time
from llamax.observe.report import table
from llamax.sweep.plan import PlannedRun, run_folder
from llamax.sweep.state import FINISHED, PRUNED, RunState

_RATE = 'tokens_per_second'


@dataclasses.dataclass(frozen=True)
class Cost:
  """steps, tokens: of the whole run. params, flops (of training on all tokens): None where jax cannot count."""

  steps: int
  tokens: int
  params: int | None
  flops: float | None

  @property
  def flops_per_token(self) -> float | None:
    return self.flops and self.flops / self.tokens


def costs(configs: Sequence[Config], params: Sequence[int] | None) -> list[Cost]:
  """One for each config; `params` as count.py has them."""
  found = []
  for index, config in enumerate(configs):
    tokens = config.train.num_steps * config.batch_size * config.data.seq_len
    count = params[index] if params else None
    each = flops_per_token(config.model, count, config.data.seq_len).causal if count else None
    found.append(Cost(config.train.num_steps, tokens, count, each and each * tokens))
  return found


class Speed:
  """Seconds that runs take, by what runs of this sweep have measured, else by a given speed, else unknown."""

  def __init__(
    self,
    folder: str | os.PathLike[str],
    runs: Mapping[str, Cost],
    flops_per_second: float | None,
  ):
    if flops_per_second is not None and flops_per_second <= 0:
      raise UserError(f'--flops_per_second={flops_per_second}: want what one run reaches, above 0')
    self._given = flops_per_second
    # FLOPs a token -> tokens a second.
    self._measured = {
      each: speed
      for name, cost in runs.items()
      if (each := cost.flops_per_token) and (speed := tokens_per_second(run_folder(folder, name)))
    }

  def seconds(self, cost: Cost) -> float | None:
    """None: nothing is known. Evaluations, saves, compiling come on top."""
    each = cost.flops_per_token
    if each is None or cost.flops is None:
      return None
    if self._measured:  # The nearest size tells most: small models reach less of a machine.
      near = min(self._measured, key=lambda other: abs(other / each - 1))
      return cost.flops / (self._measured[near] * near)
    return cost.flops / self._given if self._given else None

  @property
  def source(self) -> str:
    if self._measured:
      return 'by the speed that runs of this sweep have had'
    return 'by --flops_per_second' if self._given else 'unknown: no run has been measured yet'


def tokens_per_second(workdir: Path) -> float | None:
  """The median over what a run has logged, None where it has not."""
  logged = [line[_RATE] for line in read_metrics(workdir / METRICS_FILE) if _RATE in line]
  return statistics.median(logged) if logged else None


def cost_table(
  runs: Sequence[PlannedRun],
  found: Mapping[str, Cost],
  states: Mapping[str, RunState],
  speed: Speed,
  slots: int,
) -> str:
  """The runs with what they change and cost, one a line, then the sums."""
  varying = _varying(runs)
  rows = []
  for run in runs:
    cost, seconds = found[run.name], speed.seconds(found[run.name])
    rows.append(
      (
        run.name,
        *(_shown(run.point.get(key)) for key in varying),
        '?' if cost.params is None else human(cost.params),
        human(cost.tokens),
        '?' if cost.flops is None else human(cost.flops),
        '?' if seconds is None else human_time(seconds),
        states[run.name].state,
      )
    )
  # A name that is made of these is said once.
  shown = table(rows, ('run', *varying, 'params', 'tokens', 'FLOPs', 'time', 'state'))
  return '\n'.join([shown, '', _sums(runs, found, states, speed, slots)])


def _sums(
  runs: Sequence[PlannedRun],
  found: Mapping[str, Cost],
  states: Mapping[str, RunState],
  speed: Speed,
  slots: int,
) -> str:
  left = [found[run.name] for run in runs if states[run.name].state not in (FINISHED, PRUNED)]
  tokens = sum(cost.tokens for cost in left)
  flops = [cost.flops for cost in left if cost.flops is not None]
  seconds = [s for cost in left if (s := speed.seconds(cost)) is not None]
  words = f'{len(runs)} runs, {len(left)} to do: {human(tokens)} tokens'
  if len(flops) == len(left):
    words += f', {human(sum(flops))} FLOPs'
  if not left:
    return words
  if len(seconds) < len(left):
    return f'{words}; time {speed.source} (--flops_per_second=... for a guess)'
  by = f' by {slots} at a time' if slots > 1 else ''
  longest = max(sum(seconds) / slots, max(seconds))
  return f'{words}, about {human_time(longest)}{by}, {speed.source}, compiling, evaluations, saves not counted'


def _varying(runs: Sequence[PlannedRun]) -> list[str]:
  """Keys whose values differ between the runs, or that only some of them set."""
  keys = dict.fromkeys(key for run in runs for key in run.point)
  return [k for k in keys if len({repr(run.point.get(k, '')) for run in runs}) > 1 or len(runs) == 1]


def _shown(value: object) -> str:
  if isinstance(value, tuple):
    return ','.join(map(str, value))
  return '' if value is None else str(value)
