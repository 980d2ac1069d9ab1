"""Where a run's numbers go: metrics.jsonl always, TensorBoard or Weights & Biases when the config asks."""

import importlib
import numbers
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from llamax.core.config import LogConfig
from llamax.core.errors import UserError
from llamax.observe.jsonl import METRICS_FILE, JsonLines

_LOGIN_SECONDS = 30  # how long Weights & Biases may ask for a key before the run goes on without it
_FINISH_SECONDS = 120.0  # how long it may upload when the run is over


class Sink(Protocol):
  """One place that numbers go to. Any exception that it raises stays in Writer."""

  name: str
  essential: bool  # kept after an error, as a full disk may be mended; others are switched off

  def write(self, step: int, metrics: Mapping[str, float]) -> None: ...
  def write_text(self, step: int, name: str, text: str) -> None: ...
  def truncate_after(self, step: int) -> None: ...
  def close(self) -> None: ...


class FileSink:
  """`metrics.jsonl` for numbers, `samples.jsonl` for texts."""

  name = METRICS_FILE
  essential = True

  def __init__(self, workdir: Path):
    self._metrics = JsonLines(workdir / METRICS_FILE)
    self._texts = JsonLines(workdir / 'samples.jsonl')

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    self._metrics.append({'step': step, **metrics})

  def write_text(self, step: int, name: str, text: str) -> None:
    self._texts.append({'step': step, 'name': name, 'text': text})

  def truncate_after(self, step: int) -> None:
    self._metrics.truncate_after(step)
    self._texts.truncate_after(step)

  def close(self) -> None:
    self._metrics.close()
    self._texts.close()


class TensorBoardSink:
  """Event files in `tensorboard/`.

  Events are written in the caller's thread. SummaryWriter hands them to a thread through a queue of ten; when
  that thread dies of a full disk the eleventh event would block the training loop for ever.
  """

  name = 'TensorBoard'
  essential = False

  def __init__(self, workdir: Path):
    events = importlib.import_module('tensorboardX.event_file_writer')
    self._proto = importlib.import_module('tensorboardX.proto.event_pb2')
    self._summary = importlib.import_module('tensorboardX.summary')
    folder = workdir / 'tensorboard'
    folder.mkdir(parents=True, exist_ok=True)
    # The file's own time stamp has whole seconds: a run resumed within one would overwrite the first.
    self._events = events.EventsWriter(str(folder / 'events'), f'.{time.time_ns()}')

  def _add(self, step: int, **content: Any) -> None:
    self._events.write_event(self._proto.Event(wall_time=time.time(), step=step, **content))

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
      self._add(step, summary=self._summary.scalar(name, value))
    self._events.flush()

  def write_text(self, step: int, name: str, text: str) -> None:
    indented = '\n'.join(f'    {line}' for line in text.split('\n'))  # TensorBoard renders markdown.
    self._add(step, summary=self._summary.text(name, indented))
    self._events.flush()

  def truncate_after(self, step: int) -> None:
    # A session start makes TensorBoard hide the events of earlier files from that step on.
    self._add(step + 1, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))

  def close(self) -> None:
    self._events.close()


class WandbSink:
  """A Weights & Biases run whose id stays in `wandb_id.txt`, so that a resumed run goes on in the same one."""

  name = 'Weights & Biases'
  essential = False

  def __init__(self, project: str, workdir: Path, config_mapping: Mapping[str, Any]):
    wandb = importlib.import_module('wandb')
    # Asking for a key ends after a while, so that a run nobody watches does not wait for ever.
    wandb.login(timeout=_LOGIN_SECONDS)
    # Its copy of the terminal would swallow the progress bar.
    settings = {'console': 'off', 'finish_timeout': _FINISH_SECONDS}
    known = getattr(wandb.Settings, 'model_fields', settings)
    self._run = wandb.init(
      project=project,
      id=_run_id(workdir / 'wandb_id.txt'),
      resume='allow',
      dir=str(workdir),
      config=dict(config_mapping),
      settings=wandb.Settings(**{key: value for key, value in settings.items() if key in known}),
    )
    self._html = wandb.Html

  def _log(self, step: int, values: dict[str, Any]) -> None:
    # Steps replayed after a crash are in the run already, with the same numbers; it refuses to go back.
    if step >= self._run.step:
      self._run.log(values, step=step)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    self._log(step, dict(metrics))

  def write_text(self, step: int, name: str, text: str) -> None:
    escaped = text.replace('&', '&amp;').replace('<', '&lt;')
    self._log(step, {name: self._html(f'<pre>{escaped}</pre>', inject=False)})

  def truncate_after(self, step: int) -> None:
    pass

  def close(self) -> None:
    self._run.finish()


