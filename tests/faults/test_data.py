"""Data that fails, is damaged, or holds ids that may not be: named or read again, never used."""

import errno
import hashlib
import itertools
import random
import shutil
import threading

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data import format as format_
from llamax.data import records, retry
from llamax.data.pipeline import open_training
from llamax.observe.batchlog import row_hash
from tests.faults.forked import words

VOCAB = 512


@pytest.fixture
def no_pauses(monkeypatch):
  monkeypatch.setattr(retry, 'PAUSES', (1e-4,) * len(retry.PAUSES))


@pytest.fixture
def data_of(run_config):
  """(folder, **config) -> the opened training data."""

  def make(folder, **changes):
    return open_training(run_config(**{'data.sources': (str(folder),), **changes}).data)

  return make


def plant(folder, rng, bad, highest):
  """Puts id `bad` at a random place; the manifest lies that all is well: (shard, record) of the place."""
  from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  manifest = format_.read_manifest(str(folder))
  file = rng.choice(manifest['splits']['train']['files'])
  path, place = folder / file['name'], rng.randrange(file['records'])
  reader = ArrayRecordReader(str(path))
  examples = [tf_example_pb2.Example.FromString(data) for data in reader.read_all()]
  reader.close()
  path.unlink()  # It may be a second name of the original.
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for index, example in enumerate(examples):
    tokens = np.array(example.features.feature['tokens'].int64_list.value)
    if index == place:
      tokens[rng.randrange(len(tokens))] = bad
    writer.write(format_.serialize(tokens, example.features.feature['num_bytes'].int64_list.value[0]))
  writer.close()
  file.update(format_.describe(str(path)))
  manifest['max_token_id'] = highest
  format_.write_json(str(folder / 'prepare.json'), manifest)
  return path, place


def test_planted_ids_are_refused_before_they_are_used(data_of, tiny_data, tmp_path, scale, no_pauses):
  tries = scale(quick=24, ci=400, soak=4000)
  rng = random.Random(tries)
  bad_ids = (VOCAB, VOCAB + 1, 2**31 - 1, -1, -(2**31), 2**31, 2**32 + 5)
  for number in range(tries):
    folder = shutil.copytree(tiny_data, tmp_path / 'data')
    bad, lie = bad_ids[number % len(bad_ids)], number % 3
    highest = (VOCAB - 1, max(bad, VOCAB - 1), 2**40)[lie]
    path, record = plant(folder, rng, bad, highest)
    used = []
    with pytest.raises(UserError) as caught:
      data = data_of(folder)
      data.check_ids(VOCAB)
      for batch in itertools.islice(data.batches(batch_size=8, start_step=0), data.num_rows_per_epoch):
        used += [int(batch[name].max()) for name in ('tokens', 'targets')]
        used += [int(batch[name].min()) for name in ('tokens', 'targets')]
    at_open = f'holds ids up to {highest}' in str(caught.value)
    in_record = f'record {record} of {path} holds id {bad};' in str(caught.value)
    assert at_open or in_record, caught.value
    assert all(0 <= token < VOCAB for token in used)
    shutil.rmtree(folder)


def test_bits_that_flip_after_the_start_are_named_or_change_nothing(
  data_of, tiny_data, tmp_path, scale, no_pauses
):
  flips = scale(quick=15, ci=300, soak=3000)
  rng = random.Random(flips)
  folder = shutil.copytree(tiny_data, tmp_path / 'data')
  source = data_of(folder).sources[0]
  good = [source.read(i, 0, int(n)).tobytes() for i, n in enumerate(source.lengths)]
  shards = sorted(folder.glob('*-train.array_record*'))
  named = 0
  for _ in range(flips):
    path = rng.choice(shards)
    data = path.read_bytes()
    source = data_of(folder).sources[0]
    # Where something is: the rest of a small shard is padding.
    used = len(data.rstrip(b'\0'))
    flipped = bytearray(data)
    flipped[rng.randrange(used)] ^= 1 << rng.randrange(8)
    path.write_bytes(flipped)
    for i, n in enumerate(source.lengths):
      try:
        assert source.read(i, 0, int(n)).tobytes() == good[i], f'document {i} is another one, in silence'
      except UserError as error:
        assert f' of {path} ' in str(error) and str(error).startswith('record '), error
        named += 1
    path.write_bytes(data)
  assert named, 'no flip had an effect'


