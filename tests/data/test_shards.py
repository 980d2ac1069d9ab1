"""What a worker does to one task."""

import numpy as np
import pytest

from llamax.data.corpus import make_tasks, walk
from llamax.data.shards import Work, digest_of, load_scan, read_sample, scan


@pytest.fixture
def task(tmp_path):
  for name, content in {'a': 'first', 'b': '', 'c': 'second', 'd': 'third', 'e': 'fourth'}.items():
    (tmp_path / f'{name}.txt').write_text(content)
  (units,) = make_tasks(walk([str(tmp_path)], '/nonexistent', None).files, None)
  return units


def test_scan_tells_what_is_valid(task, tmp_path):
  work = Work(str(tmp_path), 'text', None)
  scan(3, task, work)
  found = load_scan(3, work)
  assert found.digests.tolist() == [list(digest_of(t)) for t in (b'first', b'second', b'third', b'fourth')]
  assert found.sizes.tolist() == [5, 6, 5, 6] and found.units.tolist() == [0, 2, 3, 4]
  assert found.dropped == {'empty': 1}


def test_digest_is_for_ever():
  # Another one would move documents between train and validation.
  assert digest_of(b'text') == (11582546876998503503, 14876561440636481282)


def test_sample_is_the_beginning_of_the_documents_asked_for(task, tmp_path):
  work = Work(str(tmp_path), 'text', None)
  assert read_sample(task, np.array([1, 3]), 4, work) == ['seco', 'four']
  assert read_sample(task, np.array([0]), 99, work) == ['first']
