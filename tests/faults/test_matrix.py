"""A checkpoint restores on any mesh, in any number of processes, with the same bytes."""

import json
import re
import socket
from pathlib import Path

import pytest

from tests.faults.forked import ForkServer

ROUND = Path(__file__).with_name('matrix_round.py')


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def digests(servers, tmp_path, count, function, *words):
  """What process 0 of `count` printed."""
  address = f'127.0.0.1:{free_port()}'
  logs = [tmp_path / f'{function}-{count}-{i}' for i in range(count)]
  server = servers(8 // count)
  running = [
    server.start([address, count, i, *words], log, call=f'{ROUND}:{function}') for i, log in enumerate(logs)
  ]
  codes = [child.wait(240) for child in running]
  assert codes == [0] * count, '\n'.join(child.screen() for child in running)
  return re.findall(r'DIGEST (\w+)', logs[0].read_text())


@pytest.fixture(scope='module')
def servers():
  """devices -> a fork server of processes with so many."""
  made = {}

  def get(devices):
    if devices not in made:
      made[devices] = ForkServer(devices).__enter__()
    return made[devices]

  yield get
  for server in made.values():
    server.__exit__()


def test_ten_meshes_by_one_two_and_four_processes(servers, tmp_path, scale):
  one, four = tmp_path / 'one', tmp_path / 'four'
  (written,) = digests(servers, tmp_path, 1, 'save', one, json.dumps([2, 2, 2]))
  folders = [one]
  if scale(quick=0, ci=1, soak=1):
    (again,) = digests(servers, tmp_path, 4, 'save', four, json.dumps([1, 4, 2]))
    assert again == written
    folders.append(four)
  counts = scale(quick=(2,), ci=(1, 2, 4), soak=(1, 2, 4))
  for count in counts:
    restored = digests(servers, tmp_path, count, 'restore', *folders)
    assert len(restored) == 10 * len(folders) and set(restored) == {written}, count
  print(f'\n{10 * len(folders) * len(counts)} restores, all of them {written[:12]}')
