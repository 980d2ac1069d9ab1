"""Judges the numbers of each step: equal losses lead to equal verdicts on every process, in every replay."""

import collections
import dataclasses
import enum
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llamax.core.config import GuardConfig
from llamax.core.errors import UserError
from llamax.core.exits import NUMBERS, Stop

# Median absolute deviation -> standard deviation of a normal distribution.
_TO_SIGMA = 1.4826
# Of the median: what losses that hardly differ are taken to deviate by.
_LEAST_DEVIATION = 1e-3


class Verdict(enum.Enum):
  FINE = 'fine'
  SKIPPED = 'skipped'  # NaN or Inf: the step left the state as it was
  TOO_MANY = 'too many'  # ... once more than guard.max_bad_steps allows
  SPIKE = 'spike'  # finite, far above the losses before it


class Spike(Exception):
  """The loss of `step` (updates done with it) leapt: the run goes back to before it."""

  def __init__(self, step: int, loss: float):
    super().__init__(f'loss {loss} at step {step}')
    self.step = step
    self.loss = loss


@dataclasses.dataclass(frozen=True)
class Rollback:
  """How the run got past a spike.

  spike, loss: the step (updates done with it), its loss. to: the checkpoint gone back to; 0: the first weights.
  at, skip: from the batch of step `at` (updates done before it) on, so many batches are left out since.
  """

  spike: int
  loss: float
  to: int
  at: int
  skip: int


class Guard:
  """What the steps so far say of the next one. Its state travels with the checkpoints (`to_meta`)."""

  def __init__(self, cfg: GuardConfig, meta: Mapping[str, Any], rollbacks: Iterable[Rollback]):
    """
    Args:
      meta: what `to_meta` gave when the checkpoint was made; {}: no step is done.
      rollbacks: all that the run has made, those after that checkpoint too.
    """
    self._cfg = cfg
    self.rollbacks = tuple(rollbacks)
    self.skipped: int = meta.get('skipped', 0)
    self.streak: int = meta.get('streak', 0)  # skipped steps in a row, the last step among them
    self._losses = collections.deque[float](meta.get('losses', ()), cfg.spike_window)

  def to_meta(self) -> dict[str, Any]:
    """For the checkpoint of the step that was seen last; JSON."""
    return {
      'skipped': self.skipped,
      'streak': self.streak,
      'losses': list(self._losses),
      'rollbacks': [dataclasses.asdict(r) for r in self.rollbacks],
    }

  @property
  def skips(self) -> tuple[tuple[int, int], ...]:
    """The batches left out, for `TrainingData.batches`."""
    return tuple((r.at, r.skip) for r in self.rollbacks)

  def see(self, loss: float, skipped: bool) -> Verdict:
    """To be called for every step, in order. What is not finite, or is a spike, enters no statistics."""
    if skipped:
      self.skipped += 1
      self.streak += 1
      return Verdict.TOO_MANY if self.streak >= self._cfg.max_bad_steps else Verdict.SKIPPED
    self.streak = 0
    if self._cfg.spike_threshold is not None:
      if self._leaps(loss, self._cfg.spike_threshold):
        return Verdict.SPIKE
      self._losses.append(loss)
    return Verdict.FINE

  def _leaps(self, loss: float, threshold: float) -> bool:
    if len(self._losses) < self._cfg.spike_window:
      return False
    median = statistics.median(self._losses)
    deviation = _TO_SIGMA * statistics.median(abs(x - median) for x in self._losses)
    return loss > median + threshold * max(deviation, _LEAST_DEVIATION * abs(median))

  def roll_back(self, spike: Spike, checkpoints: Iterable[int]) -> Rollback:
    """The way around a spike. Raises Stop once guard.spike_max_rollbacks of them were made.

    Args:
      checkpoints: the steps that can be gone back to; where none is old enough the run begins anew.
    """
    cfg = self._cfg
    if len(self.rollbacks) >= cfg.spike_max_rollbacks:
      raise Stop(
        NUMBERS,
        f'step {spike.step}: the loss leaps to {spike.loss:.6g}, after {len(self.rollbacks)} roll-back(s) '
        f'(guard.spike_max_rollbacks={cfg.spike_max_rollbacks}; ledger.jsonl has them). The checkpoints are '
        'from before the spike. The same command goes on from the newest one: with a higher '
        'guard.spike_threshold, guard.spike_max_rollbacks or guard.spike_skip, or with '
        '--config.guard.spike_threshold=none, which lets spikes pass',
      )
    before = spike.step - 1 - cfg.spike_rewind
    # A spike soon after a roll-back: more batches go at the same place, none of those left out comes back.
    places = [r.at for r in self.rollbacks if r.at < spike.step]
    to = max((step for step in checkpoints if step <= before), default=0)
    return Rollback(spike.step, spike.loss, to, max(0, before, *places), cfg.spike_skip)


