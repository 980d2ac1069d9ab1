"""Batches are a function of the step: not of hosts, threads, nor where the run began."""

import itertools
import re
import threading
import time

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data.pipeline import eval_batches, open_eval, open_training, train_batches
from llamax.data.tokenizer import open_tokenizer

FIELDS = ['tokens', 'targets', 'segment_ids', 'positions']


def take(cfg, steps, *, batch_size=6, start_step=0, rows=None):
  batches = train_batches(cfg, batch_size=batch_size, start_step=start_step, rows=rows)
  found = list(itertools.islice(batches, steps))
  batches.close()
  return found


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    for name in FIELDS:
      np.testing.assert_array_equal(x[name], y[name])


def test_shapes_and_meaning(data_config, prepared):
  tok = open_tokenizer(f'{prepared}/tokenizer.model')
  (batch,) = take(data_config(), 1)
  assert sorted(batch) == sorted(FIELDS)
  assert all(v.shape == (6, 16) and v.dtype == np.int32 for v in batch.values())
  first = batch['segment_ids'] == 1
  for row in range(6):
    ids = batch['tokens'][row][first[row]]
    np.testing.assert_array_equal(batch['targets'][row][first[row]][:-1], ids[1:])
    assert tok.decode(ids)


@pytest.mark.parametrize('share', [(0, 1, 2), (3, 4, 5), (1, 5), (0,)], ids=str)
def test_rows_do_not_depend_on_which_host_reads_them(data_config, share):
  cfg = data_config()
  wanted = [{name: batch[name][list(share)] for name in FIELDS} for batch in take(cfg, 9)]
  assert_same(take(cfg, 9, rows=share), wanted)


def test_going_on_equals_not_having_stopped(data_config):
  cfg = data_config()
  rows = open_training(cfg).num_rows_per_epoch
  steps = rows // 6 + 5  # past the end of the first epoch
  assert_same(take(cfg, steps)[7:], take(cfg, steps - 7, start_step=7))


def test_threads_and_prefetch_change_nothing(data_config):
  reference = take(data_config(), 5)
  for threads, prefetch in ((1, 1), (4, 100)):
    assert_same(reference, take(data_config(read_threads=threads, prefetch_rows=prefetch), 5))


def test_seed_and_length_change_the_rows(data_config):
  reference = take(data_config(), 1)[0]
  assert (take(data_config(seed=4), 1)[0]['tokens'] != reference['tokens']).any()
  assert take(data_config(seq_len=24), 1)[0]['tokens'].shape == (6, 24)


def test_an_epoch_holds_every_pair_once(data_config):
  data = open_training(data_config())
  rows = data.num_rows_per_epoch
  batches = data.batches(batch_size=1, start_step=0)
  real = sum(int((b['segment_ids'] > 0).sum()) for b in itertools.islice(batches, rows))
  batches.close()
  assert real == int((data.sources[0].lengths - 1).sum())


def test_mixture_of_two_sources(data_config, prepared):
  cfg = data_config(sources=(prepared, prepared), weights=(1.0, 3.0))
  data = open_training(cfg)
  assert data.num_rows_per_epoch == 2 * open_training(data_config()).num_rows_per_epoch
  assert data.fingerprint != open_training(data_config()).fingerprint
  assert take(cfg, 2)[0]['tokens'].shape == (6, 16)


def test_skips_leave_batches_out(data_config):
  data = open_training(data_config())
  hosts = {'batch_size': 6}
  skipping = list(itertools.islice(data.batches(start_step=0, skips=((2, 4),), **hosts), 5))
  assert_same(skipping, take(data_config(), 2) + take(data_config(), 3, start_step=6))
  again = list(itertools.islice(data.batches(start_step=3, skips=((2, 4),), **hosts), 2))
  assert_same(again, skipping[3:])


def test_documents_of_a_batch_are_those_whose_tokens_it_holds(data_config, prepared):
  cfg = data_config(sources=(prepared, prepared), weights=(1.0, 2.0))
  data, batch_size = open_training(cfg), 6
  (batch,) = take(cfg, 1, start_step=5)
  names = data.documents(3, batch_size, skips=((1, 2),))
  assert names == data.documents(5, batch_size) != data.documents(3, batch_size)
  assert len(set(names)) == len(names)
  found = [re.fullmatch(r'(.*) document (\d+) of split .train. \((.*)\)', name) for name in names]
  assert all(match and match[1] == prepared and match[3].startswith('llamax_tokens-train') for match in found)
  # Each segment stands in exactly one of the named documents, whole; each of those has a segment.
  texts = {
    int(m[2]): data.sources[0].read(int(m[2]), 0, int(data.sources[0].lengths[int(m[2])])) for m in found
  }
  held = set()
  for tokens, segments in zip(batch['tokens'], batch['segment_ids'], strict=True):
    for segment in range(1, segments.max() + 1):
      piece = tokens[segments == segment].tobytes()
      holders = [i for i, text in texts.items() if piece in text.tobytes()]
      assert holders
      held.update(holders)
  assert held == set(texts)


