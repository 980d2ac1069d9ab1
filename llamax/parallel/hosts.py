"""Starts the processes of a run as one, before jax looks at any device."""

import atexit
import contextlib
import ctypes
import glob
import importlib.util
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax._src import distributed, xla_bridge  # no public way to the coordinator, nor to gloo's address

from llamax.parallel.peers import Peers
from llamax.parallel.place import check_address, detected, given, waiting

_START_SECONDS = 1800  # for machines that come up one after the other
_SHUTDOWN_SECONDS = 120  # process 0 may still be drawing, uploading when the others are done


class Port(NamedTuple):
  """One kind of listening socket of a run."""

  what: str
  where: str  # which processes
  address: str
  number: str


# All that a run listens on: nothing in one process, these in several (quoted in docs/faults.md).
PORTS = (
  Port(
    'coordinator (gRPC)', 'process 0', 'the address in --coordinator, no other', 'the port in --coordinator'
  ),
  Port(
    'gloo (TCP)', 'every process', 'its address towards the coordinator, no other', 'free ones, system chosen'
  ),
)


_peers: Peers | None = None


def peers() -> Peers | None:
  """The other processes of this run; None in a run of one."""
  return _peers


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int,
  public: bool = False,
  say: Callable[[str], None] = print,
) -> None:
  """Joins the other processes of the run, where there are any; to be called before any device is asked for.

  The three arguments go together. Without them JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID of
  the environment, else what jax finds of SLURM, Open MPI, a TPU pod, GKE, where that has more than one process.

  Args:
    coordinator: HOST:PORT of process 0, which listens there. public: allow it an address of the open internet.
    heartbeat_seconds: a process unheard of for so long is dead, the others end.

  Raises:
    UserError: arguments that do not fit together, an address that process 0 cannot or should not listen on.
  """
  global _peers
  place = given(coordinator, num_processes, process_id) or detected(say)
  # Alone nothing is started, unless gloo is asked for: its sums over four devices and more are in another order
  # than those within a process, so that only with it the losses are those of several processes to the bit.
  gloo = os.environ.get('JAX_CPU_COLLECTIVES_IMPLEMENTATION') == 'gloo'
  if place is None or (place.num_processes == 1 and not gloo):
    return
  ip = check_address(place, public)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # It takes SIGTERM for itself, in C++; who is asked to stop is agreed on in llamax.parallel.agreement.
  jax.config.update('jax_enable_preemption_service', False)
  # gRPC would go to the coordinator through a proxy; jax only warns of that.
  direct = (os.environ.get('no_grpc_proxy'), place.host, ip)  # noqa: SIM112 (gRPC's spelling)
  os.environ['no_grpc_proxy'] = ','.join(filter(None, direct))  # noqa: SIM112
  jax.config.update('jax_check_proxy_envs', False)
  with waiting(place, say):
    jax.distributed.initialize(
      place.address,
      place.num_processes,
      place.process_id,
      local_device_ids=place.local_device_ids,
      cluster_detection_method='deactivate',
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
      coordinator_bind_address=f'[{ip}]:{place.port}' if ':' in ip else f'{ip}:{place.port}',
    )
  bind_gloo(own_address(ip, place.port))
  _peers = Peers(distributed.global_state.client, place.process_id, place.num_processes, (ip, place.port))
  _peers.start()
  _on_abort(_peers.aborting)
  atexit.register(_peers.close)  # runs before jax's farewell, which was registered earlier


@contextlib.contextmanager
def as_one() -> Iterator[None]:
  """An error in the block ends the other processes too, with a line that says whose it was."""
  try:
    yield
  except BaseException as error:
    if _peers:
      _peers.fail(error)
    raise


def own_address(ip: str, port: int) -> str:
  """This host's address on the way to the coordinator; no packet is sent to find it."""
  family = socket.AF_INET6 if ':' in ip else socket.AF_INET
  with socket.socket(family, socket.SOCK_DGRAM) as probe:
    probe.connect((ip, port))
    return probe.getsockname()[0]


def bind_gloo(ip: str) -> None:
  """The CPU's collectives listen on `ip`; else they take whatever address the host's name has."""

  def make_client():
    from jax._src.lib import _jax

    collectives = _jax.make_gloo_tcp_collectives(
      distributed_client=distributed.global_state.client, hostname=ip
    )
    return xla_bridge.make_cpu_client(collectives=collectives)

  xla_bridge.register_backend_factory('cpu', make_client, priority=0, fail_quietly=False)


_abort_handler: Any = None


def _on_abort(act: Callable[[], None]) -> None:
  """Calls `act` when C++ aborts this process, in the thread that does; Python's own handlers run too late."""
  global _abort_handler
  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
  _abort_handler = kind(lambda number: act())  # kept: C holds no reference
  libc = ctypes.CDLL(None)
  libc.signal.restype = ctypes.c_void_p
  libc.signal.argtypes = (ctypes.c_int, kind)
  libc.signal(signal.SIGABRT, _abort_handler)


def skip_absent_tpu() -> None:
  """Keeps jax from looking for a TPU on a machine that has libtpu (to compile with) and no TPU."""
  installed = importlib.util.find_spec('libtpu') is not None
  if installed and not (_has_tpu() or _has_gpu() or os.environ.get('JAX_PLATFORMS')):
    jax.config.update('jax_platforms', 'cpu')


def _has_gpu() -> bool:
  return os.path.exists('/dev/nvidiactl')


def _has_tpu() -> bool:
  return bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))


def platform() -> tuple[str, str | None]:
  """The backend in use, with a warning line when jax fell back to the CPU beside an accelerator."""
  name = jax.default_backend()
  if name != 'cpu' or os.environ.get('JAX_PLATFORMS') == 'cpu':
    return name, None
  if _has_gpu():
    return (
      name,
      "this machine has an NVIDIA GPU, jax uses the CPU: pip install 'jax[cuda12]' of this jax version",
    )
  if _has_tpu():
    return name, "this machine has a TPU, jax uses the CPU: pip install 'jax[tpu]', or see who holds the TPU"
  return name, None
