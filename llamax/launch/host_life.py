"""The life of a job on a list of hosts: installed, compared, started, followed, kept alive."""

import contextlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.launch import environment
from llamax.launch.execute import attempt, execute
from llamax.launch.follow import Follower
from llamax.launch.gang import weight
from llamax.launch.hosts import Hosts
from llamax.launch.worker import in_words

_LOST = 255  # ssh's own, of a connection that failed
_DELAYS = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)  # seconds between tries to reach a host


def run(hosts: Hosts) -> int:
  """Until all workers have ended; the code that tells most."""
  with _interruptible(hosts):
    create(hosts)
    return _follow(hosts, _begin(hosts))


def create(hosts: Hosts) -> int:
  execute(hosts.create())
  found = {}
  for name, done in zip(hosts.names, attempt(hosts.environments().runs, show=False), strict=True):
    found[name] = json.loads(done.check().out.splitlines()[-1])
  if lines := environment.differences(found):
    raise UserError('the environments of the hosts differ; mend that first:\n  ' + '\n  '.join(lines))
  said = ', '.join(f'{name} {version}' for name, version in found[hosts.names[0]].items() if version)
  tell(f'launch: the same on {len(found)} hosts: {said}')
  return exits.DONE


def submit(hosts: Hosts) -> int:
  _submit(hosts, range(len(hosts.names)))
  return exits.DONE


def status(hosts: Hosts) -> int:
  _show(hosts)
  return exits.DONE


def _show(hosts: Hosts) -> list[dict[str, Any]]:
  states = ask(hosts)
  for rank, facts in enumerate(states):
    print(_about(hosts, rank, facts))
  return states


def logs(hosts: Hosts) -> int:
  """Of all hosts until the job has ended on each."""
  with contextlib.closing(Follower(lost=_LOST)) as follower:
    for rank in range(len(hosts.names)):
      follower.add(rank, hosts.log(rank))
    troubles = [follower.wait() for _ in hosts.names]
  for rank, trouble in troubles:
    if trouble:
      tell(f'launch: {hosts.names[rank]}: {trouble}')
  return exits.MISTAKE if any(trouble for _, trouble in troubles) else exits.DONE


def stop(hosts: Hosts) -> int:
  """Done where each host says that it does not run."""
  _stop(hosts, range(len(hosts.names)))
  states = zip(hosts.names, _show(hosts), strict=True)
  if left := [name for name, facts in states if facts['state'] in ('running', 'unreachable')]:
    raise UserError(f'{hosts.job.name!r} may still run on {", ".join(left)} (see above): stop it again')
  return exits.DONE


def delete(hosts: Hosts) -> int:
  execute([hosts.delete()])
  return exits.DONE


def doctor(hosts: Hosts) -> int:
  from llamax.launch.doctor import report_in, summary

  execute(hosts.create())
  done = attempt(hosts.doctor().runs, show=False)
  text, code = summary({name: report_in(one.out) for name, one in zip(hosts.names, done, strict=True)})
  print(text)
  return code


def shell(hosts: Hosts) -> int:
  return attempt((hosts.shell(),))[0].code


def ask(hosts: Hosts, ranks: Sequence[int] | None = None) -> list[dict[str, Any]]:
  """launch/worker.py's status of each; {'state': 'unreachable', 'said': ...} of one that does not answer."""
  answers = []
  for done in attempt(hosts.status(ranks).runs, show=False):
    if done.code:
      answers.append({'state': 'unreachable', 'said': done.tail.strip() or f'exit code {done.code}'})
    else:
      answers.append(json.loads(done.out.splitlines()[-1]))
  return answers


def _begin(hosts: Hosts) -> list[dict[str, Any]]:
  """Starts what does not run yet; a run that this launcher only lost sight of goes on. The status of each."""
  states = ask(hosts)
  for rank, facts in enumerate(states):
    if facts['state'] == 'unreachable':
      raise UserError(f'{hosts.names[rank]} does not answer: {facts["said"]}')
    if facts['state'] == 'running':
      _check_same(hosts, rank, facts)
  idle = [rank for rank, facts in enumerate(states) if facts['state'] != 'running']
  if len(idle) < len(states):
    tell(f'launch: {len(states) - len(idle)} of {len(states)} workers run already')
  for rank, facts in zip(idle, _submit(hosts, idle), strict=True):
    states[rank] = facts
  return states


def _submit(hosts: Hosts, ranks: Sequence[int]) -> list[dict[str, Any]]:
  """Their status then."""
  states = []
  for rank, done in zip(ranks, attempt(hosts.submit(ranks).runs, show=False), strict=True):
    states.append(json.loads(done.check().out.splitlines()[-1]))
    tell(f'launch: {_about(hosts, rank, states[-1])}')
  return states


