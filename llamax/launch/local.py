"""Several processes on this machine, as they would run on as many hosts."""

import argparse
import dataclasses
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from llamax.core.errors import UserError
from llamax.launch import worker
from llamax.launch.action import Action, Run, Secret, Together, value
from llamax.launch.execute import attempt
from llamax.launch.gang import Gang, Member
from llamax.launch.job import Job
from llamax.train.supervise import once, supervise

VERBS = ('run', 'submit', 'status', 'logs', 'stop', 'doctor')
TAKES_CODE = False
NAMELESS = ('doctor',)

_FOLDER = 'launch'  # in the workdir: of a run that goes on by itself


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--processes', type=int, metavar='N', help='of the run')
  parser.add_argument(
    '--devices_per_process', type=int, metavar='D', help='virtual devices of the CPU; default: the real ones'
  )
  parser.add_argument('--port', type=int, default=0, metavar='P', help='of process 0; default: a free one')
  parser.add_argument('--detach', action='store_true', help='run goes on without this shell: submit')
  parser.add_argument('--workdir', metavar='DIR', help='for status, logs, stop without the command')
  parser.add_argument('--max_failures', type=int, default=5, metavar='N', help='as of llamax supervise (5)')
  parser.add_argument('--max_restarts', type=int, metavar='N', help='as of llamax supervise (any number)')


def plan(verb: str, args: argparse.Namespace, job: Job) -> Sequence[Action]:
  verb = _verb(verb, args)
  if verb == 'run':
    port = args.port or free_port()
    runs = [
      Run(words, f'process {rank}', env=env, label=str(rank))
      for rank, (words, env) in enumerate(_processes(args, job, port))
    ]
    return [Together(tuple(runs), f'{len(runs)} processes on this machine; started again when one is lost')]
  if verb == 'doctor':
    where = [f'--workdir={args.workdir or job.workdir}'] if args.workdir or job.workdir else []
    return [Run(('llamax', 'doctor', *where), 'what would go wrong on this machine')]
  folder = str(_folder(args, job))
  keeper = (sys.executable, '-m', 'llamax.launch.worker')
  if verb == 'submit':
    return [
      Run((*keeper, 'start', folder, '--', *_again(args, job)), 'starts the run, which then needs no shell')
    ]
  why = {'status': 'is it running', 'logs': 'its output, as it comes', 'stop': 'stops it; it saves first'}[verb]
  return [Run((*keeper, verb, folder), why)]


def act(verb: str, args: argparse.Namespace, job: Job) -> int:
  verb = _verb(verb, args)
  if verb == 'run':
    return _run(args, job)
  if verb == 'doctor':
    (run,) = plan(verb, args, job)
    assert isinstance(run, Run)
    return attempt((dataclasses.replace(run, argv=_ours(run.argv)),))[0].code
  folder = _folder(args, job)
  if verb == 'submit':
    worker.start(folder, [*_ours(('llamax',)), *_again(args, job)[1:]])
    print(f'{folder}: {worker.in_words(worker.status(folder))}; its output: {folder / worker.LOG}')
  elif verb == 'status':
    print(f'{folder}: {worker.in_words(worker.status(folder))}')
  elif verb == 'logs':
    worker.show(worker.follow(folder))
  else:
    ended = worker.stop(folder, seconds=120.0)
    print(f'{folder}: {worker.in_words(worker.status(folder))}')
    return 0 if ended else 1
  return 0


def _verb(verb: str, args: argparse.Namespace) -> str:
  if verb in ('run', 'submit'):
    for name in ('processes', 'devices_per_process'):
      count = getattr(args, name)
      if (count is None and name == 'processes') or (count is not None and count < 1):
        raise UserError(f'--{name}: want a number from 1 on, as in launch local --processes 4; got {count}')
    for name, least in (('max_failures', 1), ('max_restarts', 0)):
      count = getattr(args, name)
      if count is not None and count < least:
        raise UserError(f'--{name}={count}: want at least {least}')
  return 'submit' if verb == 'run' and args.detach else verb


def _run(args: argparse.Namespace, job: Job) -> int:
  for name in job.secrets:
    value(Secret(name))  # The processes inherit it.

  def start(command: Sequence[str]) -> Gang:
    # A port of its own for each attempt: the one before may linger.
    processes = _processes(args, job, args.port or free_port())
    return Gang(
      [Member(str(rank), _ours(words), {**os.environ, **env}) for rank, (words, env) in enumerate(processes)]
    )

  if args.max_restarts == 0:
    return once(job.command, start)
  return supervise(job.command, max_failures=args.max_failures, max_restarts=args.max_restarts, begin=start)


def _processes(args: argparse.Namespace, job: Job, port: int) -> list[tuple[tuple[str, ...], dict[str, str]]]:
  """(words, what is added to the environment) of each process."""
  env = {'PYTHONUNBUFFERED': '1', **job.env}
  if args.devices_per_process:
    env['JAX_PLATFORMS'] = 'cpu'
    flags = env.get('XLA_FLAGS', os.environ.get('XLA_FLAGS', ''))
    # Alone too, so that any number of processes sums in the same order (parallel/hosts.py).
    env['JAX_CPU_COLLECTIVES_IMPLEMENTATION'] = 'gloo'
    env['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={args.devices_per_process}'.strip()
  place = (f'--coordinator=127.0.0.1:{port}', f'--num_processes={args.processes}')
  return [((*job.command, *place, f'--process_id={rank}'), env) for rank in range(args.processes)]


def _ours(words: Sequence[str]) -> tuple[str, ...]:
  """`llamax` is the one that runs now, whatever the PATH says."""
  llamax = (sys.executable, '-m', 'llamax.cli.main') if words[0] == 'llamax' else (words[0],)
  return (*llamax, *words[1:])


def _again(args: argparse.Namespace, job: Job) -> tuple[str, ...]:
  """This launch without --detach."""
  words = ['llamax', 'launch', 'local', 'run', f'--processes={args.processes}', f'--name={job.name}']
  for name in ('devices_per_process', 'port', 'max_failures', 'max_restarts'):
    if getattr(args, name) is not None:
      words.append(f'--{name}={getattr(args, name)}')
  words += [f'--env={name}={text}' for name, text in job.env.items()]
  words += [f'--secret={name}' for name in job.secrets]
  return (*words, '--', *job.command)


def _folder(args: argparse.Namespace, job: Job) -> Path:
  workdir = job.workdir or args.workdir
  if not workdir or '://' in workdir:
    raise UserError(f'which run? Give --workdir=DIR, a folder, or the command with its own; got {workdir!r}')
  return Path(workdir, _FOLDER)


def free_port() -> int:
  """One of the loopback address that nothing listens on now."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]
