"""Cloud TPU virtual machines as launch/life.py sees them, the verbs that need their answers."""

import argparse
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.launch import doctor as doctors
from llamax.launch import tpu_vm
from llamax.launch.action import Run, Together
from llamax.launch.bill import bill
from llamax.launch.checkup.finding import FAIL
from llamax.launch.execute import Done, attempt, execute
from llamax.launch.job import Job
from llamax.launch.life import Life, held
from llamax.launch.machines import Seen, State, Worker
from llamax.launch.tpu_commands import Place, answers
from llamax.launch.tpu_follow import Follower
from llamax.observe.ledger import Ledger, read_ledger
from llamax.train.supervise import in_words

# cloud.google.com/tpu/docs/reference/rest/v2: QueuedResourceState.State, Node.State. Any other name is UNKNOWN.
REQUEST_STATES = {
  **dict.fromkeys(('CREATING', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING'), State.WAITING),
  'ACTIVE': State.ACTIVE,
  'FAILED': State.REFUSED,
  'SUSPENDED': State.LOST,
  **dict.fromkeys(('SUSPENDING', 'DELETING'), State.LEAVING),
}
NODE_STATES = {
  **dict.fromkeys(('CREATING', 'STARTING'), State.WAITING),
  # Under repair, and then itself again.
  **dict.fromkeys(('READY', 'RESTARTING', 'REIMAGING', 'REPAIRING'), State.ACTIVE),
  **dict.fromkeys(('PREEMPTED', 'TERMINATED', 'STOPPED', 'HIDDEN'), State.LOST),
  **dict.fromkeys(('DELETING', 'STOPPING', 'HIDING'), State.LEAVING),
}
# The worst of several nodes is what they are together.
_ORDER = (State.LOST, State.LEAVING, State.UNKNOWN, State.WAITING, State.ACTIVE)


class TpuMachines:
  """Machines of launch/life.py."""

  def __init__(self, place: Place, args: argparse.Namespace, job: Job):
    self._place, self._args, self._job = place, args, job
    self.chips, self.count = place.chips, place.workers
    self._follower = Follower(place, job)

  def look(self) -> Seen:
    if not self._place.queued:
      return self._nodes(none=State.ABSENT)
    done = _ask(self._place.describe_request())
    if done.code:
      return Seen(State.ABSENT) if 'NOT_FOUND' in done.tail else Seen(State.UNKNOWN, _last(done))
    seen = request_state(_json(done))
    # A slice may be gone for a while before its request says so.
    return self._nodes(none=State.LOST) if seen.state is State.ACTIVE else seen

  def _nodes(self, none: State) -> Seen:
    done = _ask(self._place.list_nodes())
    nodes = _json(done)
    if done.code or not isinstance(nodes, list):
      return Seen(State.UNKNOWN, _last(done))
    return nodes_state(self._place.nodes, nodes, none)

  def request(self) -> str | None:
    done = _ask(self._place.create())
    return None if not done.code or 'ALREADY_EXISTS' in done.tail else _last(done)

  def give_back(self) -> str | None:
    done = _ask(self._place.delete())
    return None if not done.code or 'NOT_FOUND' in done.tail else _last(done)

  def workers(self) -> Sequence[Worker] | None:
    said = tell(self._place, tpu_vm.ask(self._place, self._job))
    workers = [
      Worker(name, facts['job']['state'], facts['job'].get('code'), facts['asked'], facts['code'])
      for name, facts in said.items()
    ]
    return workers if len(workers) == self.count else None

  def ready(self, workers: Sequence[Worker]) -> bool:
    folder = tpu_vm.placed(self._args, self._job).folder.rpartition('/')[2]
    return all(worker.version == folder for worker in workers)

  def prepare(self) -> None:
    execute(tpu_vm.prepare(self._place, self._args, self._job))
    reports = examine(self._place, self._args, self._job)
    if differences := doctors.compare(reports):
      raise UserError('the workers are not alike: ' + '; '.join(differences))

  def start(self) -> None:
    execute(tpu_vm.begin(self._place, self._args, self._job))

  def follow(self, on: bool) -> None:
    self._follower.follow(on)


def request_state(facts: Mapping[str, Any]) -> Seen:
  """From what `queued-resources describe --format=json` prints."""
  state = facts.get('state', {})
  name = state.get('state', '')
  error = state.get('failedData', {}).get('error', {}).get('message', '')
  return Seen(REQUEST_STATES.get(name, State.UNKNOWN), f'{name}: {error}' if error else name)


def nodes_state(names: Sequence[str], nodes: Sequence[Mapping[str, Any]], none: State) -> Seen:
  """From what `tpu-vm list --format=json` prints; none: what it means that none of `names` is there."""
  found = {node['name'].rpartition('/')[2]: node.get('state', '') for node in nodes}
  if not any(name in found for name in names):
    return Seen(none, 'no machines')
  states = [NODE_STATES.get(found[name], State.UNKNOWN) if name in found else State.LOST for name in names]
  worst = min(states, key=_ORDER.index)
  said = [
    f'{name} {found.get(name, "gone")}' for name, state in zip(names, states, strict=True) if state is worst
  ]
  return Seen(worst, '' if worst is State.ACTIVE else ', '.join(said))


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
    print('not all workers answer')
  for worker in workers or ():
    end = f': {in_words(worker.code)}' if worker.code is not None else ''
    print(f'worker {worker.name}: {worker.state}{end}{", asked to stop" if worker.asked else ""}')
  print('\n'.join(_bill(state_folder(args, job), args, seen)))
  return 0


def delete(place: Place, args: argparse.Namespace, job: Job) -> int:
  with held(state_folder(args, job)):
    ledger = Ledger(state_folder(args, job))
    ledger.record('giving_back')
    if failed := TpuMachines(place, args, job).give_back():
      raise UserError(f'the machines could not be deleted: {failed}')
    ledger.record('given_back')
    ledger.close()
  print('\n'.join(_bill(state_folder(args, job), args)))
  return 0


def doctor(place: Place, args: argparse.Namespace, job: Job) -> int:
  reports = examine(place, args, job)
  bad = False
  for name, report in reports.items():
    print(f'worker {name}: ' + (doctors.show(report) if report else 'no answer'))
    bad |= report is None or any(finding.verdict == FAIL for finding in report.findings)
  differences = doctors.compare(reports)
  print('\n'.join(differences) if differences else f'{len(reports)} workers, all alike')
  return exits.MISTAKE if bad or differences else exits.DONE


def examine(place: Place, args: argparse.Namespace, job: Job) -> dict[str, doctors.Report | None]:
  """Worker -> its report; None where it gave none."""
  said = tell(place, tpu_vm.examine(place, args, job))
  reports: dict[str, doctors.Report | None] = {}
  for node in range(place.slices):
    for number in range(place.slice.hosts):
      name = worker_name(place, node, str(number))
      reports[name] = doctors.report_in(json.dumps(said[name])) if name in said else None
  return reports


def tell(place: Place, together: Together) -> dict[str, Mapping[str, Any]]:
  """What each worker answers that does."""
  found = {}
  for node, done in enumerate(attempt(together.runs, show=False)):
    for number, facts in answers(done.out).items():
      found[worker_name(place, node, number)] = facts
  return found


def worker_name(place: Place, node: int, number: str) -> str:
  return number if place.slices == 1 else f'{node}.{number}'


def state_folder(args: argparse.Namespace, job: Job) -> Path:
  return args.state or Path('~/.llamax/launch').expanduser() / job.name


def _bill(state: Path, args: argparse.Namespace, seen: Seen | None = None) -> list[str]:
  now = datetime.datetime.now(datetime.UTC)
  events = read_ledger(state)
  if seen is not None and seen.state is not State.ACTIVE:
    events.append({'event': 'seen', 'time': now.isoformat(), 'state': seen.state.value})
  return bill(events, now).lines(args.price_per_chip_hour)


def _ask(command: Run) -> Done:
  return attempt((command,), show=False)[0]


def _json(done: Done) -> Any:
  try:
    return json.loads(done.out or 'null')
  except ValueError:
    return None


def _last(done: Done) -> str:
  """The line of an error that says most."""
  lines = [line.strip() for line in done.tail.splitlines() if line.strip()]
  errors = [line for line in lines if 'ERROR' in line]
  return (errors or lines or [f'{done.run.argv[0]} ended with {done.code}'])[-1]
