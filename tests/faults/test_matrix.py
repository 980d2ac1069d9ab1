"""A checkpoint restores on any mesh, in any number of processes, with the same bytes."""

import json
import re
import socket
from pathlib import Path

from tests.faults.forked import with_devices

ROUND = Path(__file__).with_name('matrix_round.py')


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def digests(forks, tmp_path, count, function, *words):
  """What process 0 of `count` printed."""
  address = f'127.0.0.1:{free_port()}'
  logs = [tmp_path / f'{function}-{count}-{i}' for i in range(count)]
  call, devices = f'{ROUND}:{function}', with_devices(8 // count)
  running = [forks.start([address, count, i, *words], log, call, **devices) for i, log in enumerate(logs)]
  codes = [child.wait(240) for child in running]
  assert codes == [0] * count, '\n'.join(child.screen() for child in running)
  return re.findall(r'DIGEST (\w+)', logs[0].read_text())


def test_ten_meshes_by_one_two_and_four_processes(server, tmp_path, scale):
  one, four = tmp_path / 'one', tmp_path / 'four'
  (written,) = digests(server, tmp_path, 1, 'save', one, json.dumps([2, 2, 2]))
  folders = [one]
  if scale(quick=0, ci=1, soak=1):
    (again,) = digests(server, tmp_path, 4, 'save', four, json.dumps([1, 4, 2]))
    assert again == written
    folders.append(four)
  counts = scale(quick=(2,), ci=(1, 2, 4), soak=(1, 2, 4))
  meshes = scale(quick=4, ci=10, soak=10)
  for count in counts:
    restored = digests(server, tmp_path, count, 'restore', meshes, *folders)
    assert len(restored) == meshes * len(folders) and set(restored) == {written}, count
  print(f'\n{meshes * len(folders) * len(counts)} restores, all of them {written[:12]}')
