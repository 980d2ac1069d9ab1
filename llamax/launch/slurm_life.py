"""What `llamax launch slurm` does with SLURM's answers: starts, follows, stops, asks how it stands."""

import argparse
import getpass
import time
from collections.abc import Callable
from pathlib import Path

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.launch import doctor as doctors
from llamax.launch import slurm_commands as commands
from llamax.launch.action import Run, Secret, value
from llamax.launch.execute import answer, attempt, execute
from llamax.launch.files import Files
from llamax.launch.job import Job
from llamax.launch.slurm_script import ENDS, FOLDER, SCRIPT
from llamax.observe.jsonl import read_lines
from llamax.train.supervise import in_words

# Of squeue's words those of a job that may still do something.
_THERE = (
  'PENDING',
  'RUNNING',
  'SUSPENDED',
  'COMPLETING',
  'CONFIGURING',
  'REQUEUED',
  'REQUEUE_FED',
  'REQUEUE_HOLD',
  'RESIZING',
  'SIGNALING',
  'SPECIAL_EXIT',
  'STAGE_OUT',
  'STOPPED',
)
_SELDOM, _OFTEN = 15.0, 1.0  # seconds between two questions to SLURM; often, just after the script has ended
_DEAF = 600.0  # seconds that SLURM may fail to answer


def jobs(job: Job) -> list[tuple[str, str]]:
  """(number, state) of each job of that name that waits or runs."""
  found = []
  for line in answer(commands.queue(job)).splitlines():
    number, bar, state = line.strip().partition('|')
    if bar and state in _THERE:
      found.append((number, state))
  return found


def submit(args: argparse.Namespace, job: Job) -> int:
  there = jobs_before(args, job)
  if there:
    number, state = there[-1]
    raise UserError(f'job {number} named {job.name!r} is {state} already: follow it (logs), stop it, or --name')
  print(_submit(args, job))
  return exits.DONE


def run(args: argparse.Namespace, job: Job) -> int:
  """Submits, or finds it submitted, follows it to its end: the exit code that its script wrote down."""
  folder, there = commands.folder_of(args, job), jobs_before(args, job)
  files = Files(folder, whole=bool(there))  # Of an earlier job the logs have been seen.
  if there:
    number = there[-1][0]
    tell(f'launch: job {number} is there already: following it')
  else:
    number = _submit(args, job)
  try:
    follow(folder, files, lambda: not [one for one, _ in jobs(job) if one == number])
  except KeyboardInterrupt:
    tell(f'launch: job {number} goes on without this shell; llamax launch slurm stop ends it')
    return exits.INTERRUPTED
  return end(folder, number)


def jobs_before(args: argparse.Namespace, job: Job) -> list[tuple[str, str]]:
  """Those of that name, once all that would be refused has been."""
  commands.submit(args, job)
  for name in job.secrets:
    value(Secret(name))  # sbatch inherits it.
  return jobs(job)


def _submit(args: argparse.Namespace, job: Job) -> str:
  *before, sbatch = commands.submit(args, job)
  execute(before)
  assert isinstance(sbatch, Run)
  number = answer(sbatch).strip().partition(';')[0]
  tell(f'launch: job {number}; its script, logs: {commands.folder_of(args, job)}')
  return number


def end(folder: Path, number: str) -> int:
  """The exit code of the last end that the script wrote down."""
  mine = [one for one in read_lines(folder / ENDS) if str(one.get('job')) == number]
  if not mine or mine[-1].get('event') != 'ended':
    tell(f'launch: job {number} was ended from outside (scancel, SLURM): scontrol show job {number}')
    return exits.RESUME
  code, then = mine[-1]['code'], mine[-1]['then']
  tell(f'launch: job {number} ended with {in_words(code)}; {then}')
  return code


def find_workdir(args: argparse.Namespace, job: Job) -> None:
  """Sets args.workdir where the command line does not tell: SLURM knows where the script lies."""
  if not (job.workdir or args.workdir):
    scripts = [Path(line.strip()) for line in answer(commands.queue(job, '%o')).splitlines() if line.strip()]
    # WORKDIR/launch/NAME/job.sbatch; whoever submits a copy by hand has it elsewhere.
    if scripts and scripts[-1].parts[-3:] == (FOLDER, job.name, SCRIPT):
      args.workdir = str(scripts[-1].parents[2])