def stale(made_with: Mapping[int, int], rollbacks: Sequence[Rollback]) -> list[int]:
  """Checkpoints from before a roll-back that are newer than the step it went to: of a way not taken.

  A kill between the record of a roll-back and the removal of such checkpoints leaves them behind.

  Args:
    made_with: step -> how many of `rollbacks` its run had made by then.
  """
  return sorted(step for step, known in made_with.items() if any(step > r.to for r in rollbacks[known:]))


def joined(ledger: Sequence[Rollback], checkpoint: Sequence[Rollback]) -> tuple[Rollback, ...]:
  """The roll-backs of a run from the two places that hold them; one may know fewer. Raises UserError."""
  longer, shorter = sorted((tuple(ledger), tuple(checkpoint)), key=len, reverse=True)
  if longer[: len(shorter)] != shorter:
    raise UserError(
      f'the roll-backs in ledger.jsonl ({_listed(ledger)}) are not those of the newest checkpoint '
      f"({_listed(checkpoint)}): is the ledger another run's? Restore it, or delete it to go by the checkpoint"
    )
  return longer


def _listed(rollbacks: Sequence[Rollback]) -> str:
  return ', '.join(f'step {r.spike} to {r.to}' for r in rollbacks) or 'none'


def too_many(
  guard: Guard,
  step: int,
  batch: int,
  documents: Sequence[str],
  newest: int | None,
  clip_norm: float | None,
) -> Stop:
  """How a run ends whose last steps were all skipped.

  Args:
    step: the last of them, updates done with it. batch: the number of its batch in the stream.
    documents: what that batch is made of. newest: the checkpoint that the same command goes on from.
    clip_norm: optim.clip_norm.
  """
  named = ', '.join(documents[:8]) + (f' and {len(documents) - 8} more' if len(documents) > 8 else '')
  first = step - guard.streak + 1
  if newest is None:
    stands = 'there is no checkpoint yet.'
  else:
    stands = f'the newest checkpoint is of step {newest}, with finite weights.'
    if newest >= first - 1:
      # All of these have the weights that gave no finite gradients since.
      stands += (
        f' Step {first - 1} was the last one with finite gradients: its update may be what caused this, so '
        f'that checkpoints of step {first - 1} or later hold it (llamax checkpoint rm goes back before them).'
      )
  clip = '' if clip_norm is None else f' or a lower optim.clip_norm than {clip_norm:g}'
  return Stop(
    NUMBERS,
    f'steps {first} to {step}: NaN or Inf in the loss or the gradients, {guard.streak} in a row '
    f'(guard.max_bad_steps={guard.streak}). None of these updates was made; {stands}\n'
    f'The batch of step {step} is number {batch} of the stream, made of {named}. ledger.jsonl names those of '
    'the other steps.\nIf these documents are sound, the training itself diverges: give it a lower '
    f'optim.learning_rate{clip} (with --allow_change for it). To go on past this '
    f'place: the same command with a higher --config.guard.max_bad_steps than {guard.streak}.',
  )
