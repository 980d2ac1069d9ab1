"""Where a document goes follows from its text alone."""

from collections import Counter

import numpy as np
import pytest

from llamax.core.errors import UserError
from llamax.data.files import File, Unit
from llamax.data.plan import make_plan
from llamax.data.shards import Scan, digest_of


def task(*splits):
  return [Unit(File(str(i), '/', 'text', '.txt', 9, 0, 0, split), 0, 9, 9) for i, split in enumerate(splits)]


def scan_of(texts, units=None, dropped=None):
  digests = np.array([digest_of(t.encode()) for t in texts], np.uint64).reshape(-1, 2)
  sizes = np.array([len(t) for t in texts], np.int64)
  origin = np.zeros(len(texts), np.int32) if units is None else np.array(units, np.int32)
  return Scan(digests, sizes, origin, Counter(dropped or {}))


def plan_of(*scans, fraction=0.2, max_documents=None, tasks=None, passed_over=None):
  return make_plan(
    tasks or [task(None)] * len(scans), scans, fraction, max_documents, Counter(passed_over or {})
  )


def split_of(texts, **settings):
  plan = plan_of(scan_of(texts), **settings)
  return {t: plan.splits[c] for t, c in zip(texts, plan.codes[0], strict=True) if c >= 0}


TEXTS = [f'document {i}' for i in range(400)]


def test_fraction_is_about_kept():
  counts = Counter(split_of(TEXTS).values())
  assert 60 <= counts['validation'] <= 100 and counts['train'] == 400 - counts['validation']


def test_more_documents_move_no_other():
  few, many = split_of(TEXTS[50:300]), split_of(TEXTS[::-1])
  assert few.items() <= many.items()


def test_larger_fraction_only_adds():
  small = {t for t, s in split_of(TEXTS, fraction=0.1).items() if s == 'validation'}
  large = {t for t, s in split_of(TEXTS, fraction=0.3).items() if s == 'validation'}
  assert small < large


def test_duplicates_leave_the_first():
  plan = plan_of(scan_of(['a', 'b', 'a']), scan_of(['b', 'c']), dropped := scan_of([], dropped={'empty': 2}))
  assert [(codes >= 0).tolist() for codes in plan.codes] == [[True, True, False], [False, True], []]
  assert plan.dropped == {'exact duplicate': 2, 'empty': 2} and dropped


@pytest.mark.parametrize('fraction', [1e-9, 0.999999999])
def test_two_documents_fill_both_splits(fraction):
  for pair in (['a', 'b'], ['c', 'd'], ['e', 'f', 'g']):
    counts = Counter(split_of(pair, fraction=fraction).values())
    assert counts['train'] >= 1 and counts['validation'] >= 1


@pytest.mark.parametrize('fraction', [0.0, 0.5, 0.999999999])
def test_one_document_is_for_training(fraction):
  assert split_of(['only'], fraction=fraction) == {'only': 'train'}


def test_fraction_0_makes_no_validation():
  assert set(split_of(TEXTS, fraction=0.0).values()) == {'train'}


def test_named_splits_are_kept():
  scans = scan_of(TEXTS[:6], units=[0, 0, 1, 1, 2, 2])
  plan = plan_of(scans, tasks=[task('test', 'validation', 'train')])
  assert plan.splits == ('train', 'validation', 'test')
  assert plan.codes[0].tolist() == [2, 2, 1, 1, 0, 0]


def test_max_documents_counts_different_ones():
  plan = plan_of(scan_of(['a', 'a', 'b', 'c', 'd']), max_documents=3)
  assert (plan.codes[0] >= 0).tolist() == [True, False, True, True, False]
  assert plan.dropped == {'exact duplicate': 1, 'past --max_documents': 1}


def test_nothing_left_says_what_there_was():
  with pytest.raises(UserError, match=r"no document found: 3 no key 'text', 2 hidden file; .*--text_key"):
    plan_of(scan_of([], dropped={"no key 'text'": 3}), passed_over={'hidden file': 2})
  with pytest.raises(UserError, match='no file at all'):
    make_plan([], [], 0.1, None, Counter())


def test_fingerprint_follows_texts_order_splits_tokenizer():
  def fingerprint(texts, fraction=0.2, tokenizer='t'):
    scans = [scan_of(texts)]
    return plan_of(*scans, fraction=fraction).fingerprint(scans, tokenizer)

  first = fingerprint(TEXTS)
  assert first == fingerprint(TEXTS)
  others = [
    fingerprint(TEXTS[::-1]),
    fingerprint(TEXTS[1:]),
    fingerprint(TEXTS, 0.5),
    fingerprint(TEXTS, 0.2, 'u'),
  ]
  assert len({first, *others}) == 5


def test_fingerprint_does_not_follow_the_number_of_tasks():
  one, two = [scan_of(TEXTS)], [scan_of(TEXTS[:150]), scan_of(TEXTS[150:])]
  assert plan_of(*one).fingerprint(one, 't') == plan_of(*two).fingerprint(two, 't')


def chosen(scans, max_bytes, **settings):
  plan = plan_of(*scans, **settings)
  positions, most = plan.sample(scans, max_bytes)
  assert all((plan.codes[i][p] == 0).all() for i, p in enumerate(positions))
  return positions, most


def test_sample_is_of_train_up_to_the_size():
  scans = [scan_of(TEXTS[:150]), scan_of(TEXTS[150:])]
  positions, _ = chosen(scans, 1000)
  taken = sorted(int(s.sizes[p].sum()) for s, p in zip(scans, positions, strict=True))
  assert 1000 <= sum(taken) < 1000 + 12 and taken[0] > 100  # from both tasks
  everything, _ = chosen(scans, 10**9)
  assert sum(map(len, everything)) == sum(c == 'train' for c in split_of(TEXTS).values())


def test_sample_does_not_follow_where_a_document_stands():
  def taken(texts):
    (positions,), _ = chosen([scan_of(texts)], 1000)
    return {texts[i] for i in positions}

  assert taken(TEXTS) == taken(TEXTS[::-1])


def test_no_document_fills_the_sample_while_there_are_others():
  scan = scan_of(TEXTS[:6])
  scan.sizes[:] = 3 << 19  # 1.5 MiB, of which 1 MiB counts
  positions, most = chosen([scan], (6 << 20) + 1, fraction=0.0)
  assert most == 1 << 20 and positions[0].tolist() == list(range(6))
  scan = scan_of(TEXTS[:1])
  scan.sizes[:] = 5 << 20
  positions, most = chosen([scan], 4 << 20)
  assert most == 4 << 20 and positions[0].tolist() == [0]
