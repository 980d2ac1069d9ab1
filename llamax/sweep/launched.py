"""Runs of a sweep as jobs elsewhere: each is followed by a `llamax launch TARGET run` of its own.

Such a command finds its job again when it is started again, so all that holds for a run on this machine holds
for these: one process of the sweep per run, whose exit code tells what became of it. Jobs outlive the sweep.
"""

import dataclasses
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from llamax.core.errors import UserError
from llamax.sweep.plan import Plan, PlannedRun, run_folder, train_arguments

# Where `llamax launch` can put a run: its name there -> what it is for.
TARGETS = {
  'slurm': 'each run a job of a SLURM cluster',
  'tpu-vm': 'each run on Cloud TPU VMs of its own',
  'gke': 'each run a JobSet on GKE',
  'ssh': 'all runs, one after the other, on one list of hosts',
}
_LONGEST = 40  # of a job's name (launch/job.py)


@dataclasses.dataclass(frozen=True)
class Elsewhere:
  """A target of `llamax launch`.

  options: further words for it. remote: what stands for DIR/runs on the job's machines, where that is another
  path; None: they share this one.
  """

  target: str
  options: Sequence[str]
  remote: str | None

  def words(self, folder: str | os.PathLike[str], plan: Plan, run: PlannedRun, verb: str) -> list[str]:
    """`launch TARGET VERB ... -- llamax train ...` of one run."""
    workdir = f'{self.remote.rstrip("/")}/{run.name}' if self.remote else str(run_folder(folder, run.name))
    words = ['launch', self.target, verb, f'--name={job_name(folder, run.name)}', *self.options]
    if verb not in ('run', 'submit'):
      # The hosts of ssh know a job by its name alone.
      return words if self.target == 'ssh' else [*words, f'--workdir={workdir}']
    return [*words, '--', 'llamax', 'train', *train_arguments(plan, run.point, workdir)]

  def command(self, folder: str | os.PathLike[str], plan: Plan, run: PlannedRun, verb: str) -> list[str]:
    """`words`, to be started here."""
    return our_llamax(self.words(folder, plan, run, verb))

  def ends(self, folder: str | os.PathLike[str], plan: Plan, name: str) -> list[list[str]]:
    """What ends a run's job, then what gives back its machines, which one that is stopped keeps (ending.py)."""
    verbs = ['stop', 'delete'] if self.target == 'tpu-vm' and '--keep' not in self.options else ['stop']
    return [self.command(folder, plan, PlannedRun(name, {}), verb) for verb in verbs]


def elsewhere(target: str, options: str, remote: str | None) -> Elsewhere:
  """UserError for options that no shell could read."""
  if remote == '':
    raise UserError('--remote= is empty; want what DIR/runs is on the machines')
  try:
    return Elsewhere(target, shlex.split(options), remote)
  except ValueError as error:
    raise UserError(f'--launch_options={options!r}: {error}') from None


def job_name(folder: str | os.PathLike[str], run: str) -> str:
  """As job.py wants it, another one for each run of each sweep: 'quickstart-sweep-learning-1a2b3c4d'.

  The same by whatever path the folder is given: the name is how a sweep finds its jobs again.
  """
  whole = Path(folder).resolve()
  digest = hashlib.sha256(f'{whole}/{run}'.encode()).hexdigest()[:8]
  slug = re.sub(r'[^a-z0-9]+', '-', f'{whole.name}-{run}'.lower()).lstrip('0123456789-')
  return f'{slug[: _LONGEST - 9].strip("-") or "run"}-{digest}'


def our_llamax(words: Sequence[str]) -> list[str]:
  """A command of this very llamax, whatever is on the PATH."""
  return [sys.executable, '-m', 'llamax.cli.main', *words]
