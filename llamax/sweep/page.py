"""A comparison as one HTML page that works without a network."""

import datetime
import html
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamax.sweep.compare import Column, Comparison, printable, show_value
from llamax.sweep.picture import curves, picture, ranks
from llamax.sweep.state import STATES

_PALETTE = 8  # colours in page.css; more runs are coloured by rank
# Nothing may be fetched, whatever a run's name holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_KINDS = {'line': 'By {0}', 'heat': '{2} by {0} and {1}', 'parallel': 'What differs, and what comes of it'}


def page(comparison: Comparison, title: str, command: Sequence[str] | None) -> str:
  """The page; `command`: that of the best run, where it is known."""
  shown, drawn = picture(comparison), curves(comparison)
  parts = [
    _head(title),
    f'<h1>{_text(title)}</h1>',
    f'<p>{_text(_summary(comparison))}</p>',
    _best(comparison, command),
    '<div class="pictures">',
  ]
  if drawn:
    parts.append(
      _curves_part([found.metric for found in drawn], len(comparison.records) <= _PALETTE, comparison)
    )
  if shown is not None:
    heading = _KINDS[shown.kind].format(*(axis.label for axis in shown.axes))
    parts.append(f'<section class="picture"><h2>{_text(heading)}</h2><div id="picture"></div></section>')
  parts += [
    '</div>',
    '<p id="told" class="told" aria-live="polite"></p>' if drawn or shown else '',
    '<noscript><p>The pictures and the sorting need JavaScript; the table does not.</p></noscript>',
    '<h2>Runs</h2>',
    _table(comparison),
    _same(comparison),
    f'<script type="application/json" id="data">{_data(comparison, drawn, shown)}</script>',
    f'<script>{_beside("page.js")}</script>',
    '</body></html>\n',
  ]
  return '\n'.join(part for part in parts if part)


def _head(title: str) -> str:
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<link rel="icon" href="data:,"><title>{_text(title)}</title>\n'
    f'<style>\n{_beside("page.css")}</style></head><body>'
  )


def _beside(name: str) -> str:
  return Path(__file__).with_name(name).read_text(encoding='utf-8')


def _text(value: Any) -> str:
  """As text between tags or in an attribute; control characters become a replacement."""
  return html.escape(printable(str(value)), quote=True)


def _summary(comparison: Comparison) -> str:
  counts = Counter(record.state for record in comparison.records)
  states = ', '.join(f'{counts[state]} {state}' for state in STATES if counts[state])
  now = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
  runs = f'{len(comparison.records)} run' + 's' * (len(comparison.records) != 1)
  return f'{runs}: {states}. As of {now}.'


def _best(comparison: Comparison, command: Sequence[str] | None) -> str:
  best, metric = comparison.best, comparison.gathered.metric
  if best is None:
    return f'<p class="faint">No run has a finite {_text(metric)} yet.</p>'
  value = best.value(metric, comparison.gathered.maximize)
  assert value is not None
  reached = f'{metric} {value.value:.4f} at step {value.step:,}'
  told = f'<h2>Best run</h2><p><b>{_text(best.name)}</b>: {_text(reached)}</p>'
  lines = [shlex.join(['llamax', 'train', *command])] if command else []
  lines.append(shlex.join(['llamax', 'generate', f'--workdir={best.folder}']))
  return told + ''.join(map(_command, lines))


def _command(line: str) -> str:
  # A line breaks between words alone.
  words = ' '.join(f'<span>{_text(word)}</span>' for word in line.split(' '))
  return f'<div class="command"><pre>{words}</pre><button type="button">copy</button></div>'


def _curves_part(metrics: Sequence[str], few: bool, comparison: Comparison) -> str:
  choices = [_choice('by', 'x', [('step', 'step'), ('tokens', 'tokens'), ('time', 'time')])]
  choices.append(_choice('axis', 'log', [('false', 'linear'), ('true', 'log')]))
  if len(metrics) > 1:
    choices.insert(0, _choice('', 'curve', [(str(i), name) for i, name in enumerate(metrics)]))
  legend = ''
  if few:
    items = [
      f'<li><i style="background: var(--c{i})"></i>{_text(record.name)}</li>'
      for i, record in enumerate(comparison.records)
    ]
    legend = f'<ul class="legend">{"".join(items)}</ul>'
  elif comparison.best is not None:
    legend = '<p class="faint">Blue: the best run, drawn thick; the others by rank, the worst in orange.</p>'
  return (
    f'<section class="picture"><h2>Curves</h2><div class="choices">{"".join(choices)}</div>'
    f'<div id="curves"></div>{legend}</section>'
  )


