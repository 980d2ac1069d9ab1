"""The runs of a plan as they are handed out: those that were begun first, each to one process at a time."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from llamax.core import exits
from llamax.sweep.locks import Lock, claim
from llamax.sweep.plan import PlannedRun
from llamax.sweep.state import FAILED, FINISHED, PRUNED, SweepLedger, is_finished, ledger_states
from llamax.sweep.watch import Watched


class Planned:
  """All runs are known from the start."""

  def __init__(self, folder: str | os.PathLike[str], runs: Sequence[PlannedRun], ledger: SweepLedger):
    self._folder, self._ledger = Path(folder), ledger
    self._runs = {run.name: run for run in runs}

  def __len__(self) -> int:
    return len(self._runs)

  def names(self) -> list[str]:
    return list(self._runs)

  def next(self, skip: Collection[str]) -> tuple[PlannedRun, Lock] | None:
    """A run to start now, with the claim on it; None: there is none that is not done, claimed or in `skip`."""
    states = ledger_states(self._folder, [name for name in self._runs if name not in skip])
    left = [s for s in states.values() if s.state not in (FINISHED, PRUNED, FAILED)]
    for state in sorted(left, key=lambda s: not s.attempts):
      lock = claim(self._folder, state.name)
      if lock is None:
        continue
      # Another process may have had it until a moment ago.
      state = ledger_states(self._folder, [state.name])[state.name]
      if state.state not in (FINISHED, PRUNED, FAILED):
        if not is_finished(self._folder, state.name):
          return self._runs[state.name], lock
        # Whoever started it died before it could take note.
        self._ledger.ended(state.name, state.attempts, exits.DONE, None, FINISHED)
      lock.release()
    return None

  def ended(self, name: str, state: str, watched: Watched) -> None:
    """A plan does not change by what its runs give."""

  def why_prune(self, watched: Watched) -> str | None:
    """Nothing beside the sweep's policy."""
    return None
