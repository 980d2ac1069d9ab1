"""The verbs of `llamax launch tpu-vm` that need the cloud's or the workers' answers."""

import argparse
import contextlib
import datetime
import time
from pathlib import Path

from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.launch import doctor as doctors
from llamax.launch import past, tpu_vm
from llamax.launch.bill import bill
from llamax.launch.execute import execute
from llamax.launch.job import Job
from llamax.launch.life import Life, held
from llamax.launch.machines import Seen, State
from llamax.launch.tpu_commands import Place
from llamax.launch.tpu_machines import TpuMachines, examine, remove
from llamax.observe.ledger import Ledger, read_ledger
from llamax.train.supervise import in_words


def run(place: Place, args: argparse.Namespace, job: Job) -> int:
  tpu_vm.plan('run', args, job)  # UserError before anything costs.
  assert job.code is not None
  execute([job.code.action()])
  state = state_folder(args, job)
  machines = TpuMachines(place, args, job)
  life = Life(machines, state, poll=args.poll, keep=args.keep, max_failures=args.max_failures)
  try:
    return life.live()
  finally:
    print('\n'.join(_bill(state, args)), flush=True)


def create(place: Place, args: argparse.Namespace, job: Job) -> int:
  machines = TpuMachines(place, args, job)
  with held(state_folder(args, job)):
    ledger = Ledger(state_folder(args, job))
    before = None
    while (seen := machines.look()).state is not State.ACTIVE:
      if seen != before:
        ledger.record('seen', state=seen.state.value, detail=seen.detail, chips=place.chips)
        print(f'machines: {seen.state.value} {seen.detail}'.rstrip(), flush=True)
      before = seen
      if seen.state in (State.LOST, State.REFUSED):
        raise UserError(f'{seen.detail}: llamax launch tpu-vm delete, then create again')
      if seen.state is State.ABSENT:
        ledger.record('requesting')
        if refused := machines.request():
          raise UserError(f'the request was refused: {refused}')
        ledger.record('requested')
      else:
        time.sleep(args.poll)
    ledger.record('seen', state='active', detail='', chips=place.chips)
    machines.prepare()
    ledger.record('prepared')
    ledger.close()
  return 0


def submit(place: Place, args: argparse.Namespace, job: Job) -> int:
  tpu_vm.begin(place, args, job)  # UserError before anything is sent.
  machines = TpuMachines(place, args, job)
  machines.prepare()
  machines.start()
  return status(place, args, job)


def status(place: Place, args: argparse.Namespace, job: Job) -> int:
  machines = TpuMachines(place, args, job)
  seen = machines.look()
  print(f'machines: {seen.state.value} {seen.detail}'.rstrip())
  workers = machines.workers() if seen.state is State.ACTIVE else ()
  if workers is None:
    print(machines.trouble)
  for worker in workers or ():
    end = f': {in_words(worker.code)}' if worker.code is not None else ''
    print(f'worker {worker.name}: {worker.state}{end}{", asked to stop" if worker.asked else ""}')
  print('\n'.join(_bill(state_folder(args, job), args, seen)))
  return 0


def delete(place: Place, args: argparse.Namespace, job: Job) -> int:
  """2 where there was nothing though the ledger says that there should be."""
  state, where = state_folder(args, job), {'zone': place.zone, 'project': place.project}
  with held(state), contextlib.closing(Ledger(state)) as ledger:
    events = read_ledger(state)
    ledger.record('giving_back', **where)
    found, failed = remove(place)
    if failed:
      ledger.record('failed', detail=failed)
      raise UserError(f'the machines could not be deleted: {failed}')
    # A delete that was killed there, after the deletion and before its record, is one that this one completes.
    cut_off = bool(events) and {'event': 'giving_back', **where}.items() <= events[-1].items()
    if found or cut_off:
      ledger.record('given_back')
    else:
      ledger.record('not_found', **where)
      own = "gcloud's own"
      print(
        f'nothing is named {place.name!r} in the zone {place.zone or own}, the project {place.project or own}'
      )
      if past.there(events):
        raise UserError(
          f'nothing was given back, but {state}/ledger.jsonl knows of machines, or of a request for them; THEY '
          'MAY STILL BE THERE, AND COST: give the --zone and --project that they were asked for with'
        )
  print('\n'.join(_bill(state, args)))
  return 0


def doctor(place: Place, args: argparse.Namespace, job: Job) -> int:
  reports, why = examine(place, args, job)
  text, code = doctors.summary(reports)
  print(text)
  if why:
    tell(why)
  return code


def state_folder(args: argparse.Namespace, job: Job) -> Path:
  return args.state or Path('~/.llamax/launch').expanduser() / job.name


def _bill(state: Path, args: argparse.Namespace, seen: Seen | None = None) -> list[str]:
  now = datetime.datetime.now(datetime.UTC)
  events = read_ledger(state)
  if seen is not None and seen.state is not State.ACTIVE:
    events.append({'event': 'seen', 'time': now.isoformat(), 'state': seen.state.value})
  return bill(events, now).lines(args.price_per_chip_hour)
