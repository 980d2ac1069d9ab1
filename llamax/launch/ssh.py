"""A list of hosts, over plain ssh: one process on each, kept alive until the run is done."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llamax.launch.action import Action
from llamax.launch.hosts import Hosts
from llamax.launch.job import Job

VERBS = ('run', 'create', 'submit', 'status', 'logs', 'ssh', 'stop', 'delete', 'doctor')
TAKES_CODE = True
NAMELESS = ('create', 'doctor', 'ssh')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  hosts = parser.add_mutually_exclusive_group(required=True)
  hosts.add_argument(
    '--hosts', metavar='A,B', help='process 0 runs on the first; user@host, or a name of ssh_config'
  )
  hosts.add_argument('--hosts_file', type=Path, metavar='FILE', help='one host a line, # begins a comment')
  parser.add_argument(
    '--coordinator',
    metavar='HOST[:PORT]',
    help='address of the first host as the others see it; default: its name:8476',
  )
  parser.add_argument('--ssh_config', type=Path, metavar='FILE', help="instead of ssh's own (ssh -F)")
  parser.add_argument(
    '--ssh_option', action='append', default=[], metavar='KEY=VALUE', help='ssh -o; may be given again'
  )
  parser.add_argument('--root', default='.llamax', help='folder on the hosts for code, jobs (~/.llamax)')
  parser.add_argument('--python', default='python3', help='on the hosts, 3.11 to 3.13 (python3)')
  parser.add_argument('--extra', default='', help='of llamax to install there: tpu or cuda')
  parser.add_argument(
    '--installed', action='store_true', help='take the packages that --python has, install none'
  )
  parser.add_argument('--host', metavar='HOST', help='ssh: which one (the first)')
  parser.add_argument(
    '--patience', type=float, default=1800.0, metavar='S', help='for a host that does not answer (1800)'
  )
  parser.add_argument('--max_restarts', type=int, default=20, metavar='N', help='of lost workers, in all (20)')


def plan(verb: str, args: argparse.Namespace, job: Job) -> Sequence[Action]:
  hosts = Hosts(args, job)
  if verb == 'run':
    return [*hosts.create(), hosts.environments(), hosts.submit(), hosts.logs()]
  if verb == 'create':
    return [*hosts.create(), hosts.environments()]
  if verb == 'ssh':
    return [hosts.shell()]
  return [{'submit': hosts.submit, 'status': hosts.status, 'logs': hosts.logs, 'stop': hosts.stop,
           'delete': hosts.delete, 'doctor': hosts.doctor}[verb]()]  # fmt: skip


def act(verb: str, args: argparse.Namespace, job: Job) -> int:
  from llamax.launch import host_life

  hosts = Hosts(args, job)
  return {
    'run': host_life.run,
    'create': host_life.create,
    'submit': host_life.submit,
    'status': host_life.status,
    'logs': host_life.logs,
    'stop': host_life.stop,
    'delete': host_life.delete,
    'doctor': host_life.doctor,
    'ssh': host_life.shell,
  }[verb](hosts)
