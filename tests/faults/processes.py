"""Runs of several real processes on the loopback address, over one logical mesh of four devices."""

import socket
import time
from pathlib import Path

from tests.faults.forked import Child, ForkServer, with_devices, words

DEVICES = 4
HOST = Path(__file__).with_name('host.py')


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


class Several:
  """The processes of one run, by rank."""

  def __init__(self, children: list[Child], address: str):
    self.children, self.address = children, address

  def __getitem__(self, rank: int) -> Child:
    return self.children[rank]

  def codes(self, seconds: float) -> list[int]:
    """The exit codes, once all have ended; AssertionError when one lives longer than that."""
    end = time.monotonic() + seconds
    try:
      return [child.wait(max(0.1, end - time.monotonic())) for child in self.children]
    finally:
      self.kill()

  def kill(self) -> None:
    for child in self.children:
      child.kill()

  def screens(self) -> str:
    return '\n'.join(
      f'[{rank}] {line}' for rank, c in enumerate(self.children) for line in c.screen().splitlines()
    )

  def wait_for(self, text: str, seconds: float = 90, rank: int = 0) -> None:
    """Until `text` is on the screen of a process."""
    end = time.monotonic() + seconds
    while text not in self.children[rank].screen():
      alive = not any(child.ended.is_set() for child in self.children)
      if not alive or time.monotonic() > end:
        self.kill()
        raise AssertionError(f'{text!r} did not come:\n{self.screens()}')
      time.sleep(0.02)


def start(
  server: ForkServer,
  count: int,
  data: Path,
  workdir: Path,
  faults: dict[int, str] | None = None,
  others: list[str] | None = None,
  **changes,
) -> Several:
  """`llamax train` in `count` processes with DEVICES / count devices each.

  faults: rank -> FAULT of host.py. others: more arguments, which process 0 does not get.
  """
  config = {
    'mesh.data': 1,
    'mesh.fsdp': 2,
    'mesh.tensor': 2,
    'train.batch_size': 4,
    'eval.every': 'none',
    'eval.splits': '()',
    'sample.prompts': '()',
    'watchdog.heartbeat_seconds': 10,
    **changes,
  }
  run = words(data, workdir, **config)
  port, children = free_port(), []
  for rank in range(count):
    several = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}', f'--process_id={rank}']
    log = workdir.parent / f'screen-{workdir.name}-{count}-{rank}'
    log.write_text('')  # There to be read before the child opens it.
    env = with_devices(DEVICES // count)
    if faults and rank in faults:
      env['FAULT'] = faults[rank]
    child = server.start(
      [*run, *(several if count > 1 else []), *(others if others and rank else [])],
      log,
      call=f'{HOST}:train',
      **env,
    )
    children.append(child)
  return Several(children, f'127.0.0.1:{port}')
