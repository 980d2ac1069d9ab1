"""What became of each run of a sweep, read from the disk alone.

DIR/ledger.jsonl, one event a line (observe/ledger.py: each has `time`, `event`):

  sweep_started  launcher, slots, by
  trial          run, number, point               a study has chosen what the run is
  started        run, attempt, slot, by           by: the sweep's process (checkpoint/holder.py)
  ended          run, attempt, code, seconds, state: finished, failed or stopped
  pruned         run, step, reason, elsewhere     written before the run is stopped; elsewhere: its job is to be
  given_back     run                              ... ended by us, which is done now
  retried        run                              asked for: what was failed or pruned counts no longer
  sweep_ended    how many runs are in which state

A run is finished when its own DIR/runs/NAME/ledger.jsonl says so, whoever started it.
"""

import contextlib
import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from llamax.checkpoint.holder import Process, here
from llamax.core import exits
from llamax.observe.ledger import LEDGER_FILE, Ledger, read_ledger
from llamax.sweep.locks import alone
from llamax.sweep.plan import Plan, run_folder, tupled

# In the order in which a table counts them.
FINISHED, RUNNING, STOPPED, WAITING, PRUNED, FAILED = (
  'finished',
  'running',
  'stopped',
  'waiting',
  'pruned',
  'failed',
)
STATES = (FINISHED, RUNNING, STOPPED, WAITING, PRUNED, FAILED)


@dataclasses.dataclass(frozen=True)
class RunState:
  """state: one of STATES (stopped: begun, to go on; waiting: not begun). attempts: starts so far, this
  sweep's or an earlier one's. code: exit code of the last one that ended. reason: why it is pruned. pruned_at:
  at which step it last was, even if it has been brought back since.
  """

  name: str
  state: str = WAITING
  attempts: int = 0
  code: int | None = None
  reason: str = ''
  pruned_at: int | None = None


def run_states(folder: str | os.PathLike[str], names: Sequence[str]) -> dict[str, RunState]:
  """The state of each named run of the sweep in `folder`."""
  return {
    name: dataclasses.replace(state, state=FINISHED)
    if state.state != FINISHED and is_finished(folder, name)
    else state
    for name, state in ledger_states(folder, names).items()
  }


def ledger_states(folder: str | os.PathLike[str], names: Sequence[str]) -> dict[str, RunState]:
  """`run_states` without a look at the runs' own folders."""
  states = {name: RunState(name) for name in names}
  for line in read_ledger(folder):
    name = line.get('run')
    if name not in states:
      continue
    old = states[name]
    match line['event']:
      case 'started':
        states[name] = dataclasses.replace(
          old, state=RUNNING if _runs(line.get('by')) else STOPPED, attempts=line['attempt']
        )
      case 'ended':
        # The end of a pruned run does not make it another one.
        state = PRUNED if old.reason else line['state']
        states[name] = dataclasses.replace(old, state=state, code=line['code'])
      case 'pruned':
        states[name] = dataclasses.replace(old, state=PRUNED, reason=line['reason'], pruned_at=line['step'])
      case 'retried':
        states[name] = dataclasses.replace(old, state=STOPPED if old.attempts else WAITING, reason='')
  return states


def to_be_ended(folder: str | os.PathLike[str], names: Collection[str]) -> list[str]:
  """Runs that were given up, whose jobs elsewhere nobody has ended for certain."""
  left: dict[str, None] = {}
  for line in read_ledger(folder):
    match line['event']:
      case 'pruned' if line.get('elsewhere') and line['run'] in names:
        left[line['run']] = None
      case 'given_back' | 'retried':
        left.pop(line['run'], None)
  return list(left)


def names_of(folder: str | os.PathLike[str], plan: Plan) -> list[str]:
  """The runs of a sweep: those of its plan, or those that its study has chosen so far."""
  if plan.study is None:
    return [run.name for run in plan.runs]
  return list(trials(folder))


def trials(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
  """{run: its point} of a study, in the order in which they were chosen."""
  found = [line for line in read_ledger(folder) if line['event'] == 'trial']
  return {line['run']: tupled(line['point']) for line in found}


def is_finished(folder: str | os.PathLike[str], name: str) -> bool:
  """Whether the run itself says that all its steps are done."""
  return any(line['event'] == 'end' and line.get('finished') for line in read_ledger(run_folder(folder, name)))


class SweepLedger:
  """DIR/ledger.jsonl, for several processes at once."""

  def __init__(self, folder: str | os.PathLike[str]):
    self._folder = Path(folder)
    self._by = dataclasses.asdict(here())

  def record(self, event: str, **facts: Any) -> None:
    """Adds a line, on the disk when this returns; Stop where it cannot be written."""
    with alone(self._folder, 'ledger'):
      # Opened anew: a line that another process left torn is mended under the lock, never beside its writer.
      ledger = Ledger(self._folder)
      try:
        if not ledger.record(event, **facts):
          raise exits.Stop(
            exits.STORAGE,
            f'{self._folder / LEDGER_FILE} cannot be written: is the disk full? The same command goes on',
          )
      finally:
        ledger.close()

  def started(self, name: str, attempt: int, slot: int) -> None:
    self.record('started', run=name, attempt=attempt, slot=slot, by=self._by)

  def ended(self, name: str, attempt: int, code: int, seconds: float | None, state: str) -> None:
    self.record(
      'ended', run=name, attempt=attempt, code=code, seconds=seconds and round(seconds, 3), state=state
    )

  def pruned(self, name: str, step: int, reason: str, *, elsewhere: bool = False) -> None:
    self.record('pruned', run=name, step=step, reason=reason, **({'elsewhere': True} if elsewhere else {}))

  def given_back(self, name: str) -> None:
    self.record('given_back', run=name)

  def sweep_started(self, launcher: str, slots: int) -> None:
    self.record('sweep_started', launcher=launcher, slots=slots, by=self._by)


def _runs(by: Any) -> bool:
  """Whether the process that started a run is still there; of another machine it is believed."""
  with contextlib.suppress(TypeError):
    process = Process(**by)
    return not process.same_machine(here()) or process.alive() is not False
  return False
