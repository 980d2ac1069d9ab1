"""Which files a corpus is made of: what the user named, walked, then cut into tasks of similar size."""

import dataclasses
import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence

from llamax.core.errors import UserError, nearest
from llamax.data.documents import parquet_row_groups
from llamax.data.files import LONG_TEXT_BYTES, File, Unit
from llamax.data.tfds_text import TFDS_PREFIX, tfds_files

STDLIB = 'stdlib'
# Folders of the standard library that hold no text: tests, other people's wheels, build products, the generated
# character tables of `encodings` (a third of all digits: a small model learns little else).
_NOT_STDLIB = frozenset(
  [
    'site-packages',
    'dist-packages',
    'test',
    'tests',
    'idle_test',
    '_bundled',
    '__phello__',
    '__pycache__',
    'encodings',
  ]
)
_JSON_LINES = ('.jsonl', '.ndjson')
_PACKED_LINES = tuple(s + z for s in (*_JSON_LINES, '.json') for z in ('.gz', '.zst'))
_MIN_TASK_BYTES = 1 << 20
_MAX_TASKS = 1024
# Bounds the memory of a worker.
_MAX_UNIT_BYTES = 32 << 20


@dataclasses.dataclass(frozen=True)
class Walk:
  files: list[File]
  dropped: Counter  # reason -> number of files or folders passed over

  @property
  def size(self) -> int:
    return sum(f.size for f in self.files)

  def fingerprint(self, settings: dict) -> str:
    """Changes with any setting, with any file's name, size or time of change."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for f in self.files:
      digest.update(json.dumps([f.name, f.kind, f.size, f.stamp, f.count, f.split]).encode())
    return digest.hexdigest()


def walk(inputs: Sequence[str], out: str, tfds_data_dir: str | None) -> Walk:
  """Every file of the inputs in a fixed order; `out`, with what is under way beside it, is passed over.

  UserError: an input that does not exist.
  """
  files: list[File] = []
  dropped: Counter = Counter()
  for given in map(os.path.expanduser, inputs):
    if given == STDLIB:
      files += _walk_stdlib()
    elif given.startswith(TFDS_PREFIX):
      files += tfds_files(given, tfds_data_dir)
    elif os.path.isdir(given):
      files += _walk_folder(given, os.path.abspath(out), dropped)
    elif os.path.isfile(given):
      files.append(_file(given, os.path.basename(given)))
    else:
      raise UserError(
        f'input {given!r} does not exist; want a folder, a file (text, .jsonl, .jsonl.gz, .jsonl.zst, '
        f'.parquet), tfds:NAME or the word stdlib.{_hint(given)}'
      )
  return Walk(files, dropped)


def _hint(path: str) -> str:
  folder = os.path.dirname(path)
  try:
    beside = [os.path.join(folder, name) for name in os.listdir(folder or '.')[:1000]]
  except OSError:
    return ''
  hint = nearest(path, [*beside, STDLIB])
  return hint if hint.startswith(' Did') else ''


def _file(path: str, name: str) -> File:
  status = os.stat(path)
  lower = name.lower()
  suffix = os.path.splitext(lower)[1]
  kind, label, count = 'text', suffix or 'no suffix', 0
  if lower.endswith(_JSON_LINES + _PACKED_LINES):
    kind, label = 'lines', next(s for s in _PACKED_LINES + _JSON_LINES if lower.endswith(s))
  elif suffix == '.parquet':
    kind, count = 'parquet', parquet_row_groups(path)
  return File(name, os.path.abspath(path), kind, label, status.st_size, status.st_mtime_ns, count)


def _walk_folder(root: str, out: str, dropped: Counter) -> Iterator[File]:
  for folder, folders, names in os.walk(root):
    here = os.path.abspath(folder)
    visible = [f for f in folders if not f.startswith('.') and f != '__pycache__']
    dropped['hidden folder or __pycache__'] += len(folders) - len(visible)
    folders[:] = sorted(f for f in visible if not _is_output(os.path.join(here, f), out))
    for name in sorted(names):
      path = os.path.join(folder, name)
      if name.startswith('.'):
        dropped['hidden file'] += 1
      elif not os.path.isfile(path):
        dropped['no regular file'] += 1
      else:
        yield _file(path, os.path.relpath(path, root))


def _is_output(path: str, out: str) -> bool:
  return path == out or path.startswith(out + '.partial-')


def _walk_stdlib() -> Iterator[File]:
  """The running interpreter's own library sources, with the language reference that pydoc prints by topics."""
  root = sysconfig.get_paths()['stdlib']
  for folder, folders, names in os.walk(root):
    folders[:] = sorted(f for f in folders if f not in _NOT_STDLIB and not f.startswith('config-'))
    for name in sorted(names):
      path = os.path.join(folder, name)
      relative = os.path.relpath(path, root)
      if relative == os.path.join('pydoc_data', 'topics.py'):
        yield dataclasses.replace(_file(path, relative), kind='topics', type='pydoc topic')
      elif name.endswith('.py') and not name.startswith('_sysconfigdata'):
        yield _file(path, relative)


def make_tasks(files: Sequence[File], shards: int | None) -> list[list[Unit]]:
  """The files as at most `shards` tasks (None: as fits their size) of whole units, in the order of the walk.

  A task is what a worker does at a time, what a kill can cost, and one shard of the dataset.
  """
  total = max(1, sum(f.size for f in files))
  count = shards or min(_MAX_TASKS, -(-total // _MIN_TASK_BYTES))
  tasks: dict[int, list[Unit]] = {}
  done = 0
  for unit in (u for f in files for u in _units(f, -(-total // count))):
    middle = done + unit.size // 2
    tasks.setdefault(min(count - 1, middle * count // total), []).append(unit)
    done += unit.size
  return [tasks[i] for i in sorted(tasks)]


def _units(file: File, target: int) -> Iterator[Unit]:
  """The file in ranges of about `target` bytes where its kind can be entered in the middle."""
  length, step = file.size, max(1, file.size)
  if file.kind in ('tfds', 'parquet'):
    length = file.count
    step = max(1, file.count * min(target, _MAX_UNIT_BYTES) // max(1, file.size))
  elif file.kind == 'lines' and file.type in _JSON_LINES:
    step = max(_MIN_TASK_BYTES, min(target, _MAX_UNIT_BYTES))
  elif file.kind == 'text':
    # Where a text is cut changes the documents, so it may not follow the number of tasks.
    step = LONG_TEXT_BYTES
  for start in range(0, max(1, length), step):
    stop = min(start + step, length)
    yield Unit(file, start, stop, file.size * (stop - start) // max(1, length))
