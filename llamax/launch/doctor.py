"""Looks at a machine for what would stop or slow a run; compares what the machines of one run say."""

import collections
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamax.core import exits
from llamax.launch.checkup import devices, holders, machine, ports, versions, workdir
from llamax.launch.checkup.finding import FAIL, OK, WARN, Finding
from llamax.launch.checkup.hardware import hardware
from llamax.launch.checkup.tree import Tree

_CLOCKS = 60.0  # seconds; the workers are asked at the same time, not in the same second
_SCHEMA = 1
_MAY_DIFFER = ('cores', 'memory')


@dataclass(frozen=True)
class Questions:
  """What to look at beside what every machine has.

  Args:
    workdir: a run's folder, there or not.
    constraints: a file of name==version, tested together.
    listen: HOST:PORT to hold open until `peers` other machines have come, for `patience` seconds at most.
    peer: HOST:PORT to connect to within `patience` seconds.
    seconds: for jax to find its devices.
  """

  workdir: str | None = None
  constraints: Path | None = None
  listen: str | None = None
  peers: int = 0
  peer: str | None = None
  patience: float = 10.0
  seconds: float = 90.0


@dataclass(frozen=True)
class Report:
  """What one machine says of itself. time: of its clock, in seconds since 1970."""

  host: str
  time: float
  findings: Sequence[Finding]

  @property
  def code(self) -> int:
    return exits.MISTAKE if any(f.verdict == FAIL for f in self.findings) else exits.DONE

  def to_json(self) -> str:
    """One line."""
    return json.dumps(
      {'doctor': _SCHEMA, 'host': self.host, 'time': self.time, 'findings': [asdict(f) for f in self.findings]}
    )


def from_json(line: str) -> Report:
  """ValueError for anything that `to_json` has not written."""
  try:
    facts = json.loads(line)
    if facts['doctor'] != _SCHEMA:
      raise ValueError(f'a report of another version of llamax doctor: {facts["doctor"]!r}')
    return Report(facts['host'], float(facts['time']), [Finding(**f) for f in facts['findings']])
  except (TypeError, KeyError, AssertionError) as error:
    raise ValueError(f'no report of llamax doctor: {error}') from None


def report_in(text: str) -> Report | None:
  """The last report among other lines of output; None where there is none."""
  for line in reversed(text.splitlines()):
    start = line.find('{"doctor": ')
    if start >= 0:
      try:
        return from_json(line[start:])
      except ValueError:
        continue
  return None


def examine(questions: Questions, tree: Tree | None = None, environ: Mapping[str, str] | None = None) -> Report:
  """Looks at this machine; takes as long as jax takes to find its devices.

  Raises:
    UserError: an address that is none.
  """
  tree, environ = tree or Tree(), os.environ if environ is None else environ
  now, host = time.time(), socket.gethostname()
  kind, found = hardware(tree), versions.installed()
  with ports.listening(tree, questions.listen, questions.peers, questions.patience) as port:
    findings = versions.examine(found, questions.constraints)
    held = holders.examine(tree, kind)
    if kind.kind == 'tpu' and any(f.verdict == FAIL for f in held):
      # It would wait for its holder, or take the lock from under it.
      findings += devices.not_asked(kind)
    else:
      answer = devices.ask(kind, questions.seconds, environ)
      findings += devices.examine(kind, answer, found, environ, questions.seconds)
    findings += [*held, devices.environment(environ), *machine.examine(tree, kind)]
    if questions.workdir:
      findings += workdir.examine(tree, questions.workdir)
    findings.append(ports.own_name())
    if questions.peer:
      findings.append(ports.reach(questions.peer, questions.patience))
  return Report(host, now, findings + port)


def show(report: Report) -> str:
  """A line per finding, what to do below it."""
  lines = []
  width = max(len(f.item) for f in report.findings)
  for finding in report.findings:
    lines.append(f'{finding.verdict:<4}  {finding.item:<{width}}  {finding.text}')
    if finding.todo:
      lines.append(f'{"":<4}  {"":<{width}}    to do: {finding.todo}')
  return '\n'.join([*lines, verdict(report.findings)])


def verdict(findings: Sequence[Finding]) -> str:
  counts = collections.Counter(f.verdict for f in findings)
  if counts[FAIL]:
    return f'{counts[FAIL]} of {len(findings)} FAIL: a run would not start here, or not go on'
  if counts[WARN]:
    return f'a run can start; {counts[WARN]} warnings'
  return 'all is well'


def compare(reports: Mapping[str, Report | None]) -> list[str]:
  """What has to be the same on the workers of a run but is not, a line each with the worker's name.

  None: it gave no report. Of several opinions that of most workers is taken for the right one, of equally many
  that of the first worker.
  """
  lines = [f'{worker}: gave no report' for worker, report in reports.items() if report is None]
  return lines + [line for item, line in _differences(reports) if item not in _MAY_DIFFER]


def uneven(reports: Mapping[str, Report | None]) -> list[str]:
  """What slows a run where it differs: the slowest worker sets the pace. Clocks are compared here, too."""
  lines = [line for item, line in _differences(reports) if item in _MAY_DIFFER]
  there = {worker: report.time for worker, report in reports.items() if report is not None}
  first = min(there.values(), default=0.0)
  return lines + [
    f'{worker}: its clock is {then - first:,.0f} s ahead'
    for worker, then in there.items()
    if then - first > _CLOCKS
  ]


def _differences(reports: Mapping[str, Report | None]) -> list[tuple[str, str]]:
  """(item, line) of each worker, or workers, with another value than most."""
  there = {worker: report for worker, report in reports.items() if report is not None}
  values: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)  # what -> worker -> value
  for worker, report in there.items():
    for item, what, value in _values(report):
      values[item, what][worker] = value
  found = []
  for (item, what), said in values.items():
    whole = {worker: said.get(worker, 'none') for worker in there}
    most = collections.Counter(whole.values()).most_common(1)[0][0]
    for value in dict.fromkeys(whole.values()):
      if value != most:
        those = ', '.join(worker for worker, own in whole.items() if own == value)
        found.append((item, f'{those}: {what} is {value}, on the others {most}'))
  return found


def _values(report: Report) -> list[tuple[str, str, str]]:
  """(item, what, value)."""
  found = []
  for finding in report.findings:
    if isinstance(finding.value, dict):
      found += [(finding.item, f'{finding.item} {key}', _said(value)) for key, value in finding.value.items()]
    elif finding.value is not None:
      found.append((finding.item, finding.item, _said(finding.value)))
  return found


def _said(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def summary(reports: Mapping[str, Report | None]) -> tuple[str, int]:
  """What the workers of one run have to say, all that is ok left out; the exit code."""
  lines, findings = [], []
  for worker, report in reports.items():
    for finding in report.findings if report else ():
      findings.append(finding)
      if finding.verdict != OK:
        lines.append(f'{finding.verdict:<4}  {worker}  {finding.item}: {finding.text}')
        lines.append(f'{"":<4}  {"":<{len(worker)}}    to do: {finding.todo}')
  differ, slow = compare(reports), uneven(reports)
  lines += [f'{WARN}  {line}' for line in slow]
  lines += [f'{FAIL:<4}  {line}' for line in differ]
  bad = len(differ) + sum(f.verdict == FAIL for f in findings)
  if not bad:
    alike = 'almost alike' if slow else 'all alike'
    lines.append(f'{len(reports)} workers, {alike}; {verdict(findings)}')
  else:
    lines.append(f'{bad} FAIL on {len(reports)} workers: a run would not start, or not go on')
  return '\n'.join(lines), exits.MISTAKE if bad else exits.DONE