def _choice(label: str, name: str, options: Sequence[tuple[str, str]]) -> str:
  pressed = ['true', *['false'] * len(options)]
  buttons = [
    f'<button type="button" data-{name}="{_text(value)}" aria-pressed="{on}">{_text(shown)}</button>'
    for (value, shown), on in zip(options, pressed, strict=False)
  ]
  return f'<span>{label} {"".join(buttons)}</span>'


def _table(comparison: Comparison) -> str:
  columns, best = comparison.columns, comparison.best
  numeric = [_is_numeric(column, comparison) for column in columns]
  heads = [
    f'<th scope="col"{_class("number" if number else "")}{_sorted_by(column, comparison)}>'
    f'<button type="button">{_text(column.header)}</button></th>'
    for column, number in zip(columns, numeric, strict=True)
  ]
  lines = []
  for record in comparison.records:
    cells = []
    for column, number in zip(columns, numeric, strict=True):
      raw = column.raw(record)
      kind = 'number' if number else 'note' if column.header == 'note' else ''
      sort = '' if raw is None else repr(float(raw)) if number else show_value(raw)
      whole = f' title="{_text(raw)}"' if column.header == 'run' else ''
      cells.append(f'<td{_class(kind)}{whole} data-v="{_text(sort)}">{_text(column.cell(record))}</td>')
    lines.append(f'<tr{_class("best" if record is best else "")}>{"".join(cells)}</tr>')
  return (
    f'<div class="scroll"><table id="runs"><thead><tr>{"".join(heads)}</tr></thead>\n'
    f'<tbody>{"".join(lines)}</tbody></table></div>'
  )


def _is_numeric(column: Column, comparison: Comparison) -> bool:
  values = [v for record in comparison.records if (v := column.raw(record)) is not None]
  return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _sorted_by(column: Column, comparison: Comparison) -> str:
  if column is not comparison.sorted_by:
    return ''
  return f' aria-sort="{"descending" if comparison.down else "ascending"}"'


def _class(name: str) -> str:
  return f' class="{name}"' if name else ''


def _same(comparison: Comparison) -> str:
  """The keys that have no column of their own, as they change with one that has."""
  hidden = {key: others for key, others in comparison.with_key.items() if others}
  shown = {column.key for column in comparison.columns if column.key}
  rest = [key for key in comparison.with_key if key not in shown]
  items = [
    f'<li>with <code>{_text(key)}</code>: {_text(", ".join(others))}</li>' for key, others in hidden.items()
  ]
  items += [f'<li><code>{_text(key)}</code></li>' for key in rest]
  if not items:
    return ''
  return f'<details><summary>More keys differ</summary><ul>{"".join(items)}</ul></details>'


def _data(comparison: Comparison, drawn: Sequence[Any], shown: Any) -> str:
  """What page.js draws, as JSON that no tag can end."""
  few, levels = len(comparison.records) <= _PALETTE, ranks(comparison)
  data = {
    'runs': [
      {
        'name': printable(record.name),
        'color': i if few else None,
        'level': levels[i],
        'best': record is comparison.best,
      }
      for i, record in enumerate(comparison.records)
    ],
    'curves': [
      {
        'metric': printable(found.metric),
        'limits': found.limits,
        'runs': [[[_digits(s[field]) for s in samples] for field in range(4)] for samples in found.runs],
      }
      for found in drawn
    ],
    'picture': shown
    and {
      'kind': shown.kind,
      'axes': [
        {'key': printable(a.key), 'label': printable(a.label), 'at': a.at}
        | {'ticks': [(at, printable(label)) for at, label in a.ticks]}
        for a in shown.axes
      ],
      'values': shown.values,
      'levels': shown.levels,
    },
  }
  text = json.dumps(data, allow_nan=False, separators=(',', ':'))
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _digits(value: float) -> float:
  """Six of them: more than a screen shows."""
  return value if isinstance(value, int) else float(f'{value:.6g}')
