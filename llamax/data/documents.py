"""The documents of a unit: each a text, or the reason why it is none."""

import ast
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from llamax.core.errors import UserError, nearest
from llamax.data.files import LONG_TEXT_BYTES, Unit
from llamax.data.tfds_text import tfds_records

_PIECE_BYTES = 64 << 10  # of a long text; then up to the next line end
_LONGEST_JSON_LINE = 1 << 28


class Dropped(NamedTuple):
  reason: str


def read_documents(unit: Unit, text_key: str, tfds_data_dir: str | None) -> Iterator[str | Dropped]:
  """The documents of `unit` in a fixed order; the same file gives the same ones again.

  A text is at least one character that is no space, has no NUL, can be written as UTF-8. Nothing else about it
  is changed, but a byte order mark at its start is taken off. UserError: a damaged archive, a missing column.
  """
  kind = unit.file.kind
  if kind == 'text':
    found: Iterable[str | bytes | Dropped] = _text(unit)
  elif kind == 'topics':
    found = _topics(unit)
  elif kind == 'lines':
    found = _json_lines(unit, text_key)
  elif kind == 'parquet':
    found = _parquet(unit, text_key)
  else:
    records = tfds_records(unit.file, tfds_data_dir, text_key)
    found = (records[i][text_key] for i in range(unit.start, unit.stop))
  for item in found:
    yield item if isinstance(item, Dropped) else _checked(item)


def _checked(item: object) -> str | Dropped:
  try:
    if isinstance(item, str):
      item.encode()  # JSON can spell half of a surrogate pair.
      text = item
    elif isinstance(item, bytes):
      text = item.decode('utf-8')
    else:
      return Dropped(f'not text but {type(item).__name__}')
  except UnicodeError:
    return Dropped('binary' if isinstance(item, bytes) and b'\0' in item else 'not UTF-8')
  if '\0' in text:
    return Dropped('binary')
  text = text.removeprefix('\ufeff')
  return text if text.strip() else Dropped('empty')


def _text(unit: Unit) -> Iterator[bytes | Dropped]:
  try:
    data = _line_range(unit, LONG_TEXT_BYTES)
  except OSError as error:
    yield Dropped(f'unreadable ({error.strerror})')
    return
  if unit.file.size <= LONG_TEXT_BYTES:
    yield data
    return
  start = 0
  while start < len(data):
    end = data.find(b'\n', start + _PIECE_BYTES) + 1 or len(data)
    yield data[start:end]
    start = end


def _line_range(unit: Unit, longest: int) -> bytes:
  """The lines that begin in the range: every line of a file, of at most `longest` bytes, is in exactly one."""
  with open(unit.file.path, 'rb') as f:
    start, stop = (_line_start(f, at, longest) for at in (unit.start, unit.stop))
    f.seek(start)
    return f.read(stop - start)


def _line_start(f: BinaryIO, at: int, longest: int) -> int:
  """Where the first line begins at `at` or later; where a line is longer, between two of its characters."""
  if at == 0:
    return 0
  f.seek(at - 1)
  line = f.readline(longest)
  if len(line) == longest and not line.endswith(b'\n'):
    following = f.read(3)
    line += following[: next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))]
  return at - 1 + len(line)


def _topics(unit: Unit) -> Iterator[str]:
  """The values of `topics = {name: text}` in pydoc's module, read without running it."""
  with open(unit.file.path, 'rb') as f:
    tree = ast.parse(f.read())
  for node in tree.body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      for _, text in sorted(ast.literal_eval(node.value).items()):
        yield text


def _json_lines(unit: Unit, key: str) -> Iterator[str | Dropped]:
  for line in _lines(unit):
    if not line.strip():
      continue
    try:
      value = json.loads(line.decode('utf-8'))
    except UnicodeError:
      yield Dropped('not UTF-8')
    except (ValueError, RecursionError):
      yield Dropped('not JSON')
    else:
      if not isinstance(value, dict):
        yield Dropped('JSON, but no object')
      elif key not in value:
        yield Dropped(f'no key {key!r}')
      else:
        yield value[key]


def _lines(unit: Unit) -> Iterator[bytes]:
  path = unit.file.path
  if path.endswith('.gz'):
    try:
      with gzip.open(path, 'rb') as f:
        yield from f
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise _damaged(path, error) from None
  elif path.endswith('.zst'):
    import pyarrow as pa

    try:
      with pa.input_stream(path, compression='zstd') as stream:
        yield from _split_lines(iter(lambda: stream.read(1 << 20), b''))
    except (pa.ArrowException, OSError) as error:
      raise _damaged(path, error) from None
  else:
    yield from _line_range(unit, _LONGEST_JSON_LINE).split(b'\n')


def _split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
  rest: list[bytes] = []
  for block in blocks:
    first, *more = block.split(b'\n')
    rest.append(first)
    if more:
      yield b''.join(rest)
      yield from more[:-1]
      rest = [more[-1]]
  yield b''.join(rest)


def _damaged(path: str, error: Exception) -> UserError:
  return UserError(f'{path} is damaged: {error}; mend it or take it out of the corpus')


def parquet_row_groups(path: str | os.PathLike) -> int:
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    return pq.read_metadata(path).num_row_groups
  except (pa.ArrowException, OSError) as error:
    raise _damaged(os.fspath(path), error) from None


def _parquet(unit: Unit, column: str) -> Iterator[str | bytes | Dropped]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  with pq.ParquetFile(unit.file.path) as f:
    names = f.schema_arrow.names
    if column not in names:
      raise UserError(
        f'{unit.file.path} has no column {column!r}.{nearest(column, names)} Name its text with --text_key'
      )
    groups = list(range(unit.start, unit.stop))
    try:
      for batch in f.iter_batches(batch_size=1024, columns=[column], row_groups=groups) if groups else ():
        for value in batch.column(0).to_pylist():
          yield Dropped('null') if value is None else value
    except (pa.ArrowException, OSError) as error:
      raise _damaged(unit.file.path, error) from None
