"""Which process holds a run directory, as one line of JSON that any host can judge."""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import socket
import uuid
from pathlib import Path

# Every text is padded to this many bytes: a renewal overwrites in place, which a full disk allows.
_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Process:
  """A process as other hosts, other boots of this host and later owners of its number can tell it apart."""

  host: str
  boot_id: str
  pid_namespace: str  # containers of one host may share its name, not its process numbers
  pid: int
  pid_started: int  # clock ticks after boot; 0: unknown

  def alive(self) -> bool | None:
    """Whether it runs, when `here` is on the same machine; None where that cannot be seen."""
    state, started = _stat(self.pid)
    if state:
      # A zombie has ended; only its parent has not asked yet.
      return started == self.pid_started and state not in 'ZX'
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return False
    except OSError:
      pass
    return None  # It is there, but /proc does not show it: another user's, or no Linux.

  def same_machine(self, other: 'Process') -> bool:
    mine, theirs = (
      (p.host, p.boot_id, p.pid_namespace) if p.boot_id and p.pid_namespace else None for p in (self, other)
    )
    return mine is not None and mine == theirs


@dataclasses.dataclass(frozen=True)
class Holder:
  """What the file of a lease says."""

  token: int
  process: Process
  started: str  # ISO 8601, UTC
  seconds: float  # it counts as gone when it has not renewed for so long
  renewals: int = 0
  renewed: float = 0.0  # wall clock: a hint alone, for it may jump or differ between hosts
  renewed_monotonic: float = 0.0  # the same for all processes since the boot of one machine
  released: bool = False
  identity: str = ''  # of this lease, should someone delete the folder and tokens start again

  def __str__(self) -> str:
    p = self.process
    return f'host {p.host}, process {p.pid}, started {self.started}'

  def to_bytes(self) -> bytes:
    text = json.dumps(dataclasses.asdict(self))
    assert len(text) < _BYTES, text
    return text.ljust(_BYTES - 1).encode() + b'\n'


def from_bytes(data: bytes) -> Holder | None:
  """None: torn, or just being written."""
  try:
    fields = json.loads(data)
    holder = Holder(**fields | {'process': Process(**fields['process'])})
    kinds = {'token': int, 'renewals': int, 'seconds': int | float, 'renewed_monotonic': int | float}
    return holder if all(isinstance(getattr(holder, k), kind) for k, kind in kinds.items()) else None
  except (ValueError, TypeError, KeyError):
    return None


def here() -> Process:
  """This process."""
  boot_id, namespace = _machine()
  return Process(socket.gethostname()[:255], boot_id, namespace, os.getpid(), _stat(os.getpid())[1])


def now_utc() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def new_identity() -> str:
  return uuid.uuid4().hex


@functools.cache
def _machine() -> tuple[str, str]:
  """(boot id, namespace of process numbers), each empty where there is no /proc."""
  boot_id = namespace = ''
  with contextlib.suppress(OSError):
    boot_id = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    namespace = os.readlink('/proc/self/ns/pid')
  return boot_id, namespace


def _stat(pid: int) -> tuple[str, int]:
  """(state, start in clock ticks after boot) of a process; ('', 0) where that cannot be read."""
  try:
    # The name in parentheses may hold anything, parentheses too.
    fields = Path(f'/proc/{pid}/stat').read_bytes().rpartition(b')')[2].split()
    return fields[0].decode(), int(fields[19])
  except (OSError, IndexError, ValueError):
    return '', 0
