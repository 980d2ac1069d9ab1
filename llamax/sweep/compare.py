"""Runs side by side: what differs between their configs, how far they are, how good they are."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamax.core.errors import UserError, nearest
from llamax.observe.progress import human, human_time
from llamax.observe.report import table
from llamax.sweep.gather import Gathered
from llamax.sweep.record import RunRecord

_MOST_KEYS = 6  # columns of config keys; more of them are told below the table
# Of keys that go together these speak for the others.
_TELLING = ('model.d_model', 'train.num_steps', 'optim.learning_rate', 'train.batch_size')
_MOST_VALUES = 4  # runs whose values are told there


@dataclasses.dataclass(frozen=True)
class Column:
  """header: what stands above. raw: for sorting, for CSV; None where unknown. shown: for people. key: of the
  config, where it is one.
  """

  header: str
  raw: Callable[[RunRecord], Any]
  shown: Callable[[Any], str] = lambda value: '' if value is None else str(value)
  key: str | None = None

  def cell(self, record: RunRecord) -> str:
    """What people see of a run: nothing of a config that cannot be read."""
    return '' if self.key and not record.config else self.shown(self.raw(record))


@dataclasses.dataclass(frozen=True)
class Comparison:
  """columns: of the short table. keys: all config keys that differ. with_key: key of a column -> others that
  change whenever it does. records: sorted by a column, the largest first where `down`.
  """

  records: list[RunRecord]
  columns: list[Column]
  keys: list[str]
  with_key: Mapping[str, list[str]]
  gathered: Gathered
  sorted_by: Column
  down: bool

  @property
  def best(self) -> RunRecord | None:
    """The run of the best value of the metric, None when no run has one."""
    metric, maximize = self.gathered.metric, self.gathered.maximize
    valued = [(v.value, record) for record in self.records if (v := record.value(metric, maximize))]
    return (max if maximize else min)(valued, key=lambda pair: pair[0])[1] if valued else None


def compare(gathered: Gathered, sort: str | None = None) -> Comparison:
  """Lines the runs up, the best first.

  Args:
    sort: header of a column, config keys in full too, '-' before it for the largest first. None: the metric.

  Raises:
    UserError: no such column.
  """
  keys = differing(gathered.records)
  with_key = together(gathered.records, keys) if len(keys) > _MOST_KEYS else {key: [] for key in keys}
  shown = list(with_key)[:_MOST_KEYS]
  short = shortened(shown)
  configs = [_config_column(key, short[key]) for key in shown]
  columns = [Column('run', lambda r: r.name), *configs, *_result_columns(gathered)]
  everything = columns + [_config_column(key, key) for key in keys]
  if sort is None:
    by = next(c for c in columns if c.header == gathered.metric and c.key is None)
    down = gathered.maximize
  else:
    wanted, down = sort.removeprefix('-'), sort.startswith('-')
    by = next((c for c in everything if c.header == wanted), columns[0])
    if by.header != wanted:
      raise UserError(f'--sort={sort}: no such column.{nearest(wanted, [c.header for c in everything])}')
  return Comparison(_sorted(gathered.records, by.raw, down), columns, keys, with_key, gathered, by, down)


def _config_column(key: str, header: str) -> Column:
  return Column(header, lambda r: r.config.get(key), show_value, key)


def _result_columns(gathered: Gathered) -> list[Column]:
  metric, maximize = gathered.metric, gathered.maximize
  bits = metric.rpartition('/')[0] + '/bits_per_byte' if metric.startswith('eval/') else 'eval/bits_per_byte'

  def value(record: RunRecord, name: str, field: int) -> float | None:
    found = record.value(name, maximize if name == metric else False)
    return found[field] if found else None

  columns = [
    Column('state', lambda r: r.state),
    Column('step', lambda r: r.step, lambda v: f'{v:,}'),
    Column('of', lambda r: r.num_steps, lambda v: '' if v is None else f'{v:,}'),
    Column(metric, lambda r: value(r, metric, 0), _fixed),
    Column('at step', lambda r: value(r, metric, 1), lambda v: '' if v is None else f'{v:,.0f}'),
    Column('bits/byte', lambda r: value(r, bits, 0), _fixed),
    Column('tokens', lambda r: r.tokens, lambda v: '' if v is None else human(v)),
    Column('time', lambda r: r.seconds, lambda v: '' if v is None else human_time(v)),
    Column('tokens/s', lambda r: r.tokens_per_second, lambda v: '' if v is None else human(v)),
    Column('mfu', lambda r: r.mfu, lambda v: '' if v is None else f'{v:.1%}'),
    Column('note', lambda r: r.note),
  ]
  # What no run has is no column.
  always = ('state', 'step', metric)
  return [c for c in columns if c.header in always or any(c.raw(r) not in (None, '') for r in gathered.records)]


def differing(records: Sequence[RunRecord]) -> list[str]:
  """The config keys that do not have one value in all runs whose config is known."""
  configs = [record.config for record in records if record.config]
  keys = list(dict.fromkeys(key for config in configs for key in config))
  return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def together(records: Sequence[RunRecord], keys: Sequence[str]) -> dict[str, list[str]]:
  """{key: others that rise or fall with it from run to run}, those with the most values first."""
  groups: dict[tuple[Any, ...], list[str]] = {}
  for key in keys:
    groups.setdefault(_pattern([record.config.get(key) for record in records]), []).append(key)
  found = {}
  for _, members in sorted(groups.items(), key=lambda item: -len(set(item[0]))):
    members.sort(key=lambda key: key not in _TELLING)
    found[members[0]] = members[1:]
  return found


def _pattern(values: Sequence[Any]) -> tuple[Any, ...]:
  """The same for keys that go together: of numbers their order up or down, of anything else who is like whom.

  Of numbers drawn at random each run has its own, so being alike would tell nothing.
  """
  if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
    order = sorted(set(values), reverse=values[0] > next((v for v in values if v != values[0]), values[0]))
    return tuple(order.index(v) for v in values)
  texts = [repr(v) for v in values]
  return tuple(f'like {texts.index(text)}' for text in texts)


def shortened(keys: Sequence[str]) -> dict[str, str]:
  """Each key's last word, where no other of `keys` ends in it."""
  last = [key.rpartition('.')[2] for key in keys]
  return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def show_value(value: Any) -> str:
  """A config's value as the command line takes it, floats in few digits."""
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    return f'{value:.6g}'
  return ','.join(map(show_value, value)) if isinstance(value, list | tuple) else str(value)