def logs(args: argparse.Namespace, job: Job) -> int:
  find_workdir(args, job)
  folder = commands.folder_of(args, job)
  follow(folder, Files(folder, whole=True), lambda: not jobs(job))
  return exits.DONE


def follow(folder: Path, files: Files, over: Callable[[], bool]) -> None:
  """Shows the logs of the script, of the tasks as they grow, until `over` says that the job is."""
  heard, next_question, written, hurry = time.monotonic(), 0.0, -1, 0.0
  while True:
    now, ended = time.monotonic(), False
    size = (folder / ENDS).stat().st_size if (folder / ENDS).exists() else 0
    if size != written:  # It has started, or ended: SLURM will know more within seconds.
      written, hurry, next_question = size, now + 20, min(next_question, now)
    if now >= next_question:
      try:
        ended, heard = over(), now
      except UserError:
        if now - heard > _DEAF:
          raise
      next_question = now + (_OFTEN if now < hurry else _SELDOM)
    files.read()  # After the question: all that was written before the end is shown.
    if ended:
      files.close()
      return
    time.sleep(0.2)


def status(args: argparse.Namespace, job: Job) -> int:
  execute([commands.status(job)], say=lambda why: None)
  if not jobs(job):
    (done,) = attempt((commands.history(job),), show=False)
    print(done.out if done.code == 0 else '', end='')
  find_workdir(args, job)
  if job.workdir or args.workdir:
    for one in read_lines(commands.folder_of(args, job) / ENDS)[-5:]:
      what = f'{in_words(one["code"])}; {one["then"]}' if one['event'] == 'ended' else 'started'
      print(f'{one["time"]}  job {one["job"]}, start {one["restart"] + 1}: {what}')
  return exits.DONE


def ssh(args: argparse.Namespace, job: Job) -> int:
  found = jobs(job)
  if not [state for _, state in found if state == 'RUNNING']:
    now = f'job {found[-1][0]} is {found[-1][1]}' if found else f'see squeue --user={getpass.getuser()}'
    raise UserError(f'no job named {job.name!r} runs, so it has no node to be on; {now}')
  return attempt((commands.shell(args, job),))[0].code


def stop(args: argparse.Namespace, job: Job) -> int:
  if not jobs(job):
    raise UserError(f'no job named {job.name!r} of yours waits or runs (squeue --user={getpass.getuser()})')
  find_workdir(args, job)
  write, waiting, term, _, kill = commands.stop(args, job)
  execute([write, waiting, term])
  deadline = time.monotonic() + args.grace
  while jobs(job):
    if time.monotonic() > deadline:
      execute([kill])
      deadline = float('inf')
    time.sleep(_OFTEN)
  tell(f'launch: {job.name} has ended; submitted again, it goes on from the newest checkpoint')
  return exits.DONE


def doctor(args: argparse.Namespace, job: Job) -> int:
  """Asks all nodes at the same time; 2 where one of them, or what they say together, is not well."""
  (done,) = attempt((commands.doctor(args, job),), show=False)
  done.check()
  said: dict[str, str] = {}  # srun cuts a long line into several, each with its label.
  for line in done.out.splitlines():
    rank, _, text = line.lstrip().partition(': ')
    said[rank] = said.get(rank, '') + text
  found = {rank: doctors.report_in(text) for rank, text in said.items()}
  reports: dict[str, doctors.Report | None] = {f'{rank} {r.host}': r for rank, r in found.items() if r}
  for missing in range(args.nodes - len(reports)):
    reports[f'one of those without a report ({missing + 1})'] = None
  text, code = doctors.summary(dict(sorted(reports.items(), key=lambda pair: (len(pair[0]), pair[0]))))
  print(text)
  if code and done.tail:
    tell(done.tail.rstrip())
  return code
