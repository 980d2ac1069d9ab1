"""The commands of SLURM that `llamax launch slurm` is made of, as values."""

import argparse
import getpass
import shlex
from pathlib import Path

import llamax
from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.launch import code, slurm_script
from llamax.launch.action import Action, Run, Write
from llamax.launch.job import Job
from llamax.launch.slurm_script import FOLDER, SCRIPT, STOP, Asked


def asked(args: argparse.Namespace) -> Asked:
  for name in ('nodes', 'gpus_per_node', 'cpus_per_task', 'warning', 'max_failures'):
    count = getattr(args, name)
    if (count is None and name == 'nodes') or (count is not None and count < 1):
      raise UserError(f'--{name}: want a number from 1 on, as in launch slurm --nodes=4; got {count}')
  words = {name: getattr(args, name) for name in ('mem', 'partition', 'account', 'qos', 'constraint', 'time')}
  return Asked(
    args.nodes, args.gpus_per_node, args.cpus_per_task, **words, warning=args.warning, more=tuple(args.sbatch)
  )


def submit(args: argparse.Namespace, job: Job) -> list[Action]:
  folder, frozen = folder_of(args, job), _code(args)
  job = Job(job.name, job.command, job.env, job.secrets, frozen)
  text = slurm_script.script(job, asked(args), folder, Path.cwd(), _setup(args), args.max_failures)
  path, stop_file = folder / SCRIPT, folder / STOP
  found: list[Action] = [Write(path, text, 'the script; SLURM keeps a copy of its own', mode=0o755)]
  if frozen is not None:
    copy = ('cp', '--', str(frozen.bundle), str(frozen.digest), str(folder))
    found += [frozen.action(), Run(copy, 'the code, for the nodes to unpack')]
  found.append(Run(('rm', '-f', '--', str(stop_file)), 'what an earlier stop has left'))
  # On the command line: SBATCH_EXPORT of the environment would win over the script's own line.
  why = 'puts it into the queue'
  if job.secrets:
    why += f'; {", ".join(job.secrets)} of this shell goes with it, in what SLURM keeps of its environment'
  return [*found, Run(('sbatch', '--parsable', '--export=ALL', str(path)), why)]


def _code(args: argparse.Namespace) -> code.Code | None:
  """A copy of the checkout, which would change under a job that waits; none of an installed llamax."""
  checkout = (Path(llamax.__file__).resolve().parents[1] / 'setup.py').is_file()
  if args.installed or (args.wheel is None and not checkout):
    return None
  try:
    return code.find(args.wheel, args.dirty)
  except UserError as error:
    if not args.dry_run:
      raise
    tell(f'llamax launch: without --dry_run this would end here: {error}')
    return code.Code(llamax.__version__, code.cache(llamax.__version__))


def _setup(args: argparse.Namespace) -> str:
  return ''.join(f'{line}\n' for line in args.setup)


def folder_of(args: argparse.Namespace, job: Job) -> Path:
  workdir = job.workdir or args.workdir
  if not workdir or '://' in workdir:
    raise UserError(f'which run? Give --workdir=DIR, a folder, or the command with its own; got {workdir!r}')
  return Path.cwd() / workdir / FOLDER / job.name


def ours(job: Job) -> tuple[str, ...]:
  return (f'--user={getpass.getuser()}', f'--name={job.name}')


def queue(job: Job, form: str = '%i|%T', states: str = 'all') -> Run:
  """Parsable; '%i|%T' is number, state."""
  return Run(('squeue', *ours(job), f'--states={states}', '--noheader', f'--format={form}'), 'finds the job')


def status(job: Job) -> Run:
  form = '%.12i %.12T %.6D %.24N %.12M %.20S %R'
  return Run(('squeue', *ours(job), '--states=all', f'--format={form}'), 'what SLURM has of that name')


def history(job: Job) -> Run:
  fields = 'JobID,State,ExitCode,Elapsed,Start,End,NodeList'
  words = ('sacct', *ours(job), '--allocations', '--duplicates', '--parsable2', f'--format={fields}')
  return Run(words, 'its history, where the cluster keeps one', may_fail=True)


def tail(args: argparse.Namespace, job: Job) -> Run:
  folder = folder_of(args, job)
  return Run(
    ('bash', '-c', 'tail --lines=+1 --follow=name --retry -- "$0"/*.log', str(folder)),
    'its output, as it comes',
  )


def shell(args: argparse.Namespace, job: Job) -> Run:
  where = (f'--nodelist={args.node}',) if args.node else ()
  find = shlex.join((*queue(job, '%i', 'RUNNING').argv,))
  srun = shlex.join(('--overlap', '--nodes=1', '--ntasks=1', *where, '--pty', 'bash', '-l'))
  line = f'srun --jobid="$({find} | tail -n 1)" {srun}'
  return Run(('bash', '-c', line), 'a shell on a node of it, beside its task', interactive=True)


def stop(args: argparse.Namespace, job: Job) -> list[Action]:
  """In three parts: what asks it to end, the time that it has for that, what ends it."""
  mine = ours(job)
  return [
    Write(
      folder_of(args, job) / STOP,
      'by llamax launch slurm stop\n',
      'its script, which looks for this, will not have it started again',
    ),
    Run(('scancel', *mine, '--state=PENDING'), 'one that waits has nothing to save', may_fail=True),
    Run(('scancel', *mine, '--state=RUNNING', '--signal=TERM'), 'its tasks save, then end', may_fail=True),
    Run(('sleep', f'{args.grace:.0f}'), 'for as long as it needs, at most'),
    Run(('scancel', *mine), 'ends what is left of it', may_fail=True),
  ]


def delete(args: argparse.Namespace, job: Job) -> list[Action]:
  folder = str(folder_of(args, job))
  return [
    # Without a job of that name it does not fail; where it does, one may run that writes there.
    Run(('scancel', *ours(job)), 'ends it at once'),
    Run(('rm', '-rf', '--', folder), 'its script, logs, copy of the code; the run itself stays'),
  ]


# Each node asks itself; the first listens where jax would, the others try to reach it.
_DOCTOR = """
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$first:$((SLURM_JOB_ID % 4096 + 61440))
if ((SLURM_NTASKS == 1)); then where=()
elif ((SLURM_PROCID == 0)); then where=(--listen="$address" --peers=$((SLURM_NTASKS - 1)) --patience=60)
else where=(--peer="$address" --patience=60)
fi
llamax doctor --json "${where[@]}" "$@"
true
"""


def doctor(args: argparse.Namespace, job: Job) -> Run:
  workdir = job.workdir or args.workdir
  words = (f'--workdir={Path.cwd() / workdir}',) if workdir else ()
  script = _setup(args) + ''.join(f'export {n}={shlex.quote(t)}\n' for n, t in job.env.items()) + _DOCTOR
  options = [word for word in asked(args).options() if not word.startswith('--time=')]
  srun = ('srun', f'--job-name={job.name}-doctor', *options, '--time=10', '--cpu-bind=none', '--label')
  return Run((*srun, 'bash', '-c', script, 'doctor', *words), 'llamax doctor on each node, at the same time')
