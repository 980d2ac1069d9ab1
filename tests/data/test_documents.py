"""What each kind of file gives: texts, or reasons."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamax.core.errors import UserError
from llamax.data.corpus import make_tasks, walk
from llamax.data.documents import Dropped, read_documents
from llamax.data.files import File, Unit


def read(path, key='text'):
  tasks = make_tasks(walk([str(path)], '/nonexistent', None).files, None)
  return [d for task in tasks for unit in task for d in read_documents(unit, key, None)]


@pytest.mark.parametrize(
  ('content', 'expected'),
  [
    (b'plain\r\ntext \xe4\xb8\xad\n', 'plain\r\ntext 中\n'),
    (b'\xef\xbb\xbfafter a mark', 'after a mark'),
    (b'', Dropped('empty')),
    (b' \n\t\n', Dropped('empty')),
    (b'caf\xe9', Dropped('not UTF-8')),
    (b'nul\0inside', Dropped('binary')),
    (b'\x89PNG\0\0\xff', Dropped('binary')),
  ],
)
def test_text_file(tmp_path, content, expected):
  (tmp_path / 'x.txt').write_bytes(content)
  assert read(tmp_path / 'x.txt') == [expected]


LINES = [
  (b'{"text": "one", "id": 1}', 'one'),
  (b'', None),  # not even counted
  (b'{"text": ""}', Dropped('empty')),
  (b'{"body": "x"}', Dropped("no key 'text'")),
  (b'{"text": 5}', Dropped('not text but int')),
  (b'{"text": null}', Dropped('not text but NoneType')),
  (b'["text"]', Dropped('JSON, but no object')),
  (b'{"text": "cut', Dropped('not JSON')),
  (b'[' * 100_000, Dropped('not JSON')),
  (b'{"text": "\xff"}', Dropped('not UTF-8')),
  (b'{"text": "half \\ud800"}', Dropped('not UTF-8')),
  (b'{"text": "a\\u0000b"}', Dropped('binary')),
  ('{"text": "zwei\\nZeilen 中"}'.encode(), 'zwei\nZeilen 中'),
]


@pytest.mark.parametrize('suffix', ['.jsonl', '.jsonl.gz', '.jsonl.zst', '.json.gz', '.ndjson'])
def test_json_lines(tmp_path, suffix):
  data = b'\n'.join(line for line, _ in LINES)
  path = tmp_path / f'x{suffix}'
  if suffix.endswith('.gz'):
    path.write_bytes(gzip.compress(data))
  elif suffix.endswith('.zst'):
    half = len(data) // 2  # two frames, as parallel compressors write
    path.write_bytes(b''.join(pa.compress(part, 'zstd', asbytes=True) for part in (data[:half], data[half:])))
  else:
    path.write_bytes(data)
  assert read(path) == [expected for _, expected in LINES if expected is not None]


@pytest.mark.parametrize('suffix', ['.jsonl.gz', '.jsonl.zst'])
def test_cut_archive_is_an_error_that_names_it(tmp_path, suffix):
  data = json.dumps({'text': 'abc ' * 5000}).encode()
  packed = gzip.compress(data) if suffix.endswith('.gz') else pa.compress(data, 'zstd', asbytes=True)
  (tmp_path / f'x{suffix}').write_bytes(packed[:-9])
  with pytest.raises(UserError, match=rf'x{suffix} is damaged'):
    read(tmp_path / f'x{suffix}')


@pytest.mark.parametrize('step', [1, 2, 5, 7, 13, 100])
def test_every_line_is_in_one_range(tmp_path, step):
  path = tmp_path / 'x.jsonl'
  path.write_text('\n'.join(json.dumps({'t': f'line {i}' * (i % 3 + 1)}) for i in range(9)))
  size = path.stat().st_size
  file = File('x.jsonl', str(path), 'lines', '.jsonl', size, 0)
  units = [Unit(file, at, min(at + step, size), 0) for at in range(0, size, step)]
  assert [d for u in units for d in read_documents(u, 't', None)] == [
    f'line {i}' * (i % 3 + 1) for i in range(9)
  ]


def test_long_text_becomes_documents_cut_at_line_ends(tmp_path):
  lines = [f'line {i} ' + 'äöü ' * (i % 40) + '\n' for i in range(20_000)]
  (tmp_path / 'long.txt').write_text(''.join(lines))
  found = read(tmp_path / 'long.txt')
  assert ''.join(found) == ''.join(lines)
  assert all(d.endswith('\n') and d.startswith('line ') for d in found)
  sizes = [len(d.encode()) for d in found]
  assert 64 << 10 <= sorted(sizes)[len(sizes) // 2] < 66 << 10 and max(sizes) < 66 << 10
  (tmp_path / 'short.txt').write_text(''.join(lines)[: 1 << 18])
  assert len(read(tmp_path / 'short.txt')) == 1


def test_long_text_without_line_ends_is_cut_between_characters(tmp_path):
  text = '€ä' * 700_000  # 3 + 2 bytes, no line end anywhere
  (tmp_path / 'long.txt').write_text(text)
  found = read(tmp_path / 'long.txt')
  assert ''.join(found) == text and len(found) == 3


def test_parquet_by_row_group(tmp_path):
  path = tmp_path / 'x.parquet'
  texts = ['a', None, 'b', '', 'c', 'd', 'e']
  pq.write_table(pa.table({'text': texts, 'n': range(7)}), path, row_group_size=3)
  (task,) = make_tasks(walk([str(path)], '/nonexistent', None).files, None)
  assert task[0].file.count == 3
  assert read(path) == ['a', Dropped('null'), 'b', Dropped('empty'), 'c', 'd', 'e']


def test_parquet_of_bytes(tmp_path):
  pq.write_table(pa.table({'raw': [b'ok', b'\xff']}), tmp_path / 'x.parquet')
  assert read(tmp_path / 'x.parquet', 'raw') == ['ok', Dropped('not UTF-8')]


def test_parquet_errors(tmp_path):
  pq.write_table(pa.table({'content': ['a']}), tmp_path / 'x.parquet')
  with pytest.raises(UserError, match=r"no column 'text'.*content"):
    read(tmp_path / 'x.parquet')
  (tmp_path / 'bad.parquet').write_bytes(b'PAR1 nothing')
  with pytest.raises(UserError, match=r'bad\.parquet is damaged'):
    read(tmp_path / 'bad.parquet')


def test_topics_are_read_without_running_the_module(tmp_path):
  path = tmp_path / 'topics.py'
  path.write_text("# made by a tool\ntopics = {'b': 'second\\n', 'a': r'''fir\\st'''}\nraise SystemExit\n")
  file = File('topics.py', str(path), 'topics', 'pydoc topic', 1, 0)
  assert list(read_documents(Unit(file, 0, 1, 1), 'text', None)) == ['fir\\st', 'second\n']