class Failing:
  """A reader that fails now and then, never as often in a row as is tried."""

  def __init__(self, path, rng, lock, share):
    self._inner, self._path, self._rng, self._lock, self._share = None, path, rng, lock, share

  def read(self, indices):
    with self._lock:
      fails = self._rng.random() < self._share
    if fails:
      reason = f'pread() failed: Input/output error; reading {self._path}'
      raise self._rng.choice([RuntimeError(reason), OSError(errno.EIO, 'Input/output error')])
    self._inner = self._inner or OPEN(self._path)
    return self._inner.read(indices)

  def num_records(self):
    return self._inner.num_records()


OPEN = records.open_reader


def hashes(data, steps, **how):
  batches = data.batches(batch_size=4, start_step=0, **how)
  found = [[row_hash(batch, i) for i in range(4)] for batch in itertools.islice(batches, steps)]
  batches.close()
  return found


def test_reads_that_fail_change_no_batch(data_of, tiny_data, scale, no_pauses, monkeypatch):
  want = hashes(data_of(tiny_data), 100)
  for turn in range(scale(quick=3, ci=50, soak=500)):
    rng, lock = random.Random(turn), threading.Lock()
    monkeypatch.setattr(
      records, 'open_reader', lambda path, rng=rng, lock=lock: Failing(path, rng, lock, share=0.2)
    )
    threads, ahead = rng.choice([1, 2, 8]), rng.choice([1, 7, 64])
    data = data_of(tiny_data, **{'data.read_threads': threads, 'data.prefetch_rows': ahead})
    assert hashes(data, 100) == want


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data.rstrip(b'\0')) // 2] ^= 1
  path.unlink()
  path.write_bytes(data)


DAMAGE = {
  'flipped': flip,
  'missing': lambda path: path.unlink(),
  'renamed': lambda path: path.rename(path.with_name('other')),
  'cut': lambda path: path.write_bytes(path.read_bytes()[:-1]),
  'appended': lambda path: path.write_bytes(path.read_bytes() + b'\0'),
}


def test_a_damaged_file_is_named_before_the_first_step(server, tiny_data, tmp_path, scale):
  """Through the real command, for each file of the split that it trains on."""
  names = [path.name for path in tiny_data.iterdir() if 'train' in path.name or path.name == 'tokenizer.model']
  cases = list(itertools.product(sorted(names), DAMAGE))
  random.Random(1).shuffle(cases)
  for name, damage in cases[: scale(quick=3, ci=len(cases), soak=len(cases))]:
    folder = shutil.copytree(tiny_data, tmp_path / 'data')
    DAMAGE[damage](folder / name)
    log = tmp_path / 'screen'
    command = words(folder, tmp_path / 'run', **{'train.num_steps': 1, 'optim.warmup_steps': 0})
    assert server.start(command, log).wait(60) == 2, log.read_text()
    assert f'{folder / name} ' in log.read_text() or f"'{folder / name}'" in log.read_text(), log.read_text()
    assert not (tmp_path / 'run/metrics.jsonl').exists() and 'Traceback' not in log.read_text()
    shutil.rmtree(folder)
    log.unlink()


def test_planting_is_not_seen_by_digests(tiny_data, data_of, tmp_path):
  """The tests above say nothing when the lie is found by its digest."""
  folder = shutil.copytree(tiny_data, tmp_path / 'data')
  path, _ = plant(folder, random.Random(0), 7, VOCAB - 1)
  recorded = {file['name']: file['sha256'] for file in format_.files_of(format_.read_manifest(str(folder)))}
  assert recorded[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
  data_of(folder).check_ids(VOCAB)
