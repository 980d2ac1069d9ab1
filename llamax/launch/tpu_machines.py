"""Cloud TPU virtual machines as launch/life.py sees them."""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llamax.core.errors import UserError
from llamax.launch import doctor as doctors
from llamax.launch import tpu_vm
from llamax.launch.action import Run, Together
from llamax.launch.execute import Done, attempt, execute
from llamax.launch.job import Job
from llamax.launch.machines import Seen, State, Worker
from llamax.launch.tpu_commands import Place, answers
from llamax.launch.tpu_follow import Follower

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
# What gcloud says beside the reason: it tries ten times, all workers at once, then shows a traceback of each.
_CHATTER = re.compile(
  r'\s|SSH: Attempting|Using ssh batch|Failed to execute command on multiple|Retrying: |#####'
  r'|Exception in thread|Traceback|[Ww]arning: Permanently added|.*exited with return code'
)
_TAIL = 2000  # lines, in which that is looked for


class TpuMachines:
  """Machines of launch/life.py."""

  def __init__(self, place: Place, args: argparse.Namespace, job: Job):
    self._place, self._args, self._job = place, args, job
    self.chips, self.count = place.chips, place.workers
    self.trouble = ''
    self._follower = Follower(place, job)

  def look(self) -> Seen:
    if not self._place.queued:
      return self._nodes(none=State.ABSENT)
    done = _ask(self._place.describe_request())
    if done.code:
      # Without a request there may be machines that were made with --no_queue.
      return self._nodes(none=State.ABSENT) if 'NOT_FOUND' in done.tail else Seen(State.UNKNOWN, _last(done))
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
    return remove(self._place)[1] or None

  def workers(self) -> Sequence[Worker] | None:
    said, why = hear(self._place, tpu_vm.ask(self._place, self._job))
    workers = [
      Worker(name, facts['job']['state'], facts['job'].get('code'), facts['asked'], facts['code'])
      for name, facts in said.items()
    ]
    if len(workers) == self.count:
      return workers
    self.trouble = f'{len(workers)} of {self.count} workers answer' + (f': {why}' if why else '')
    return None

  def ready(self, workers: Sequence[Worker]) -> bool:
    folder = tpu_vm.placed(self._args, self._job).folder.rpartition('/')[2]
    return all(worker.version == folder for worker in workers)

  def prepare(self) -> None:
    execute(tpu_vm.prepare(self._place, self._args, self._job))
    reports, why = examine(self._place, self._args, self._job)
    if differences := doctors.compare(reports):
      raise UserError('the workers are not alike: ' + '; '.join([*differences, *[why] * bool(why)]))

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
  found = {_name(node): node.get('state', '') for node in nodes}
  if not any(name in found for name in names):
    return Seen(none, 'no machines')
  states = [NODE_STATES.get(found[name], State.UNKNOWN) if name in found else State.LOST for name in names]
  worst = min(states, key=_ORDER.index)
  said = [
    f'{name} {found.get(name, "gone")}' for name, state in zip(names, states, strict=True) if state is worst
  ]
  return Seen(worst, '' if worst is State.ACTIVE else ', '.join(said))


def remove(place: Place) -> tuple[bool, str]:
  """Deletes what has the name, made with --no_queue or without: whether there was something; what failed."""
  done = _ask(place.delete())
  if not _absent(done):
    return True, _last(done) if done.code else ''
  if place.queued:
    listed = _ask(place.list_nodes())
    nodes = _json(listed)
    if listed.code or not isinstance(nodes, list):
      return True, _last(listed)
    others = tuple(place.delete_node(_name(node)) for node in nodes)
  else:
    others = (dataclasses.replace(place, queued=True).delete(),)
  there = [done for done in attempt(others, show=False) if not _absent(done)]
  return bool(there), '; '.join(_last(done) for done in there if done.code)


def examine(place: Place, args: argparse.Namespace, job: Job) -> tuple[dict[str, doctors.Report | None], str]:
  """Worker -> its report, None where it gave none; why, as far as gcloud says."""
  said, why = hear(place, tpu_vm.examine(place, args, job))
  reports: dict[str, doctors.Report | None] = {}
  for node in range(place.slices):
    for number in range(place.slice.hosts):
      name = worker_name(place, node, str(number))
      report = doctors.report_in(json.dumps(said[name])) if name in said else None
      reports[f'worker {name}'] = report
  return reports, why


def hear(place: Place, together: Together) -> tuple[dict[str, Mapping[str, Any]], str]:
  """What each worker answers that does; why others do not, as far as gcloud says."""
  found, why = {}, ''
  for node, done in enumerate(attempt(together.runs, show=False, tail=_TAIL)):
    why = _last(done) if done.code else why
    for number, facts in answers(done.out).items():
      found[worker_name(place, node, number)] = facts
  return found, why


def worker_name(place: Place, node: int, number: str) -> str:
  return number if place.slices == 1 else f'{node}.{number}'


def _ask(command: Run) -> Done:
  return attempt((command,), show=False)[0]


def _json(done: Done) -> Any:
  try:
    return json.loads(done.out or 'null')
  except ValueError:
    return None


def _absent(done: Done) -> bool:
  return done.code != 0 and 'NOT_FOUND' in done.tail


def _name(node: Mapping[str, Any]) -> str:
  return node['name'].rpartition('/')[2]


def _last(done: Done) -> str:
  """The line of an error that says most."""
  lines = [line.strip() for line in done.tail.splitlines() if line.strip() and not _CHATTER.match(line)]
  errors = [line for line in lines if 'ERROR' in line]
  return (errors or lines or [f'{done.run.argv[0]} ended with {done.code}'])[-1]
