"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

import functools
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

Metrics = Mapping[str, float]


def human(value: float) -> str:
  """Three digits with a suffix: 950, 1.23k, 2.1M, 405B, 15.6T."""
  if not math.isfinite(value):
    return str(value)
  size, suffixes = abs(value), ['', 'k', 'M', 'B', 'T', 'P']
  while float(f'{size:.3g}') >= 1000 and len(suffixes) > 1:
    size /= 1000
    suffixes.pop(0)
  digits = max(0, 2 - math.floor(math.log10(size))) if size >= 1e-3 else 3
  text = f'{size:.{digits}f}'
  text = text.rstrip('0').rstrip('.') if '.' in text else text
  return f'{"-" if value < 0 else ""}{text}{suffixes[0]}'


def human_time(seconds: float) -> str:
  """Two units: 42s, 4m12s, 3h05m, 2d04h."""
  if not math.isfinite(seconds):
    return '?'
  whole = round(seconds)
  for size, unit, part, part_unit in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'm'), (60, 'm', 1, 's')):
    if whole >= size:
      return f'{whole // size}{unit}{whole % size // part:02d}{part_unit}'
  return f'{whole}s'


def _speed(m: Metrics) -> str:
  text = f'{human(m["tokens_per_second"])} tok/s'
  each = m.get('tokens_per_second_per_device', m['tokens_per_second'])
  return text if each == m['tokens_per_second'] else f'{text} ({human(each)}/device)'


def _mfu(m: Metrics) -> str:
  return f'mfu {m["mfu"]:.1%}' + (f' (palm {m["mfu_palm"]:.1%})' if 'mfu_palm' in m else '')


# Metric -> its words. The order is that of the line; what a metrics dict lacks is left out.
_HEAD: dict[str, Callable[[Metrics], str]] = {
  'loss': lambda m: f'loss {m["loss"]:.4f}',
  'perplexity': lambda m: f'ppl {human(m["perplexity"])}',
  'eta_seconds': lambda m: f'eta {human_time(m["eta_seconds"])}',
}
_DETAILS: dict[str, Callable[[Metrics], str]] = {
  'learning_rate': lambda m: f'lr {m["learning_rate"]:.2e}',
  'grad_norm': lambda m: f'grad {m["grad_norm"]:.3g}',
  'tokens_per_second': _speed,
  'mfu': _mfu,
  'data_wait_fraction': lambda m: f'wait {m["data_wait_fraction"]:.1%}',
  'memory_gb': lambda m: f'mem {m["memory_gb"]:.2f}GB',
  'compile_seconds': lambda m: f'compile {human_time(m["compile_seconds"])}',
}


def _words(table: Mapping[str, Callable[[Metrics], str]], metrics: Metrics) -> list[str]:
  return [words(metrics) for name, words in table.items() if name in metrics]


def train_line(step: int, num_steps: int, metrics: Metrics) -> str:
  """One line on a training step; `step` steps of `num_steps` are done."""
  count = f'step {step:>{len(str(num_steps))}}/{num_steps}'
  return ' | '.join([count, *_words(_HEAD, metrics), *_words(_DETAILS, metrics)])


def eval_lines(step: int, metrics: Metrics) -> list[str]:
  """One line per split of the `eval/<split>/...` metrics."""
  splits = dict.fromkeys(name.split('/')[1] for name in metrics if name.startswith('eval/'))
  table: dict[str, Callable[[Metrics], str]] = {
    'loss': lambda m: f'loss {m["loss"]:.4f}',
    'perplexity': lambda m: f'ppl {human(m["perplexity"])}',
    'bits_per_byte': lambda m: f'{m["bits_per_byte"]:.4f} bits/byte',
    'tokens': lambda m: f'{human(m["tokens"])} tokens',
  }
  lines = []
  for split in splits:
    prefix = f'eval/{split}/'
    own = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    lines.append(' | '.join([f'eval {split} after step {step}', *_words(table, own)]))
  return lines


class Progress(Protocol):
  """`advance` after every step, `train` when numbers have arrived; `step` counts the steps done."""

  def advance(self, step: int) -> None: ...
  def train(self, step: int, metrics: Metrics) -> None: ...
  def evaluated(self, step: int, metrics: Metrics) -> None: ...
  def say(self, text: str) -> None: ...
  def close(self) -> None: ...


class Lines:
  """For files, pipes, notebooks: each report is a line that stays. `show` puts a text on `stream`."""

  def __init__(self, num_steps: int, stream: TextIO, show: Callable[[str], None]):
    self._num_steps = num_steps
    self._encoding = getattr(stream, 'encoding', None) or 'utf-8'
    self._show = show

  def advance(self, step: int) -> None:
    pass

  def train(self, step: int, metrics: Metrics) -> None:
    self.say(train_line(step, self._num_steps, metrics))

  def evaluated(self, step: int, metrics: Metrics) -> None:
    self.say('\n'.join(eval_lines(step, metrics)))

  def say(self, text: str) -> None:
    # A sample may hold what the stream's encoding lacks; that must not end the run.
    self._show(text.encode(self._encoding, 'replace').decode(self._encoding))

  def close(self) -> None:
    pass


class Bar:
  """For a terminal: a bar with the loss, a second row with the rest; texts scroll by above."""

  def __init__(self, num_steps: int, start_step: int, stream: TextIO):
    from tqdm import tqdm

    self._lines = Lines(num_steps, stream, lambda text: tqdm.write(text, file=stream))
    shared: dict[str, Any] = {'file': stream, 'dynamic_ncols': True, 'mininterval': 0.2}
    self._bar = tqdm(
      total=num_steps,
      initial=start_step,
      position=0,
      bar_format='{n_fmt}/{total_fmt} {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}',
      **shared,
    )
    self._details = tqdm(position=1, bar_format='{desc}', leave=False, **shared)

  def advance(self, step: int) -> None:
    self._bar.update(step - self._bar.n)

  def train(self, step: int, metrics: Metrics) -> None:
    self.advance(step)
    self._bar.set_postfix_str(' | '.join(_words(_HEAD, metrics)))
    self._details.set_description_str('  '.join(_words(_DETAILS, metrics)))

  def evaluated(self, step: int, metrics: Metrics) -> None:
    self._lines.evaluated(step, metrics)

  def say(self, text: str) -> None:
    self._lines.say(text)

  def close(self) -> None:
    self._details.close()
    self._bar.close()


def make_progress(num_steps: int, start_step: int, stream: TextIO | None = None) -> Progress:
  """A bar when `stream` (None: standard output) is a terminal that can redraw a line, else plain lines."""
  stream = stream or sys.stdout
  if stream.isatty() and os.environ.get('TERM') != 'dumb':
    return Bar(num_steps, start_step, stream)
  return Lines(num_steps, stream, functools.partial(print, file=stream, flush=True))
