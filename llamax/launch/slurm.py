"""A SLURM cluster, one task a node, requeued until the run is done."""

import argparse
from collections.abc import Sequence

from llamax.launch import slurm_commands as commands
from llamax.launch import slurm_life as life
from llamax.launch.action import Action
from llamax.launch.execute import execute
from llamax.launch.job import Job

VERBS = ('run', 'submit', 'status', 'logs', 'ssh', 'stop', 'delete', 'doctor')
# The disk is shared. What travels is a copy of the checkout on it, where there is one (commands.submit).
TAKES_CODE = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
  asked = parser.add_argument_group('what SLURM is asked for')
  asked.add_argument('--nodes', type=int, metavar='N', help='with one task on each')
  asked.add_argument('--gpus_per_node', type=int, metavar='G')
  asked.add_argument('--cpus_per_task', type=int, metavar='C', help='default: whole nodes (--exclusive)')
  asked.add_argument('--mem', metavar='SIZE', help='per node; 0: all of it')
  for name in ('partition', 'account', 'qos', 'constraint', 'time'):
    asked.add_argument(f'--{name}', help=f'as --{name} of sbatch')
  asked.add_argument(
    '--sbatch', action='append', default=[], metavar='OPTION', help='any other, as in --sbatch=--gres=gpu:8'
  )
  asked.add_argument(
    '--warning', type=int, default=120, metavar='S', help='seconds before the end of --time: train saves (120)'
  )
  code = parser.add_argument_group('what runs', 'by default a copy of the checkout, else the llamax installed')
  code.add_argument(
    '--setup', action='append', default=[], metavar='LINE',
    help='of a shell, before the command: module load ..., source venv/bin/activate; may be given again',
  )  # fmt: skip
  code.add_argument('--installed', action='store_true', help='what is installed, no copy of the checkout')
  code.add_argument('--wheel', metavar='FILE', help='this wheel')
  code.add_argument('--dirty', action='store_true', help='the checkout with changes that are not committed')
  parser.add_argument('--max_failures', type=int, default=5, metavar='N', help='as of llamax supervise (5)')
  parser.add_argument('--workdir', metavar='DIR', help='for the other verbs, without the command')
  parser.add_argument('--node', metavar='NAME', help='ssh: which one; default: the first')
  parser.add_argument(
    '--grace', type=float, default=120.0, metavar='S', help='stop: to save before it is ended (120)'
  )


def plan(verb: str, args: argparse.Namespace, job: Job) -> Sequence[Action]:
  if verb == 'run':
    return [*commands.submit(args, job), commands.tail(args, job)]
  if verb in ('submit', 'stop', 'delete'):
    return getattr(commands, verb)(args, job)
  if verb == 'status':
    return [commands.status(job), commands.history(job)]
  if verb == 'logs':
    return [commands.tail(args, job)]
  return [commands.shell(args, job) if verb == 'ssh' else commands.doctor(args, job)]


def act(verb: str, args: argparse.Namespace, job: Job) -> int:
  """As `plan`, with SLURM's answers between its steps."""
  acts = {
    'run': life.run,
    'submit': life.submit,
    'status': life.status,
    'logs': life.logs,
    'ssh': life.ssh,
    'stop': life.stop,
    'doctor': life.doctor,
  }
  if verb in acts:
    return acts[verb](args, job)
  execute(plan(verb, args, job))
  return 0
