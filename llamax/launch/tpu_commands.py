"""The command lines of gcloud for TPU virtual machines, their queue."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamax.launch.action import Part, Run, Secret, Together
from llamax.launch.tpus import Slice

# A machine that is gone says nothing: without these its connection would stand for hours.
_PATIENCE = ('ConnectTimeout=20', 'ServerAliveInterval=15', 'ServerAliveCountMax=4')
# Bytes of a script as an argument: Linux takes 128 KiB, on this machine and on the worker.
_LONGEST = 100_000
_ANSWER = re.compile(r'^llamax-worker (\S+) (\{.*\})$', re.MULTILINE)


@dataclass(frozen=True)
class Place:
  """Some slices of TPU virtual machines, alike, under one name.

  Args:
    queued: asked for through a queue, which waits until there are some; else given at once, or refused.
    tier: 'spot', 'reserved', '' on demand.
    runtime: the machines' system image.
    flags: more words for the command that asks for them: network, service account.
    internal_ip: reached by their addresses inside the network.
  """

  name: str
  slice: Slice
  slices: int
  zone: str
  project: str
  tier: str
  queued: bool
  runtime: str
  flags: tuple[str, ...] = ()
  internal_ip: bool = False

  @property
  def nodes(self) -> tuple[str, ...]:
    """Names of the slices: a node of the Cloud TPU API is a slice."""
    return (self.name,) if self.slices == 1 else tuple(f'{self.name}-{index}' for index in range(self.slices))

  @property
  def workers(self) -> int:
    """Virtual machines in all."""
    return self.slices * self.slice.hosts

  @property
  def chips(self) -> int:
    return self.slices * self.slice.chips

  def create(self) -> Run:
    tier = (f'--{self.tier}',) if self.tier else ()
    shared = (
      f'--accelerator-type={self.slice.accelerator}',
      *tier,
      f'--labels=llamax={self.name}',
      *self.flags,
    )
    what = f'{self.slices} x {self.slice.accelerator}' + (f', {self.tier}' if self.tier else '')
    if not self.queued:
      words = self._gcloud('tpu-vm', 'create', (self.name,), *shared, f'--version={self.runtime}')
      return Run(words, f'asks for {what}: given at once, or refused')
    nodes = (
      (f'--node-id={self.name}',)
      if self.slices == 1
      else (f'--node-count={self.slices}', f'--node-prefix={self.name}')
    )
    words = self._gcloud(
      'queued-resources', 'create', (self.name,), *nodes, *shared, f'--runtime-version={self.runtime}'
    )
    return Run(words, f'asks for {what}: in the queue until there are some')

  def describe_request(self) -> Run:
    words = self._gcloud('queued-resources', 'describe', (self.name,), '--format=json')
    return Run(words, 'what became of the request')

  def list_nodes(self) -> Run:
    words = self._gcloud('tpu-vm', 'list', (), f'--filter=labels.llamax={self.name}', '--format=json')
    return Run(words, 'the state of the machines')

  def delete(self) -> Run:
    if not self.queued:
      return self.delete_node(self.name)
    words = self._gcloud('queued-resources', 'delete', (self.name,), '--force', '--quiet')
    return Run(words, 'gives the machines back, forgets the request')

  def delete_node(self, node: str) -> Run:
    return Run(self._gcloud('tpu-vm', 'delete', (node,), '--quiet'), 'gives the machines back')

  def send(self, files: Sequence[str]) -> Together:
    """Copies files to the home on every worker."""
    flags = [f'--scp-flag=-o{option}' for option in _PATIENCE]
    runs = [
      Run(self._gcloud('tpu-vm', 'scp', (*files, f'{node}:'), '--worker=all', *flags, *self._route()), node)
      for node in self.nodes
    ]
    return Together(tuple(runs), 'sends the code to all workers')

  def tell(self, script: str, why: str) -> Together:
    """Runs a script on every worker."""
    return Together(tuple(self.ssh(node, 'all', script, why) for node in self.nodes), why)

  def tell_parts(self, parts: Sequence[Part], why: str) -> Together:
    """The same; with secrets in it, or long, it travels over the standard input, of one worker each."""
    if not any(isinstance(part, Secret) for part in parts):
      script = ''.join(str(part) for part in parts)
      if len(script.encode()) <= _LONGEST:
        return self.tell(script, why)
    runs = [
      self.ssh(node, str(number), 'bash -s', why, stdin=tuple(parts))
      for node in self.nodes
      for number in range(self.slice.hosts)
    ]
    return Together(tuple(runs), why)

  def ssh(self, node: str, worker: str, script: str, why: str, stdin: tuple[Part, ...] = ()) -> Run:
    label = str(self.nodes.index(node)) if self.slices > 1 else ''
    flags = [f'--ssh-flag=-o{option}' for option in _PATIENCE]
    words = self._gcloud(
      'tpu-vm', 'ssh', (node,), f'--worker={worker}', *flags, *self._route(), f'--command={script}'
    )
    return Run(words, why, stdin=stdin, label=label)

  def shell(self, slice_number: int, worker: int) -> Run:
    """A terminal on one worker."""
    node = self.nodes[slice_number]
    words = self._gcloud('tpu-vm', 'ssh', (node,), f'--worker={worker}', *self._route())
    return Run(words, f'a shell on worker {worker} of {node}', interactive=True)

  def _gcloud(self, noun: str, verb: str, names: tuple[str, ...], *flags: str) -> tuple[str, ...]:
    where = [f'--zone={self.zone}'] * bool(self.zone) + [f'--project={self.project}'] * bool(self.project)
    return ('gcloud', 'compute', 'tpus', noun, verb, *names, *where, *flags)

  def _route(self) -> tuple[str, ...]:
    return ('--internal-ip',) if self.internal_ip else ()


def answers(out: str) -> dict[str, Mapping]:
  """Number of the worker -> what it said, from the lines of a script of tpu_scripts.py."""
  found = {}
  for number, text in _ANSWER.findall(out):
    try:
      found[number] = json.loads(text)
    except ValueError:
      continue
  return found
