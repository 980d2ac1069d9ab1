"""The walk finds what is meant, in a fixed order; tasks hold everything once."""

import os

import pytest

from llamax.core.errors import UserError
from llamax.data import corpus
from llamax.data.corpus import make_tasks, walk
from llamax.data.files import File


def names(walked):
  return [f.name for f in walked.files]


def test_folder_is_walked_in_order_without_hidden_things(tmp_path):
  for name in ('b.txt', 'a/z.py', 'a/__pycache__/z.pyc', '.git/config', '.env', 'a/data.jsonl.gz'):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text('text')
  (tmp_path / 'link').symlink_to('nowhere')
  found = walk([str(tmp_path)], str(tmp_path / 'out'), None)
  assert names(found) == ['b.txt', 'a/data.jsonl.gz', 'a/z.py']
  assert [(f.kind, f.type) for f in found.files] == [('text', '.txt'), ('lines', '.jsonl.gz'), ('text', '.py')]
  assert +found.dropped == {'hidden folder or __pycache__': 2, 'hidden file': 1, 'no regular file': 1}


def test_own_output_is_no_input(tmp_path):
  for folder in ('out', 'out.partial-12', 'other'):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'x.txt').write_text('x')
  assert names(walk([str(tmp_path)], str(tmp_path / 'out'), None)) == ['other/x.txt']


def test_stdlib_is_the_library_alone():
  found = walk(['stdlib'], '/nonexistent', None)
  all_names = names(found)
  assert {'inspect.py', 'json/decoder.py', 'pydoc_data/topics.py'} <= set(all_names)
  parts = {part for name in all_names for part in name.split(os.sep)[:-1]}
  assert not parts & {'test', 'tests', 'idle_test', 'site-packages', '_bundled', '__pycache__'}
  assert all(name.endswith('.py') for name in all_names)
  assert [f.kind for f in found.files if 'topics' in f.name] == ['topics']
  assert 8e6 < found.size < 30e6


@pytest.mark.parametrize('word', ['stdlip', 'notes/missing.txt'])
def test_missing_input_is_named(word, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=f"input '{word}' does not exist"):
    walk([word], 'out', None)


def test_misspelt_input_gets_a_hint(tmp_path):
  (tmp_path / 'stories').mkdir()
  with pytest.raises(UserError, match=r"Did you mean '.*stories'\?"):
    walk([str(tmp_path / 'storeis')], 'out', None)


def test_fingerprint_follows_names_sizes_times_settings(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one')

  def now(**settings):
    return walk([str(tmp_path)], 'out', None).fingerprint(settings)

  first = now(v=1)
  assert now(v=1) == first != now(v=2)
  os.utime(path, (1, 1))
  second = now(v=1)
  path.rename(tmp_path / 'b.txt')
  third = now(v=1)
  assert len({first, second, third}) == 3


def _files(*sizes, kind='text', type_='.txt', count=0):
  return [File(f'{i}', f'/{i}', kind, type_, size, 0, count) for i, size in enumerate(sizes)]


@pytest.mark.parametrize('shards', [1, 2, 3, 7, 100])
def test_tasks_hold_every_file_once_in_order(shards):
  files = _files(5, 0, 40, 3, 3, 3, 30, 16)
  tasks = make_tasks(files, shards)
  assert [unit.file for task in tasks for unit in task] == files
  assert 1 <= len(tasks) <= shards


def test_tasks_are_of_similar_size():
  tasks = make_tasks(_files(*[10] * 60), 6)
  assert [len(task) for task in tasks] == [10] * 6


def test_json_lines_are_cut_in_ranges_that_cover_the_file(monkeypatch):
  monkeypatch.setattr(corpus, '_MIN_TASK_BYTES', 10)
  (file,) = _files(95, kind='lines', type_='.jsonl')
  units = [u for task in make_tasks([file], 4) for u in task]
  assert [(u.start, u.stop) for u in units] == [(0, 24), (24, 48), (48, 72), (72, 95)]


def test_packed_lines_and_short_texts_are_read_whole():
  packed = _files(95, kind='lines', type_='.jsonl.zst')
  assert [(u.start, u.stop) for t in make_tasks(packed, 4) for u in t] == [(0, 95)]
  assert [(u.start, u.stop) for t in make_tasks(_files(95), 4) for u in t] == [(0, 95)]


def test_long_text_is_cut_whatever_the_number_of_tasks(monkeypatch):
  monkeypatch.setattr(corpus, 'LONG_TEXT_BYTES', 40)
  ranges = {tuple((u.start, u.stop) for t in make_tasks(_files(95), n) for u in t) for n in (1, 2, 9)}
  assert ranges == {((0, 40), (40, 80), (80, 95))}


def test_records_are_cut_by_their_share_of_the_bytes():
  (file,) = _files(1000, kind='tfds', type_='tfds', count=10)
  units = [u for task in make_tasks([file], 5) for u in task]
  assert [(u.start, u.stop, u.size) for u in units] == [
    (0, 2, 200),
    (2, 4, 200),
    (4, 6, 200),
    (6, 8, 200),
    (8, 10, 200),
  ]
