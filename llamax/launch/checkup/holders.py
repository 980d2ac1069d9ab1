"""Who holds the accelerators of this machine: processes that have their device files open."""

import contextlib
import os
import pwd
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from llamax.launch.checkup.finding import FAIL, OK, WARN, Finding, one_line
from llamax.launch.checkup.hardware import Hardware
from llamax.launch.checkup.tree import Tree

LOCKFILE = '/tmp/libtpu_lockfile'


@dataclass(frozen=True)
class Holder:
  pid: int
  user: str
  command: str
  nodes: tuple[str, ...]

  def __str__(self) -> str:
    return f'process {self.pid} of {self.user} ({self.command}) holds {", ".join(self.nodes)}'


def holders(tree: Tree, nodes: Sequence[str]) -> tuple[list[Holder], int]:
  """Those that have one of `nodes` open; how many processes are not ours to look into."""
  found, hidden = [], 0
  for pid in tree.processes():
    try:
      links = os.listdir(tree.at(f'/proc/{pid}/fd'))
    except PermissionError:
      hidden += 1
      continue
    except OSError:  # It has ended.
      continue
    held = {tree.link(f'/proc/{pid}/fd/{link}') for link in links} & set(nodes)
    if held:
      found.append(Holder(pid, user_of(tree, pid), command_of(tree, pid), tuple(sorted(map(str, held)))))
  return found, hidden


def user_of(tree: Tree, pid: int) -> str:
  status = tree.read(f'/proc/{pid}/status') or ''
  line = next((line for line in status.splitlines() if line.startswith('Uid:')), '')
  words = line.split()
  if len(words) < 2:
    return 'an unknown user'
  with contextlib.suppress(KeyError, ValueError):
    return pwd.getpwuid(int(words[1])).pw_name
  return f'user {words[1]}'


def command_of(tree: Tree, pid: int) -> str:
  words = (tree.read(f'/proc/{pid}/cmdline') or '').rstrip('\0').split('\0')
  return one_line(shlex.join(words) if words != [''] else tree.read(f'/proc/{pid}/comm') or 'unknown', 120)


def examine(tree: Tree, hardware: Hardware) -> list[Finding]:
  """No finding where there is no accelerator to hold."""
  if hardware.kind is None:
    return []
  found, hidden = holders(tree, hardware.nodes)
  findings = []
  for holder in found:
    todo = f'wait for it, or end it: kill {holder.pid} (then kill -9 {holder.pid})'
    if hardware.kind == 'tpu':  # One process at a time; a GPU is shared, its memory is not.
      findings.append(Finding('holder', FAIL, str(holder), todo))
    else:
      findings.append(Finding('holder', WARN, f'{holder}; jax takes 75 % of its memory at the start', todo))
  if not found and hidden:
    findings.append(
      Finding(
        'holder',
        WARN,
        f'none seen, but {hidden} processes of other users could not be looked at',
        'sudo llamax doctor looks at all of them',
      )
    )
  elif not found:
    findings.append(Finding('holder', OK, 'nobody holds the accelerator'))
  if hardware.kind == 'tpu' and tree.exists(LOCKFILE) and not found:
    findings.append(
      Finding(
        'holder',
        WARN,
        f'{LOCKFILE} is there, no holder was seen: left by a process that was killed, perhaps of another user',
        f'if jax says that the TPU is in use: sudo rm {LOCKFILE}',
      )
    )
  return findings
