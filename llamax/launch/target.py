"""What each target of `llamax launch` is made of: the protocol between the command line and its modules."""

import argparse
from collections.abc import Sequence
from typing import Protocol

from llamax.launch.action import Action
from llamax.launch.job import Job

# Name on the command line -> (module, what it is for). A module is imported only when its target is used.
TARGETS = {
  'local': ('llamax.launch.local', 'several processes on this machine'),
  'ssh': ('llamax.launch.ssh', 'a list of hosts'),
  'slurm': ('llamax.launch.slurm', 'a SLURM cluster, one task a node'),
  'tpu-vm': ('llamax.launch.tpu_vm', 'Cloud TPU VMs up to v6e, spot or reserved, one slice or several'),
  'gke': ('llamax.launch.gke', 'a GKE cluster with JobSet, Kueue'),
}

VERBS = {
  'run': 'create if need be, submit, follow, keep alive until done (the default)',
  'create': 'the machines with the code on them, without a job',
  'submit': 'start the job, return at once',
  'status': 'what it is doing',
  'logs': 'the output of all workers, as one stream',
  'ssh': 'a shell on a worker',
  'stop': 'end the job; the same run goes on later',
  'delete': 'give back all that create made',
  'doctor': 'look for what would go wrong',
}
# These start something, so they need the command after --.
WITH_COMMAND = ('run', 'submit')
# These install something: job.code is set, for a target with TAKES_CODE.
WITH_CODE = ('run', 'create', 'submit', 'doctor')


class Target(Protocol):
  """A module in TARGETS has these; `act`, NAMELESS may be missing.

  The command line itself has --name, --env, --secret, --dry_run for all, --wheel, --dirty for those with
  TAKES_CODE.
  """

  # Those of target.VERBS that it has, 'run' among them.
  VERBS: Sequence[str]
  # Whether it carries the code.
  TAKES_CODE: bool
  # Verbs that need no --name; may be missing.
  NAMELESS: Sequence[str]

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    """Its own options. Pure, quick: imports neither jax nor a cloud's library."""

  def plan(self, verb: str, args: argparse.Namespace, job: Job) -> Sequence[Action]:
    """What the verb does, in order. Pure: asks no tool, no network; for `run` the story of an undisturbed life.

    Raises UserError for options that do not fit each other.
    """

  def act(self, verb: str, args: argparse.Namespace, job: Job) -> int:
    """Does it, where it is more than `execute(plan(...))`: loops, waits, answers that decide; its exit code."""
