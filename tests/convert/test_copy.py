"""The streaming copy: whole or not there, killed at any byte, full disks, two at once."""

import errno
import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from llamax.cli.main import main
from llamax.convert import copy, formats, hf, layout, source
from llamax.convert.errors import FormatError
from llamax.convert.target import Model
from llamax.core.errors import UserError

from .conftest import read_weights, same, write_weights


def start(
  source_path, destination, *, progress=lambda count: None, say=lambda text: None, threads=2, **options
):
  source = hf.open_source(source_path, None)
  target = hf.Target(Model(source.cfg, source.family, None, {}), max_shard_bytes=20_000)
  steps = copy.make_plan(source, target, None)
  copy.copy(source, target, steps, destination, options, threads=threads, progress=progress, say=say)


def killed_after(limit, source_path, destination):
  """Runs a copy in a child that is gone once it has written `limit` bytes."""

  def run():
    done = 0

    def progress(count):
      nonlocal done
      done += count
      time.sleep(0.005)  # so that the journal keeps up
      if done >= limit:
        os.kill(os.getpid(), signal.SIGKILL)

    start(source_path, destination, progress=progress, threads=1)

  child = multiprocessing.get_context('fork').Process(target=run)
  child.start()
  child.join(60)
  return child.exitcode


@pytest.fixture
def often(monkeypatch):
  """Journalled every few kilobytes, moved in blocks of a few rows."""
  monkeypatch.setattr(copy, '_SYNC_EVERY', 3000)
  monkeypatch.setattr(layout, 'BLOCK_BYTES', 512)


def test_killed_at_any_byte_it_goes_on(make_hf, tmp_path, often):
  folder, weights = make_hf(files=2)
  total = sum(w.nbytes for w in weights.values())
  went_on = 0
  for index, limit in enumerate(range(500, total, total // 9)):
    destination = tmp_path / f'out{index}'
    assert killed_after(limit, folder, destination) == -signal.SIGKILL
    assert not destination.exists()
    said = []
    start(folder, destination, say=said.append)
    assert same(read_weights(destination), weights)
    assert not destination.with_name(f'out{index}.incomplete').exists()
    went_on += bool(said)
  assert went_on >= 6


def test_another_source_starts_again(make_hf, tmp_path, often):
  folder, weights = make_hf()
  killed_after(30_000, folder, tmp_path / 'out')
  changed = {name: w + 1 for name, w in weights.items()}
  write_weights(folder, changed)
  said = []
  start(folder, tmp_path / 'out', say=said.append)
  assert same(read_weights(tmp_path / 'out'), changed) and not said


def test_a_journal_cut_off_in_its_last_line(make_hf, tmp_path, often):
  folder, weights = make_hf()
  killed_after(30_000, folder, tmp_path / 'out')
  journal = tmp_path / 'out.incomplete/journal.jsonl'
  journal.write_bytes(journal.read_bytes() + b'["layers/0/at')
  start(folder, tmp_path / 'out')
  assert same(read_weights(tmp_path / 'out'), weights)


def test_what_exists_is_never_touched(make_hf, tmp_path):
  folder, _ = make_hf()
  (tmp_path / 'out').write_text('mine')
  with pytest.raises(UserError, match='exists already'):
    start(folder, tmp_path / 'out')
  assert (tmp_path / 'out').read_text() == 'mine'
  (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='exists already'):
    start(folder, tmp_path / 'link')
  with pytest.raises(UserError, match='is no folder'):
    start(folder, tmp_path / 'out/below/a file')
  start(folder, tmp_path / 'new/folder/out')
  assert (tmp_path / 'new/folder/out').exists()


def test_two_at_once(make_hf, tmp_path):
  folder, weights = make_hf()
  inside, go = threading.Event(), threading.Event()

  def slow(count):
    inside.set()
    go.wait(30)

  first = threading.Thread(target=start, args=(folder, tmp_path / 'out'), kwargs={'progress': slow})
  first.start()
  inside.wait(30)
  with pytest.raises(UserError, match='another llamax convert'):
    start(folder, tmp_path / 'out')
  go.set()
  first.join(30)
  assert same(read_weights(tmp_path / 'out'), weights)


def test_a_full_disk_is_said_then_it_goes_on(make_hf, tmp_path, often, monkeypatch):
  folder, weights = make_hf()
  real, writes = os.pwrite, []

  def full(handle, data, at):
    writes.append(at)
    if len(writes) > 40:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(handle, data, at)

  monkeypatch.setattr(os, 'pwrite', full)
  with pytest.raises(UserError, match=r'No space left.*the same command goes on'):
    start(folder, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  monkeypatch.setattr(os, 'pwrite', real)
  start(folder, tmp_path / 'out')
  assert same(read_weights(tmp_path / 'out'), weights)


def test_a_file_that_shrinks_under_the_copy(make_hf, tmp_path):
  folder, _ = make_hf()

  def cut(count):
    os.truncate(folder / 'model.safetensors', 4000)

  with pytest.raises(FormatError, match=r'model\.safetensors.*shorter'):
    start(folder, tmp_path / 'out', progress=cut, threads=1)
  assert not (tmp_path / 'out').exists()


def test_a_large_tensor_goes_alone():
  budget, held, most = copy._Budget(100), [], []
  lock = threading.Lock()

  def take(size):
    with budget.taken(size):
      with lock:
        held.append(size)
        most.append(sum(held))
      threading.Event().wait(0.001)
      with lock:
        held.remove(size)

  threads = [threading.Thread(target=take, args=(size,)) for size in [60, 30, 500, 40, 90, 10] * 5]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert all(total <= 100 or total == 500 for total in most) and 500 in most


def test_a_dry_run_shows_each_tensor_and_writes_nothing(make_hf, tmp_path, capsys):
  folder, weights = make_hf()
  before = sorted(p.name for p in tmp_path.iterdir())
  assert main(['convert', str(folder), str(tmp_path / 'out'), '--from=hf', '--to=hf', '--dry_run']) == 0
  said = capsys.readouterr().out
  assert all(name in said for name in weights)
  assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_command_line_and_the_table_of_formats_agree():
  from llamax.cli import convert

  assert set(convert.FORMATS) == set(formats.FORMATS)


def test_threads_and_blocks_change_no_byte(make_hf, tmp_path, often):
  folder, weights = make_hf(dtype='bfloat16')
  for threads in (1, 5):
    start(folder, tmp_path / f'out{threads}', threads=threads)
    assert same(read_weights(tmp_path / f'out{threads}'), weights)
  assert json.loads((tmp_path / 'out1/config.json').read_text())['dtype'] == 'bfloat16'
  first, second = (sorted((tmp_path / f'out{n}').glob('*.safetensors')) for n in (1, 5))
  assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]


def test_a_cast_in_pieces_is_the_cast(make_hf, tmp_path, monkeypatch):
  monkeypatch.setattr(copy, '_CAST_BYTES', 300)
  folder, weights = make_hf()
  assert main(['convert', str(folder), str(tmp_path / 'out'), '--to=hf', '--dtype=bfloat16']) == 0
  wanted = {name: array.astype(source.DTYPES['bfloat16']) for name, array in weights.items()}
  assert same(read_weights(tmp_path / 'out'), wanted)
