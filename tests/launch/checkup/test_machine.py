"""Cores, memory, limits, pages, clock: from the files of Linux, also of a container."""

import resource

import pytest

from llamax.launch.checkup import machine
from llamax.launch.checkup.finding import FAIL, OK, WARN
from llamax.launch.checkup.hardware import Hardware

TPU, GPU, NONE = (Hardware(kind, 1, '', ()) for kind in ('tpu', 'gpu', None))
CORES = {'/proc/cpuinfo': 'processor\t: 0\n' * 8}
OLD = '/sys/fs/cgroup/cpu'  # of version 1
MEMORY = {'/proc/meminfo': 'MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB'}


@pytest.mark.parametrize(
  ('files', 'allowed', 'verdict', 'value'),
  [
    ({}, 8, OK, 8),
    ({}, 1, WARN, 1),  # SLURM without --cpus-per-task
    ({'/sys/fs/cgroup/cpu.max': '150000 100000'}, 8, WARN, 1.5),
    ({'/sys/fs/cgroup/cpu.max': 'max 100000'}, 8, OK, 8),
    ({f'{OLD}/cpu.cfs_quota_us': '400000', f'{OLD}/cpu.cfs_period_us': '100000'}, 8, OK, 4),
    ({f'{OLD}/cpu.cfs_quota_us': '-1', f'{OLD}/cpu.cfs_period_us': '100000'}, 8, OK, 8),
  ],
)  # fmt: skip
def test_cores(tree, files, allowed, verdict, value):
  finding = machine.cores(tree({**CORES, **files}), allowed)
  assert (finding.verdict, finding.value) == (verdict, value) and 'of 8' in finding.text


def test_memory(tree):
  finding = machine.memory(tree(MEMORY))
  assert finding.verdict == OK and finding.text == '8.2 GB free of 16.4' and finding.value == 16
  limits = {'/sys/fs/cgroup/memory.max': '4000000000', '/sys/fs/cgroup/memory.current': '3000000000'}
  finding = machine.memory(tree({**MEMORY, **limits}))
  assert finding.verdict == WARN and '4.0 (free: 1.0)' in finding.text and finding.value == 4


def test_memory_without_a_limit(tree):
  assert machine.memory(tree({**MEMORY, '/sys/fs/cgroup/memory.max': 'max'})).value == 16
  assert (
    machine.memory(tree({**MEMORY, '/sys/fs/cgroup/memory/memory.limit_in_bytes': str(2**63 - 4096)})).value
    == 16
  )


def test_open_files():
  verdicts = [machine.open_files(*pair).verdict for pair in ((65536, 65536), (1024, 65536), (100, 100))]
  assert verdicts == [OK, WARN, FAIL]
  assert machine.open_files(resource.RLIM_INFINITY, resource.RLIM_INFINITY).verdict == OK
  assert machine.open_files(1024, 1024).todo != machine.open_files(1024, 65536).todo


def test_huge_pages(tree):
  fake = tree({'/sys/kernel/mm/transparent_hugepage/enabled': 'always [madvise] never\n'})
  assert machine.huge_pages(fake, TPU).verdict == WARN and machine.huge_pages(fake, GPU).verdict == OK
  assert machine.huge_pages(tree(), TPU).verdict == OK  # It does not tell.


def test_shared_memory(tree):
  assert machine.shared_memory(tree(), NONE).verdict == WARN
  fake = tree({'/dev/shm/x': ''})
  assert machine.shared_memory(fake, NONE).verdict == OK


@pytest.mark.parametrize(('now', 'verdict'), [(0.0, FAIL), (1.79e9, OK), (1e10, FAIL)])
def test_clock(now, verdict):
  assert machine.clock(now, True).verdict == verdict


def test_a_clock_on_its_own_is_said():
  assert 'not kept in step' in machine.clock(1.79e9, False).text
  assert machine.synchronized() in (True, False, None)
