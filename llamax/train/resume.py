"""Where a run begins: at its newest checkpoint, around the spikes that its ledger tells of."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax

from llamax.checkpoint import steps as folder_of_steps
from llamax.checkpoint.claim import CHANGED, recorded_changes
from llamax.checkpoint.integrity import forced, require_same
from llamax.checkpoint.manager import Checkpoints
from llamax.core.config import Config
from llamax.core.errors import UserError
from llamax.core.exits import NUMBERS, STORAGE, Stop
from llamax.data.pipeline import TrainingData
from llamax.observe.ledger import Ledger, events
from llamax.parallel.decide import by_first
from llamax.train.guard import Guard, Rollback, Spike, joined, stale
from llamax.train.initial import open_initial, record
from llamax.train.loading import load_params
from llamax.train.program import Program
from llamax.train.state import TrainState, init_state, nonfinite_leaves, state_of

ROLLBACK = 'rollback'
_FIELDS = {field.name: (int, float) if field.name == 'loss' else int for field in dataclasses.fields(Rollback)}


@dataclasses.dataclass(frozen=True)
class Start:
  """step: updates done. guard: as it was after them, knowing every roll-back. changed: {key: value} of what
  --allow_change let in.
  """

  state: TrainState
  step: int
  tokens_seen: int
  guard: Guard
  changed: dict[str, Any]
  initial: dict[str, Any] | None = None  # what the first weights were read from


def start_or_resume(
  cfg: Config,
  program: Program,
  data: TrainingData,
  workdir: Path,
  checkpoints: Checkpoints,
  allow_change: Collection[str],
  say: Callable[[str], None],
) -> Start:
  """The newest checkpoint that verifies, or a new state. Also the second half of a roll-back.

  A kill at any moment of a roll-back leads here: it counts from its line in the ledger on; what is left of the
  way not taken goes before anything is restored.

  Raises:
    UserError: the checkpoint is another run's, or all are damaged. Stop: its weights hold a NaN.
  """
  ledger = [Rollback(*values) for values in by_first(lambda: recorded(workdir))]
  dropped = drop_stale(checkpoints, ledger)
  if dropped:
    say(f'rolled back: the checkpoints of steps {", ".join(map(str, dropped))} are dropped')
  if checkpoints.latest() is None:
    guard = Guard(cfg.guard, {}, ledger)
    if cfg.train.init_from is None:
      state = init_state(program.model, program.tx, program.mesh, cfg.train.seed)
      return Start(state, 0, 0, guard, {})
    state, noted = begin_from(cfg, program, data, workdir, say)
    return Start(state, 0, 0, guard, {}, noted)
  changed, current = recorded_changes(workdir), run_meta(program, cfg, data, 0)
  differences = require_same(
    checkpoints.read_meta(), current, str(checkpoints.directory), allow_change, changed
  )
  state, meta = checkpoints.restore(program.state)
  step, seen, noted = meta['step'], meta['tokens_seen'], meta.get('guard', {})
  require_finite(state, f'the checkpoint of step {step}', checkpoints)
  say(f'resuming after step {step:,} of {cfg.train.num_steps:,}, {seen:,} tokens seen')
  changes = by_first(lambda: record_changes(workdir, forced(differences, changed), step))
  for change in changes:
    say(f'--allow_change: {change["key"]} is now {change["now"]}, was {change["saved"]}; noted in ledger.jsonl')
  changed |= {change['key']: change['now'] for change in changes}
  rollbacks = joined(ledger, [Rollback(**r) for r in noted.get('rollbacks', ())])
  return Start(state, step, seen, Guard(cfg.guard, noted, rollbacks), changed, meta.get('initial'))


def begin_from(
  cfg: Config, program: Program, data: TrainingData, workdir: Path, say: Callable[[str], None]
) -> tuple[TrainState, dict[str, Any]]:
  """A new state with the weights of `train.init_from`; what is noted of them. All processes call this.

  Raises UserError: they are of another model, another tokenizer, damaged, or not finite.
  """
  source = open_initial(cfg, data.tokenizer)
  say(f'beginning with the weights of {source.path} ({source.format})')
  with jax.set_mesh(program.mesh):
    state = state_of(load_params(source, program.state.params), program.tx, program.state)
  if bad := nonfinite_leaves(state):
    raise UserError(
      f'train.init_from={cfg.train.init_from}: NaN or Inf in {len(bad)} array(s): {", ".join(bad[:8])}; take a '
      'checkpoint from before, or compute.param_dtype=float32 where these were cast'
    )
  noted = by_first(lambda: record(source))

  def note() -> None:
    with contextlib.closing(Ledger(workdir)) as ledger:
      ledger.record('initial', **noted)

  by_first(note)
  return state, noted


def run_meta(program: Program, cfg: Config, data: TrainingData, tokens_seen: int) -> dict[str, Any]:
  """What a checkpoint says beside its arrays; the data position is its step."""
  return {
    'config': cfg.to_mapping(),
    'tokenizer_fingerprint': data.tokenizer.fingerprint,
    'compute_dtype_used': program.cfg.compute.compute_dtype,
    'dataset_fingerprints': [source.fingerprint for source in data.sources],
    'tokens_seen': tokens_seen,
    'mesh': dict(program.mesh.shape),
  }


def record_changes(workdir: Path, changes: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
  """Writes what was let in at `step` into the ledger; Stop when that cannot be done."""
  with contextlib.closing(Ledger(workdir)) as ledger:
    for change in changes:
      if not ledger.record(CHANGED, **change, step=step):
        raise Stop(
          STORAGE,
          f'the change of {change["key"]} cannot be written to ledger.jsonl. Make room on its disk, then run '
          'the same command',
        )
  return changes


def recorded(workdir: Path) -> list[list[Any]]:
  """The fields of each roll-back in the ledger, oldest first."""
  return [[line[name] for name in _FIELDS] for line in events(workdir, ROLLBACK, _FIELDS)]


def drop_stale(checkpoints: Checkpoints, rollbacks: list[Rollback]) -> list[int]:
  """Removes the checkpoints of ways that were not taken; returns their steps. All processes call this."""
  if not rollbacks:
    return []
  old = by_first(lambda: stale(_made_with(checkpoints.directory), rollbacks))
  return checkpoints.drop(old) if old else []


def _made_with(directory: Path) -> dict[int, int]:
  found = {}
  for step in folder_of_steps.steps(directory):
    try:
      meta = folder_of_steps.meta(directory / str(step))
    except (OSError, ValueError):
      continue  # Damaged: what it says decides nothing; whoever restores puts it aside.
    found[step] = len(meta.get('guard', {}).get('rollbacks', ()))
  return found


def record_rollback(guard: Guard, spike: Spike, checkpoints: Checkpoints, ledger: Ledger) -> Rollback:
  """Decides how to get around a spike; it counts once its line is on the disk. All processes call this.

  Raises Stop: too many of them, or the line cannot be written.
  """

  def decide() -> list[Any]:
    found = guard.roll_back(spike, folder_of_steps.steps(checkpoints.directory))
    if not ledger.record(ROLLBACK, **dataclasses.asdict(found)):
      raise Stop(
        STORAGE,
        f'step {spike.step}: the loss leaps to {spike.loss:.6g}; the roll-back to step {found.to} cannot be '
        'written to ledger.jsonl. Make room on its disk, then run the same command',
      )
    return list(dataclasses.astuple(found))

  return Rollback(*by_first(decide))


def require_finite(state: TrainState, what: str, checkpoints: Checkpoints) -> None:
  """Stop when `state` holds a NaN or an Inf. All processes call this."""
  bad = nonfinite_leaves(state)
  if not bad:
    return
  named = ', '.join(bad[:8]) + (f' and {len(bad) - 8} more' if len(bad) > 8 else '')
  good = [str(step) for step in checkpoints.steps()]
  stand = f'the checkpoints of steps {", ".join(good)} stand' if good else 'there is no checkpoint'
  raise Stop(
    NUMBERS,
    f'{what}: NaN or Inf in {len(bad)} array(s): {named}; {stand}.\n'
    'No step with such a loss or gradient was let in: a device is at fault (the same command on other hosts '
    'goes on), or optim.eps=0, or optim.learning_rate is beyond what compute.param_dtype holds',
  )