def _fixed(value: float | None) -> str:
  if value is None:
    return ''
  return f'{value:.4f}' if 1e-3 <= abs(value) < 1e5 or value == 0 else f'{value:.4g}'


def _sorted(records: Sequence[RunRecord], raw: Callable[[RunRecord], Any], down: bool) -> list[RunRecord]:
  """By `raw`, what has none last; numbers before texts."""
  known = [r for r in records if raw(r) is not None]
  numbers = [r for r in known if isinstance(raw(r), int | float)]
  texts = [r for r in known if not isinstance(raw(r), int | float)]
  key = sorted(numbers, key=raw, reverse=down) + sorted(texts, key=lambda r: str(raw(r)), reverse=down)
  return key + [r for r in records if raw(r) is None]


def as_text(comparison: Comparison) -> str:
  """The table with what it leaves out, for a terminal."""
  columns, records = comparison.columns, comparison.records
  rows = [[printable(column.cell(record)) for column in columns] for record in records]
  lines = [table(rows, [printable(column.header) for column in columns])]
  if details := _details(comparison):
    lines.append(details)
  return '\n\n'.join(lines)


def _details(comparison: Comparison) -> str:
  """All that differs, key by key, where the table has room for some of it alone."""
  keys, records = comparison.keys, comparison.records
  shown = [column for column in comparison.columns if column.key]
  if len(keys) <= len(shown):
    return ''
  columns = [_config_column(key, key) for key in keys]
  if len(records) <= _MOST_VALUES:
    rows = [[printable(c.header), *(printable(c.cell(r)) for r in records)] for c in columns]
    return 'all that differs\n' + table(rows, ['key', *(printable(r.name) for r in records)])
  lines = []
  for key, others in comparison.with_key.items():
    values = list(dict.fromkeys(show_value(r.config.get(key)) for r in records if r.config))
    told = ', '.join(values[:8]) + (', ...' if len(values) > 8 else '')
    lines.append(printable(f'{key}: {told}' + (f'; with it {", ".join(others)}' if others else '')))
  return 'all that differs\n' + '\n'.join(lines)


def as_csv(comparison: Comparison) -> str:
  """A line for each run: all that differs, values in full; None is empty."""
  results = [column for column in comparison.columns if not column.key]
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  headers = [results[0].header, *comparison.keys, *(column.header for column in results[1:])]
  writer.writerow(map(printable, headers))
  for record in comparison.records:
    configs = [_csv_value(record.config.get(key)) for key in comparison.keys]
    values = [_csv_value(column.raw(record)) for column in results]
    writer.writerow([values[0], *configs, *values[1:]])
  return out.getvalue()


def _csv_value(value: Any) -> Any:
  if isinstance(value, float):
    return repr(value) if math.isfinite(value) else ''
  if value is None:
    return ''
  return value if isinstance(value, int) and not isinstance(value, bool) else printable(show_value(value))


def printable(text: str) -> str:
  """Without what would move a terminal's cursor or break a line."""
  return ''.join(c if c.isprintable() else '�' for c in text)
