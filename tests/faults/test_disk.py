"""Each operation on the disk made to fail, tear or end the process, one by one: nothing saved is lost."""

import errno
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import forked

ROUNDS = Path(__file__).with_name('disk_rounds.py')
WAYS = {
  'killed before it': {'how': forked.KILL},
  'killed after it': {'how': forked.KILL_AFTER},
  'half written, then killed': {'how': forked.TEAR},
  'failed once': {'how': forked.FAIL_ONCE, 'error': errno.EIO},
  'disk full once': {'how': forked.FAIL_ONCE, 'error': errno.ENOSPC},
  'disk full from then on': {'how': forked.FAIL_FROM, 'error': errno.ENOSPC},
}


@pytest.fixture(scope='module')
def disk(tmp_path_factory):
  """A fork server whose children see the faulty disk."""
  folder = tmp_path_factory.mktemp('disk')
  if shutil.which('cc') is None:
    pytest.skip('no C compiler: the disk cannot be made to fail')
  with forked.ForkServer(preload=forked.compile_faulty_disk(folder)) as server:
    yield server, folder


def attempt(disk, workdir, n, saves=3, log=None, **way):
  server, _ = disk
  arm = {'path': str(workdir), 'n': n, 'log': log and str(log), **way}
  screen = workdir.with_name(f'{workdir.name}-attempt.log')
  screen.unlink(missing_ok=True)
  words = [workdir, saves, workdir.with_name(f'{workdir.name}-seen')]
  return server.start(words, screen, call=f'{ROUNDS}:attempt', arm=arm)


def recover(disk, workdir):
  server, _ = disk
  screen = workdir.with_name(f'{workdir.name}-recover.log')
  screen.unlink(missing_ok=True)
  child = server.start([workdir, workdir.with_name(f'{workdir.name}-seen')], screen, call=f'{ROUNDS}:recover')
  code = child.wait(60)
  assert code == 0, child.screen()


def operations(disk, workdir, saves=3):
  """The names of what an undisturbed attempt does, in order."""
  log = workdir.with_name(f'{workdir.name}-operations')
  log.unlink(missing_ok=True)
  child = attempt(disk, workdir, 0, saves, log, how=0)
  assert child.wait() == 0, child.screen()
  return [line.split(' ', 1)[1] for line in log.read_text().splitlines()]


@pytest.mark.parametrize('name', WAYS)
def test_every_operation(disk, tmp_path, scale, name):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  operations(disk, workdir)  # an older run, with steps to remove
  done = operations(disk, workdir)
  count = len(done)
  assert count > 250, 'the shim sees too little'
  # Threads may change places from run to run: each is tried near its number, all of them are tried.
  numbers = [n for n, text in enumerate(done, 1) if text.startswith('write') or 'half' not in name]
  stride = min(scale(quick=113, ci=7, soak=1), len(numbers) // 3)
  codes = Counter()
  for n in numbers[random.Random(name).randrange(stride) :: stride]:
    child = attempt(disk, workdir, n, **WAYS[name])
    code = child.wait(60)
    codes[code] += 1
    assert code in ((-9, 9, 0) if 'killed' in name else (0, 2)), f'operation {n}:\n{child.screen()}'
    assert 'Traceback' not in child.screen(), f'operation {n}:\n{child.screen()}'
    try:
      recover(disk, workdir)
    except AssertionError as error:
      raise AssertionError(f'{name}: operation {n} of {count}\n{child.screen()}\n{error}') from None
  print(f'\n{name}: {sum(codes.values())} of {count} operations, exit codes {dict(codes)}')


def test_all_is_synced_before_it_counts(disk, tmp_path):
  """A power cut keeps only what was synced: every file before the rename that makes the step count."""
  workdir = tmp_path / 'run'
  workdir.mkdir()
  done = operations(disk, workdir, saves=2)
  renamed = [
    i
    for i, text in enumerate(done)
    if re.fullmatch(r'rename \S+/writer-\d+/(\d+)-\d+ -> \S+/checkpoints/\1', text)
  ]
  assert len(renamed) == 2
  for at in renamed:
    source = done[at].split()[1]
    dirty = {}
    for text in done[:at]:
      what, where = text.split(' ', 1)
      if what == 'rename':
        old, new = where.split(' -> ')
        dirty = {new + name.removeprefix(old) if name.startswith(old) else name: n for name, n in dirty.items()}
        dirty[str(Path(new).parent)] = what
      elif what == 'fsync':
        dirty.pop(where, None)
      elif what in ('open', 'mkdir', 'unlink', 'rmdir'):
        dirty[str(Path(where).parent)] = what
      elif what == 'write':
        dirty[where] = what
    lost = [name for name in dirty if name == source or name.startswith(source + '/')]
    lost = [name for name in lost if not name.endswith('.__lock')]
    assert not lost, f'not on the disk yet when step {source} counts: {lost}'
    assert done[at + 1] == f'fsync {workdir}/checkpoints', 'the rename itself'
