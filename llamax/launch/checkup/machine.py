"""The rest of a machine that a run feels: cores, memory, limits, huge pages, the clock."""

import ctypes
import datetime
import os
import resource
import socket
import sys
import time

from llamax.launch.checkup.finding import FAIL, OK, WARN, Finding
from llamax.launch.checkup.hardware import Hardware
from llamax.launch.checkup.tree import Tree

_LOW_MEMORY = 2e9
_LOW_SHARED = {'gpu': 1e9}  # NCCL moves data between the processes of a host through it
_FILES = 4096
_YEARS = (2025, 2100)
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
UNSET = 1 << 60  # bytes; a cgroup without a limit says a number near 2^63


def examine(tree: Tree, kind: Hardware) -> list[Finding]:
  return [
    host(),
    cores(tree, len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count() or 1),
    memory(tree),
    shared_memory(tree, kind),
    open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
    huge_pages(tree, kind),
    clock(time.time(), synchronized()),
  ]


def host() -> Finding:
  system = os.uname()
  return Finding('host', OK, f'{socket.gethostname()}, {system.sysname} {system.release} {system.machine}')


def cores(tree: Tree, allowed: int) -> Finding:
  """The cores that this process may use, of those that the machine has."""
  total = (tree.read('/proc/cpuinfo') or '').count('processor\t:') or os.cpu_count() or 1
  quota = _quota(tree)
  usable = min(allowed, quota or allowed)
  text = f'{usable:.4g} of {total}' + (
    f' (the container may use {quota:.4g})' if quota and quota < allowed else ''
  )
  if usable < 2 and total > 2:
    todo = (
      'give the job more: in SLURM --exclusive, or --cpus-per-task for sbatch and srun; in a container --cpus'
    )
    return Finding('cores', WARN, f'{text}: reading data, compiling will be slow', todo, value=usable)
  return Finding('cores', OK, text, value=usable)


def _quota(tree: Tree) -> float | None:
  """Cores that the control group allows; None: no limit."""
  words = (tree.read('/sys/fs/cgroup/cpu.max') or '').split()  # "200000 100000" of version 2
  if len(words) == 2 and words[0].isdigit() and int(words[1]):
    return int(words[0]) / int(words[1])
  quota = tree.read('/sys/fs/cgroup/cpu/cpu.cfs_quota_us')  # of version 1
  period = tree.read('/sys/fs/cgroup/cpu/cpu.cfs_period_us')
  if quota and period and quota.isdigit() and period.isdigit() and int(quota) and int(period):
    return int(quota) / int(period)
  return None


def memory(tree: Tree) -> Finding:
  """Bytes there, free, within the control group's limit."""
  facts = dict(line.split(':', 1) for line in (tree.read('/proc/meminfo') or '').splitlines() if ':' in line)
  if 'MemTotal' not in facts:
    return Finding('memory', OK, 'the system does not tell')
  total, free = (int(facts.get(name, '0').split()[0]) * 1024 for name in ('MemTotal', 'MemAvailable'))
  limits = [tree.read(f'/sys/fs/cgroup/{name}') for name in ('memory.max', 'memory/memory.limit_in_bytes')]
  limit = min((int(text) for text in limits if text and text.isdigit()), default=UNSET)
  text = f'{free / 1e9:.1f} GB free of {total / 1e9:.1f}'
  if limit < total:
    used = tree.read('/sys/fs/cgroup/memory.current') or ''
    free = min(free, limit - (int(used) if used.isdigit() else 0))
    text += f', the container may use {limit / 1e9:.1f} (free: {free / 1e9:.1f})'
  value = round(min(total, limit) / 1e9)
  if free < _LOW_MEMORY:
    todo = 'end other programs, or take a larger machine: the weights pass through the memory of the host'
    return Finding('memory', WARN, text, todo, value)
  return Finding('memory', OK, text, value=value)


def shared_memory(tree: Tree, kind: Hardware) -> Finding:
  try:
    found = os.statvfs(tree.at('/dev/shm'))
  except OSError:
    return Finding('shared memory', WARN, 'no /dev/shm', 'mount a tmpfs there: mount -t tmpfs tmpfs /dev/shm')
  size = found.f_blocks * found.f_frsize
  text = f'{size / 1e9:.2f} GB in /dev/shm'
  if size < _LOW_SHARED.get(kind.kind or '', 0):
    return Finding('shared memory', WARN, text, 'NCCL needs more: in a container --shm-size=8g')
  return Finding('shared memory', OK, text)


def open_files(soft: int, hard: int) -> Finding:
  """The limit of `ulimit -n`."""
  if soft == resource.RLIM_INFINITY or soft >= _FILES:
    return Finding('open files', OK, 'no limit' if soft == resource.RLIM_INFINITY else f'{soft:,}')
  may = hard == resource.RLIM_INFINITY or hard >= _FILES
  todo = (
    'ulimit -n 65536' if may else 'raise nofile in /etc/security/limits.conf, or LimitNOFILE of the service'
  )
  verdict = FAIL if soft < 256 else WARN
  return Finding('open files', verdict, f'{soft:,}: checkpoints, many shards of data open more', todo)


def huge_pages(tree: Tree, kind: Hardware) -> Finding:
  text = tree.read('/sys/kernel/mm/transparent_hugepage/enabled')
  if text is None:
    return Finding('huge pages', OK, 'the system does not tell')
  if kind.kind == 'tpu' and '[always]' not in text:
    todo = "sudo sh -c 'echo always > /sys/kernel/mm/transparent_hugepage/enabled'"
    return Finding('huge pages', WARN, f'{text}: a TPU starts, ends much slower', todo)
  return Finding('huge pages', OK, text)


def synchronized() -> bool | None:
  """Whether the kernel holds its clock for set by another one; None: it does not tell. Asks no network."""
  try:
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
  except (OSError, AttributeError):
    return None
  return None if state < 0 else state != _TIME_ERROR


def clock(now: float, in_step: bool | None) -> Finding:
  date = datetime.datetime.fromtimestamp(now, datetime.UTC)
  text = date.strftime('%Y-%m-%d %H:%M:%S UTC')
  if not _YEARS[0] <= date.year < _YEARS[1]:
    todo = 'set the clock (timedatectl set-ntp true): with this one no download, no bucket answers'
    return Finding('clock', FAIL, text, todo)
  if in_step is False:
    return Finding('clock', OK, f'{text}; not kept in step by this kernel (usual in a container)')
  return Finding('clock', OK, text)
