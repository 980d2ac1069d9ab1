"""Cloud TPU virtual machines up to v6e: spot, reserved or on demand, one slice or several, through gcloud."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llamax.core.errors import UserError
from llamax.launch import tpu_scripts as scripts
from llamax.launch.action import Action, Together
from llamax.launch.execute import execute
from llamax.launch.install import Place as Installed
from llamax.launch.job import Job, at_least
from llamax.launch.options import environment
from llamax.launch.tpu_commands import Place
from llamax.launch.tpus import parse

VERBS = ('run', 'create', 'submit', 'status', 'logs', 'ssh', 'stop', 'delete', 'doctor')
TAKES_CODE = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--tpu', metavar='SLICE', help='v5e:4x4 or v5litepod-16, v5p:4x4x4 or v5p-128, v6e-256, ...')
  add('--slices', type=int, default=1, metavar='N', help='of them, joined by the data centre network (1)')
  add('--zone', default='', help="default: gcloud's own")
  add('--project', default='', help="default: gcloud's own")
  tiers = parser.add_mutually_exclusive_group()
  tiers.add_argument('--spot', action='store_true', help='cheaper; may be taken back at any time')
  tiers.add_argument('--reserved', action='store_true', help='from a reservation of the project')
  add('--no_queue', action='store_true', help='at once or not at all, instead of through a queued resource')
  add('--runtime_version', metavar='IMAGE', help="of the machines; default: that of the chips' generation")
  add('--python', default='3.12', metavar='LINE', help='3.11, 3.12 or 3.13, on the machines (3.12)')
  add('--network', metavar='NAME')
  add('--subnetwork', metavar='NAME')
  add('--service_account', metavar='EMAIL', help='that the machines act as')
  add('--internal_ip', action='store_true', help='machines without an address in the internet')
  add(
    '--mount', action='append', default=[], metavar='gs://BUCKET[/FOLDER]:/PATH',
    help='a bucket as a folder, by gcsfuse; may be given again',
  )  # fmt: skip
  add('--workdir', metavar='DIR', help='for doctor without the command')
  add('--slice_number', type=int, default=0, metavar='K', help='ssh: of which slice (0)')
  add('--worker', type=int, default=0, metavar='K', help='ssh: which worker of it (0)')
  add('--lines', type=int, default=100, metavar='N', help='logs: the last N, then what comes (100)')
  add('--grace', type=int, default=120, metavar='SECONDS', help='stop: to save, before it is killed (120)')
  add('--max_failures', type=int, default=5, metavar='N', help='as of llamax supervise (5)')
  add('--keep', action='store_true', help='run: keep the machines, which cost money, when the job has ended')
  add('--state', type=Path, metavar='DIR', help='of run: its ledger; default: ~/.llamax/launch/NAME')
  add('--poll', type=float, default=30.0, metavar='SECONDS', help='run: between two looks (30)')
  add('--price_per_chip_hour', type=float, metavar='PRICE', help='for the bill')


def place(args: argparse.Namespace, job: Job) -> Place:
  """UserError for options that do not fit each other."""
  if not args.tpu:
    raise UserError('which TPUs? Give --tpu=SLICE, such as v5e:4x4 (or v5litepod-16), v5p:4x4x4, v6e:16x16')
  slice_ = parse(args.tpu)
  accelerator = slice_.accelerator  # UserError where there is none.
  if args.slices < 1:
    raise UserError(f'--slices={args.slices}: want 1 or more')
  if args.no_queue and args.slices > 1:
    raise UserError('--no_queue: several slices come from the queue alone; leave it out, or --slices')
  if args.python not in ('3.11', '3.12', '3.13'):
    raise UserError(f'--python={args.python}: llamax is tested with 3.11, 3.12, 3.13')
  if args.slices > 1 and slice_.hosts == 1:
    raise UserError(
      f'--slices={args.slices} of {accelerator}: a slice that joins others has several machines; '
      f'this one has {slice_.chips} chips on one'
    )
  if not 0 < args.poll <= _LONGEST_POLL:
    raise UserError(f'--poll={args.poll:g}: want seconds, more than 0, at most {_LONGEST_POLL:.0f}')
  at_least(args, grace=0, max_failures=1, lines=0)
  flags = [f'--{name.replace("_", "-")}={getattr(args, name)}' for name in _NETWORK if getattr(args, name)]
  return Place(
    name=job.name,
    slice=slice_,
    slices=args.slices,
    zone=args.zone,
    project=args.project,
    tier='spot' if args.spot else 'reserved' if args.reserved else '',
    queued=not args.no_queue,
    runtime=args.runtime_version or slice_.table.runtime,
    flags=(*flags, *['--internal-ips'] * args.internal_ip),
    internal_ip=args.internal_ip,
  )


_LONGEST_POLL = 1200.0  # After half an hour without a line in the ledger the bill is in doubt (launch/bill.py).
_NETWORK = ('network', 'subnetwork', 'service_account')


def plan(verb: str, args: argparse.Namespace, job: Job) -> Sequence[Action]:
  at = place(args, job)
  asked = [at.create(), *[at.describe_request()] * at.queued, at.list_nodes()]
  if verb == 'create':
    return [*asked, *prepare(at, args, job), examine(at, args, job)]
  if verb == 'submit':
    return [*prepare(at, args, job), examine(at, args, job), *begin(at, args, job)]
  if verb == 'status':
    return [*[at.describe_request()] * at.queued, at.list_nodes(), ask(at, job)]
  if verb == 'logs':
    return [follow(at, job, args.lines)]
  if verb == 'ssh':
    if not (0 <= args.slice_number < at.slices and 0 <= args.worker < at.slice.hosts):
      raise UserError(
        f'--slice_number={args.slice_number} --worker={args.worker}: there are {at.slices} slices of '
        f'{at.slice.hosts} workers, counted from 0'
      )
    return [at.shell(args.slice_number, args.worker)]
  if verb == 'stop':
    return [at.tell(scripts.stop(job, args.grace), 'asks the job to save, to end')]
  if verb == 'delete':
    return [at.delete()]
  if verb == 'doctor':
    return [examine(at, args, job)]
  end = [] if args.keep else [at.delete()]
  return [*asked, *plan('submit', args, job), ask(at, job), follow(at, job, None), *end]


def placed(args: argparse.Namespace, job: Job) -> Installed:
  """Where the code lies on the workers."""
  assert job.code is not None
  return Installed(job.code, python=f'python{args.python}', extra='tpu')


def prepare(at: Place, args: argparse.Namespace, job: Job) -> list[Action]:
  """The code onto all workers, the buckets: the doctor that comes next looks at the workdir."""
  code = placed(args, job).code
  script = scripts.install(placed(args, job), args.python)
  return [
    code.action(),
    at.send((str(code.bundle), str(code.digest))),
    at.tell(script, 'each checks its digest, installs it once'),
    *mounts(at, args),
  ]


def mounts(at: Place, args: argparse.Namespace) -> list[Together]:
  """Each of --mount, where it is not yet."""
  return [at.tell(scripts.mount(spec), f'mounts {spec}') for spec in args.mount]


def begin(at: Place, args: argparse.Namespace, job: Job) -> list[Action]:
  """Starts the job where it does not run; what a machine has lost that was started anew is mounted again."""
  if job.command[0] != 'llamax':
    raise UserError(
      f'{job.command[0]!r}: a command for other machines begins with llamax, which is installed there'
    )
  if job.workdir is None or not job.workdir.startswith('/'):
    raise UserError(
      f'--workdir={job.workdir}: want the whole path of a folder that all workers share, such as one of '
      '--mount=gs://BUCKET:/mnt/runs'
    )
  env = environment(at.slice.generation, at.slices, job.env)
  command = ('llamax', 'supervise', f'--max_failures={args.max_failures}', '--', *job.command)
  parts = scripts.start(Job(job.name, job.command, env, job.secrets), placed(args, job), command)
  return [*mounts(at, args), at.tell_parts(parts, 'starts the job, unless it runs')]


def ask(at: Place, job: Job) -> Together:
  return at.tell(scripts.status(job), 'what the job does on each worker')


def follow(at: Place, job: Job, lines: int | None) -> Together:
  return at.tell(scripts.logs(job, lines), 'the output of all workers')


def examine(at: Place, args: argparse.Namespace, job: Job) -> Together:
  script = scripts.doctor(placed(args, job), job.workdir or args.workdir)
  return at.tell(script, 'llamax doctor on all workers, which must be alike')


def act(verb: str, args: argparse.Namespace, job: Job) -> int:
  if verb in ('run', 'create', 'submit', 'status', 'delete', 'doctor'):
    from llamax.launch import tpu_life

    return getattr(tpu_life, verb)(place(args, job), args, job)
  execute(plan(verb, args, job))
  return 0
