"""Where this process stands among those of a run: told by flags, the environment, or found by jax."""

import contextlib
import dataclasses
import ipaddress
import os
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jax._src.clusters import ClusterEnv  # no public way to ask before joining

from llamax.core.errors import UserError

_HINT_SECONDS = 45.0
_DETECT_SECONDS = 300  # for the name of process 0 to be known to the network


@dataclasses.dataclass(frozen=True)
class Place:
  """Where this process stands among those of a run. found: what told so."""

  host: str
  port: int
  num_processes: int
  process_id: int
  found: str
  local_device_ids: list[int] | None = None

  @property
  def address(self) -> str:
    return f'[{self.host}]:{self.port}' if ':' in self.host else f'{self.host}:{self.port}'


def given(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Place | None:
  """The place that the arguments, else the environment, tell; None where they tell nothing."""
  found: dict[str, Any] = {
    '--coordinator (JAX_COORDINATOR_ADDRESS)': coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS'),
    '--num_processes (JAX_NUM_PROCESSES)': _number(num_processes, 'JAX_NUM_PROCESSES'),
    '--process_id (JAX_PROCESS_ID)': _number(process_id, 'JAX_PROCESS_ID'),
  }
  missing = [name for name, value in found.items() if value is None]
  if len(missing) == len(found):
    return None
  if missing:
    raise UserError(f'{", ".join(missing)}: missing; --coordinator, --num_processes, --process_id go together')
  address, count, rank = found.values()
  host, colon, port = address.rpartition(':')
  if not (colon and host.strip('[]') and port.isdigit() and 0 < int(port) < 65536):
    raise UserError(f'--coordinator={address}: want HOST:PORT of process 0, as in 10.0.0.1:8476')
  if count < 1 or not 0 <= rank < count:
    raise UserError(f'--process_id={rank} of --num_processes={count}: want 0 to {max(count - 1, 0)}')
  return Place(host.strip('[]'), int(port), count, rank, 'flags')


def _number(value: int | None, variable: str) -> int | None:
  text = os.environ.get(variable)
  if value is not None or text is None:
    return value
  if not text.strip().isdigit():
    raise UserError(f'{variable}={text!r} in the environment: want a number')
  return int(text)


def detected(say: Callable[[str], None]) -> Place | None:
  """The place that jax's detection finds; None with one process (a single TPU host looks like a pod to jax)."""
  tasks = os.environ.get('SLURM_NTASKS', '1')
  if tasks != '1' and 'SLURM_STEP_NODELIST' not in os.environ:
    say(f'SLURM_NTASKS={tasks}, but this was not started by srun: one process')
  for env in ClusterEnv._cluster_types:
    kind = env.__name__.removesuffix('Cluster')
    # Every pod of Kubernetes has the variables that jax looks for; only an indexed job has a rank.
    if env.opt_in_only_method or (kind == 'K8s' and 'JOB_COMPLETION_INDEX' not in os.environ):
      continue
    if not env.is_env_present():
      continue
    if env.get_process_count() == 1:
      return None
    port = os.environ.get('JAX_COORDINATOR_PORT')
    host, _, number = env.get_coordinator_address(_DETECT_SECONDS, port).rpartition(':')
    local = None if 'Tpu' in kind or _alone_on_its_node() else env.get_local_process_id()
    return Place(
      host.strip('[]'),
      int(number),
      env.get_process_count(),
      env.get_process_id(),
      kind,
      None if local is None else [local],
    )
  return None


def _alone_on_its_node() -> bool:
  """Whether this task of SLURM has all devices of its node; jax gives each task the one of its own number."""
  return bool(re.fullmatch(r'1(\(x\d+\))?', os.environ.get('SLURM_STEP_TASKS_PER_NODE', '')))


def check_address(place: Place, public: bool) -> str:
  """The coordinator's IP; UserError where process 0 cannot, or should not, listen on it."""
  try:
    ip = str(socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][4][0])
  except OSError as error:
    raise UserError(f'the coordinator {place.host!r} has no address here ({error}); give its IP') from None
  kind = ipaddress.ip_address(ip)
  # ::ffff:0.0.0.0 is 0.0.0.0 to the system, an address like any other to Python.
  kind = getattr(kind, 'ipv4_mapped', None) or kind
  ip = str(kind)
  if kind.is_unspecified:
    raise UserError(f'--coordinator={place.address}: name the one address of process 0 that the others reach')
  if kind.is_global and not public:
    raise UserError(
      f'the coordinator {place.address} is an address of the open internet ({ip}); it asks nobody for a '
      'password. Give an address inside the network, or --public_coordinator when a firewall stands before it'
    )
  if place.process_id == 0:
    with socket.socket(socket.AF_INET6 if kind.version == 6 else socket.AF_INET) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        probe.bind((ip, place.port))
      except OSError as error:
        raise UserError(
          f'process 0 cannot listen on {place.address} ({error.strerror}): it runs on the host that has this '
          'address, on a port that nothing else has'
        ) from None
  return ip


@contextlib.contextmanager
def waiting(place: Place, say: Callable[[str], None]) -> Iterator[None]:
  """Says after 45 s what to run on the other hosts; Ctrl-C ends the wait."""
  timer = threading.Timer(_HINT_SECONDS, lambda: say(hint(place)))
  timer.daemon = True
  timer.start()
  before = None
  with contextlib.suppress(ValueError):  # Not the main thread: Ctrl-C is not ours.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # jaxlib waits where Python's handler does not run.
  try:
    yield
  finally:
    timer.cancel()
    if before is not None:
      signal.signal(signal.SIGINT, before)


def hint(place: Place) -> str:
  """What to run where, for one who started a single process of several."""
  command = shlex.join(['llamax', *sys.argv[1:]])
  there = connected(place.port) if place.process_id == 0 else None
  if place.process_id != 0:
    who = f'process 0 at {place.address}, or for others'
  elif there is None:
    who = 'the others'
  else:
    who = f'{max(place.num_processes - there, 1)} of {place.num_processes} processes'
  how = {
    'flags': f'this command on every host, each with its own --process_id (0 to {place.num_processes - 1}):',
    'Slurm': 'it through srun:',
  }.get(
    place.found,
    'this command on every worker (gcloud compute tpus tpu-vm ssh NAME --worker=all --command=...):',
  )
  shown = f'srun {command}' if place.found == 'Slurm' else command
  return f'process {place.process_id} is still waiting for {who}. Run {how}\n  {shown}'


def connected(port: int) -> int | None:
  """How many processes have reached the coordinator of this host; None where that cannot be seen."""
  count = 0
  for table in ('/proc/net/tcp', '/proc/net/tcp6'):
    try:
      with open(table) as lines:
        rows = [line.split() for line in lines][1:]
    except OSError:
      return None
    count += sum(row[3] == '01' and int(row[1].rpartition(':')[2], 16) == port for row in rows)
  return count
