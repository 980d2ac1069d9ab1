"""Whether the processes of a run could reach each other: names, ports, peers."""

import contextlib
import ipaddress
import selectors
import socket
import threading
import time
from collections.abc import Iterator

from llamax.core.errors import UserError
from llamax.launch.checkup.finding import FAIL, OK, WARN, Finding
from llamax.launch.checkup.holders import command_of, user_of
from llamax.launch.checkup.tree import Tree

_TRY_SECONDS = 5.0  # of one connection; a firewall that drops lets it wait
_HELLO = b'llamax doctor\n'


def split(address: str, flag: str) -> tuple[str, int]:
  """'HOST:PORT' or '[V6]:PORT'; UserError for anything else."""
  host, colon, port = address.rpartition(':')
  if not (colon and host.strip('[]') and port.isdecimal() and 0 < int(port) < 65536):
    raise UserError(f'{flag}={address}: want HOST:PORT, as in 10.0.0.1:8476')
  return host.strip('[]'), int(port)


def own_name() -> Finding:
  """What this host's own name stands for."""
  name = socket.gethostname()
  try:
    found = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
  except OSError as error:
    todo = 'give --coordinator the address of the first host, not its name; or mend /etc/hosts, the DNS'
    return Finding('name', WARN, f'{name} has no address here ({error.strerror or error})', todo)
  text = f'{name} is {", ".join(found)}'
  if all(_is_loopback(one) for one in found):
    text += ': a run of several hosts needs another address of this one as its coordinator'
  return Finding('name', OK, text)


def _is_loopback(address: str) -> bool:
  return ipaddress.ip_address(address.partition('%')[0]).is_loopback


def _only_here(host: str, address: str) -> bool:
  """Whether `host` is a name that other hosts know as theirs or as another address: not loopback itself."""
  with contextlib.suppress(ValueError):
    ipaddress.ip_address(host)
    return False
  return _is_loopback(address) and host.partition('.')[0] != 'localhost'


class Listener:
  """Listens on the coordinator's port while the other checks run; greets who connects."""

  def __init__(self, host: str, port: int):
    """Raises OSError where that address cannot be listened on."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    self._socket = socket.socket(info[0], info[1])
    try:
      self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      self._socket.bind(info[4])
      self._socket.listen(1024)
    except OSError:
      self._socket.close()
      raise
    self.address = str(info[4][0])
    self.met = 0
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._serve, daemon=True)
    self._thread.start()

  def _serve(self) -> None:
    with selectors.DefaultSelector() as selector:
      selector.register(self._socket, selectors.EVENT_READ)
      while not self._closed.is_set():
        if selector.select(0.1):
          with contextlib.suppress(OSError):
            one, _ = self._socket.accept()
            with one:
              one.sendall(_HELLO)
              self.met += 1

  def wait(self, peers: int, seconds: float) -> None:
    """Until so many peers came, or the time is over."""
    end = time.monotonic() + seconds
    while self.met < peers and time.monotonic() < end:
      time.sleep(0.05)

  def close(self) -> None:
    self._closed.set()
    self._thread.join()
    self._socket.close()


@contextlib.contextmanager
def listening(tree: Tree, address: str | None, peers: int, seconds: float) -> Iterator[list[Finding]]:
  """Findings on that port, complete after the block: `peers` others have until then and `seconds` more."""
  findings: list[Finding] = []
  if address is None:
    yield findings
    return
  host, port = split(address, '--listen')
  if host in ('0.0.0.0', '::', '*'):
    raise UserError(f'--listen={address}: name the one address of this machine that the others reach')
  try:
    listener = Listener(host, port)
  except OSError as error:
    holder = holder_of(tree, port)
    what = f'cannot listen on {address}: {error.strerror or error}' + (f'; {holder}' if holder else '')
    todo = 'another port; or end what holds it; or run this on the host that has the address'
    findings.append(Finding('port', FAIL, what, todo))
    yield findings
    return
  try:
    yield findings
    listener.wait(peers, seconds)
    text = f'{address} ({listener.address}) can be listened on'
    if _only_here(host, listener.address):
      todo = f'take the line of {host} out of /etc/hosts, or give the coordinator by its address'
      findings.append(
        Finding('port', FAIL, f'{host} is {listener.address} here: no other host reaches it', todo)
      )
    elif peers and listener.met < peers:
      todo = 'see which workers FAIL at peer: a firewall between them, or another network'
      findings.append(Finding('port', FAIL, f'{text}, but {listener.met} of {peers} others came', todo))
    else:
      came = f'; {listener.met} others came' if peers else ''
      findings.append(Finding('port', OK, text + came))
  finally:
    listener.close()


def reach(address: str, seconds: float) -> Finding:
  """Whether a connection to HOST:PORT comes about within `seconds`: who listens there may come later."""
  host, port = split(address, '--peer')
  end, first = time.monotonic() + seconds, True
  while True:
    start = time.monotonic()
    try:
      with socket.create_connection((host, port), timeout=_TRY_SECONDS) as link:
        own, took = link.getsockname()[0], time.monotonic() - start
        return Finding('peer', OK, f'{address} answers in {took * 1e3:.1f} ms, from {own} here')
    except socket.gaierror as error:
      todo = 'give an address instead of the name, or mend /etc/hosts, the DNS'
      return Finding('peer', FAIL, f'{host} has no address here ({error.strerror or error})', todo)
    except ConnectionRefusedError:
      why, verdict = 'can be reached, but nothing listens there', WARN
      todo = f'start there, at the same time: llamax doctor --listen={address}'
    except TimeoutError:
      why, verdict = f'does not answer in {_TRY_SECONDS:.0f} s', FAIL
      todo = 'a firewall drops it: let the hosts of a run reach each other on all ports above 1024'
    except OSError as error:
      why, verdict, todo = (
        f'cannot be reached ({error.strerror or error})',
        FAIL,
        'look at the network between them',
      )
    if time.monotonic() > end and not first:
      return Finding('peer', verdict, f'{address} {why}', todo)
    first = False
    time.sleep(0.3)


def holder_of(tree: Tree, port: int) -> str:
  """'process 7 of root (nginx) listens there', as far as this user may know; '' where nobody listens."""
  inodes = set()
  for table in ('/proc/net/tcp', '/proc/net/tcp6'):
    for line in (tree.read(table) or '').splitlines()[1:]:
      words = line.split()
      if len(words) > 9 and words[3] == '0A' and int(words[1].rpartition(':')[2], 16) == port:
        inodes.add(f'socket:[{words[9]}]')
  for pid in tree.processes() if inodes else ():
    for link in tree.names(f'/proc/{pid}/fd'):
      if tree.link(f'/proc/{pid}/fd/{link}') in inodes:
        return f'process {pid} of {user_of(tree, pid)} ({command_of(tree, pid)}) listens there'
  return 'a process of another user listens there' if inodes else ''