def _check_same(hosts: Hosts, rank: int, facts: dict[str, Any]) -> None:
  """UserError where what runs is not what would be started: lost workers could not be put beside it."""
  assert hosts.job.code is not None
  where = f'{hosts.names[rank]}: a job {hosts.job.name!r} runs already'
  if tuple(facts['command']) != hosts.command(rank):
    raise UserError(f'{where} with another command: {shlex.join(facts["command"])}; stop it, or give --name')
  if facts['version'] != hosts.job.code.version:
    raise UserError(
      f'{where} with llamax {facts["version"]}, this is {hosts.job.code.version}: stop it first, so that all '
      'workers have the same, or follow it with the verb logs'
    )


def _follow(hosts: Hosts, states: Sequence[dict[str, Any]]) -> int:
  codes: dict[int, int] = {}
  restarts = 0
  with contextlib.closing(Follower(lost=_LOST)) as follower:
    for rank, facts in enumerate(states):
      follower.add(rank, hosts.log(rank), _start(facts))
    while len(codes) < len(hosts.names):
      rank, _ = follower.wait()
      facts = _reached(hosts, rank)
      if facts['state'] == 'ended':
        codes[rank] = facts['code']
        tell(f'launch: {_about(hosts, rank, facts)}')
        if facts['code'] and all(code == 0 for other, code in codes.items() if other != rank):
          _stop(hosts, [other for other in range(len(hosts.names)) if other not in codes])
        continue
      if facts['state'] == 'unreachable' or restarts >= hosts.args.max_restarts:
        tell(f'launch: {_about(hosts, rank, facts)}; giving up after {restarts} restarts')
        _stop(hosts, [other for other in range(len(hosts.names)) if other not in (*codes, rank)])
        return exits.LOST
      if facts['state'] != 'running':
        restarts += 1
        tell(f'launch: {_about(hosts, rank, facts)}; starting its worker again')
        facts = _again(hosts, rank) or facts
      time.sleep(_DELAYS[0])
      follower.add(rank, hosts.log(rank), _start(facts))
  return max(codes.values(), key=weight)


def _start(facts: dict[str, Any]) -> tuple[Any, ...]:
  """Tells one start of a worker, which has a log of its own, from the next."""
  return facts.get('started'), facts.get('pid')


def _again(hosts: Hosts, rank: int) -> dict[str, Any] | None:
  """The code and the worker of a host that may have lost both; what fails is found out by its status."""
  try:
    execute(hosts.create([rank]))
    return _submit(hosts, [rank])[0]
  except UserError as error:
    tell(f'launch: {hosts.names[rank]}: {error}')
    return None


def _reached(hosts: Hosts, rank: int) -> dict[str, Any]:
  """The status of a host that may be starting up again; the last word where it does not within --patience."""
  end, delays = time.monotonic() + hosts.args.patience, iter(_DELAYS)
  while True:
    (facts,) = ask(hosts, [rank])
    if facts['state'] != 'unreachable' or time.monotonic() > end:
      return facts
    tell(f'launch: {hosts.names[rank]} does not answer: {facts["said"].splitlines()[-1]}')
    time.sleep(next(delays, _DELAYS[-1]))


def _stop(hosts: Hosts, ranks: Sequence[int]) -> None:
  if ranks:
    tell('launch: asking the workers to save, to end: ' + ', '.join(hosts.names[rank] for rank in ranks))
    for done in attempt(hosts.stop(ranks).runs, show=False):
      if done.code:
        tell(f'launch: {done.run.label}: {done.tail.strip()}')


def _about(hosts: Hosts, rank: int, facts: dict[str, Any]) -> str:
  return f'{hosts.names[rank]}: {_said(facts)}'


def _said(facts: dict[str, Any]) -> str:
  return f'does not answer: {facts["said"]}' if facts['state'] == 'unreachable' else in_words(facts)


@contextlib.contextmanager
def _interruptible(hosts: Hosts) -> Iterator[None]:
  """Who ends the launcher ends no run: the workers go on by themselves."""

  def ended(number: int, frame: object) -> None:
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, ended)
  try:
    yield
  except KeyboardInterrupt:
    tell(
      f'launch: the run goes on without this launcher; the same hosts with --name={hosts.job.name} take the '
      'verbs status, logs, stop; the same command follows it again'
    )
    sys.exit(exits.INTERRUPTED)
  finally:
    signal.signal(signal.SIGTERM, before)