def _run_id(path: Path) -> str:
  if path.exists() and (known := path.read_text().strip()):
    return known
  run_id = secrets.token_hex(4)
  new = path.with_name(f'.{path.name}.tmp')
  new.write_text(run_id + '\n')
  os.replace(new, path)
  return run_id


class Writer:
  """Hands numbers to every sink; an exception in one costs that sink, one warning, never the run.

  `Writer(())` writes nowhere: what all processes but the first use.
  """

  def __init__(self, sinks: Iterable[Sink], warn: Callable[[str], None] | None = None):
    self._sinks = list(sinks)
    self._warn = warn or _to_stderr
    self._warned: set[str] = set()

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs scalars (Python, numpy or jax) of `step`, the number of steps that are done."""
    values = {name: _scalar(value) for name, value in metrics.items()}
    self._each(lambda sink: sink.write(step, values))

  def write_text(self, step: int, name: str, text: str) -> None:
    """Logs a text, such as a sample of the model, under `name`."""
    self._each(lambda sink: sink.write_text(step, name, text))

  def truncate_after(self, step: int) -> None:
    """Forgets what was logged past `step`: a resumed run is about to do those steps again."""
    self._each(lambda sink: sink.truncate_after(step))

  def close(self) -> None:
    self._each(lambda sink: sink.close())
    self._sinks = []

  def _each(self, act: Callable[[Sink], None]) -> None:
    for sink in tuple(self._sinks):
      try:
        act(sink)
      except UserError:
        raise  # A log that cannot be cut back would hold steps twice: said before training, not after.
      except Exception as error:  # The run matters more than its log.
        if not sink.essential:
          self._sinks.remove(sink)
        if sink.name not in self._warned:
          self._warned.add(sink.name)
          then = 'lines are being lost' if sink.essential else 'it is off for the rest of this run'
          self._warn(f'logging to {sink.name} failed ({_one_line(error)}); {then}, training goes on')


def _scalar(value: Any) -> float:
  if isinstance(value, numbers.Integral):
    return int(value)  # Token counts stay exact beyond 2**53.
  return float(value)


def _one_line(error: Exception) -> str:
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def _to_stderr(message: str) -> None:
  print(f'warning: {message}', file=sys.stderr, flush=True)


def make_writers(
  cfg: LogConfig,
  workdir: str | os.PathLike[str],
  config_mapping: Mapping[str, Any],
  warn: Callable[[str], None] | None = None,
) -> Writer:
  """The writer of a run; call it in one process only.

  An extra that is not installed, or does not start, costs one warning. Raises UserError when the workdir cannot
  be written.
  """
  folder = Path(workdir)
  say = warn or _to_stderr
  sinks: list[Sink] = [FileSink(folder)]
  extras: dict[str, tuple[bool, str, Callable[[], Sink]]] = {
    'tensorboard': (cfg.tensorboard, 'tensorboardX', lambda: TensorBoardSink(folder)),
    'wandb': (cfg.wandb, 'wandb', lambda: WandbSink(cfg.wandb_project, folder, config_mapping)),
  }
  for extra, (wanted, package, build) in extras.items():
    if not wanted:
      continue
    try:
      sinks.append(build())
    except ModuleNotFoundError as error:
      missing = (error.name or package).partition('.')[0]
      say(f'log.{extra}=True needs {missing}: pip install "llamax[{extra}]"; training goes on without it')
    except Exception as error:
      say(f'log.{extra}=True: {package} does not start ({_one_line(error)}); training goes on without it')
  return Writer(sinks, warn)