def test_prefetch_rows_bounds_what_is_read_ahead(data_config):
  data = open_training(data_config(read_threads=2, prefetch_rows=12))
  reads = []
  inner = data.sources[0].read
  data.sources[0].read = lambda *a: reads.append(a) or inner(*a)
  batches = data.batches(batch_size=2, start_step=0)
  next(batches)
  time.sleep(0.5)
  rows_read = sum(stop - start - 1 for _, start, stop in reads) // 16
  batches.close()
  assert 2 < rows_read <= 2 + 12


def test_damage_found_by_a_thread_reaches_the_caller(data_config):
  data = open_training(data_config())
  data.sources[0]._records.max_token_id = 5
  batches = data.batches(batch_size=2, start_step=0)
  with pytest.raises(UserError, match='the files are damaged'):
    next(batches)


@pytest.mark.parametrize(
  'death',
  [StopIteration('x'), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError('x'), IndexError('x')],
  ids=repr,
)
def test_a_thread_that_dies_ends_the_stream_with_its_cause(data_config, death):
  """Never with a batch that is short of the row."""
  data = open_training(data_config())
  inner, calls = data.sources[0].read, itertools.count()

  def read(*args):
    if next(calls) == 40:
      raise death
    return inner(*args)

  data.sources[0].read = read
  batches = data.batches(batch_size=2, start_step=0, rows=range(2))
  found = []
  with pytest.raises((RuntimeError, MemoryError, IndexError)) as caught:
    for batch in itertools.islice(batches, 1000):
      found.append(batch)
  assert caught.value is death or repr(death) in str(caught.value)
  assert len(found) > 1
  assert_same(found, take(data_config(), len(found), batch_size=2))
  assert next(batches, None) is None


def test_read_threads_is_the_number_of_threads(data_config):
  def reader_threads():
    return {t for t in threading.enumerate() if t.name.startswith('grain-prefetch')}

  before = reader_threads()
  data = open_training(data_config(read_threads=3, prefetch_rows=50))
  batches = data.batches(batch_size=2, start_step=0)
  next(batches)
  assert len(reader_threads() - before) == 3
  batches.close()


def test_eval_goes_through_the_split_once_in_order(data_config, prepared):
  cfg = data_config()
  tok = open_tokenizer(f'{prepared}/tokenizer.model')
  data = open_eval(f'held={prepared}:validation', cfg, tok)
  assert data.name == 'held'
  batches = list(data.batches(batch_size=5, num_batches=None))
  assert len(batches) == data.num_batches(5, None) == -(-len(data.rows) // 5)
  assert all(b[n].shape == (5, 16) for b in batches for n in FIELDS)
  rows = {n: np.concatenate([b[n] for b in batches]) for n in FIELDS}
  for i in range(len(data.rows)):
    for n in FIELDS:
      np.testing.assert_array_equal(rows[n][i], data.rows[i][n])
  assert not rows['segment_ids'][len(data.rows) :].any()
  assert (rows['segment_ids'] > 0).sum() == data.num_tokens == int((data.source.lengths - 1).sum())
  # Bytes of the targets are those of the text: what bits per byte divide by.
  spelled = tok.byte_lengths[rows['targets'][rows['segment_ids'] > 0]].sum()
  assert spelled == data.source.num_bytes


def test_eval_stops_at_num_batches(data_config, prepared):
  entry = f'v={prepared}:validation'
  whole = list(eval_batches(entry, data_config(), 4, None))
  assert_same(whole[:2], list(eval_batches(entry, data_config(), 4, 2)))
  assert len(list(eval_batches(entry, data_config(), 4, 999))) == len(whole)


def test_eval_of_an_unknown_split_names_those_there_are(data_config, prepared):
  with pytest.raises(UserError, match="no documents in split 'tset'; it has train, validation"):
    eval_batches(f'v={prepared}:tset', data_config(), 4, None)


@pytest.mark.parametrize('entry', ['validation', 'v=', 'v=folder', '=folder:train'])
def test_eval_entry_that_is_none(data_config, entry):
  with pytest.raises(UserError, match='want NAME=SOURCE:SPLIT'):
    eval_batches(entry, data_config(), 4, None)
