"""What a sweep has come to."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from llamax.core import exits
from llamax.observe.report import table
from llamax.sweep.plan import Plan, run_folder
from llamax.sweep.record import read_record
from llamax.sweep.state import FAILED, RUNNING, STATES, STOPPED, WAITING, RunState


def result_table(folder: str | os.PathLike[str], plan: Plan, states: Mapping[str, RunState]) -> str:
  """The runs by what they have reached, the best first: as the report, `llamax compare` have it."""
  maximize = plan.direction == 'maximize'
  sign = -1 if maximize else 1
  rows = []
  for name, state in states.items():
    record = read_record(name, run_folder(folder, name), [plan.objective], known=state)
    value = record.value(plan.objective, maximize)
    rows.append((name, state.state, record.step, value and value.value, state.reason))
  rows.sort(key=lambda row: (row[3] is None, sign * (row[3] or 0.0)))
  shown = [(*row[:3], None if row[3] is None else f'{row[3]:.4f}', row[4]) for row in rows]
  best = 'best ' if plan.objective.startswith('eval/') else ''
  headers = ('run', 'state', 'step', best + plan.objective, 'why' if any(row[4] for row in rows) else '')
  return table(shown, headers)


def summary(states: Mapping[str, RunState]) -> str:
  """'5 runs: 3 finished, 1 pruned, 1 failed'."""
  counted = Counter(state.state for state in states.values())
  return f'{len(states)} runs: ' + ', '.join(f'{counted[state]} {state}' for state in STATES if counted[state])


def exit_code(states: Sequence[RunState], total: int) -> int:
  """DONE: each run is finished or pruned. BUG (1): one failed. RESUME: nothing failed, something is left.

  total: how many runs there are to be; a study has chosen some of them.
  """
  found = {state.state for state in states}
  if FAILED in found:
    return exits.BUG
  left = found & {STOPPED, WAITING, RUNNING} or len(states) < total
  return exits.RESUME if left else exits.DONE
