"""Writer: what reaches each sink; no sink can end a run."""

import json
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from llamax.core.config import LogConfig
from llamax.core.errors import UserError
from llamax.observe import writer as writer_file
from llamax.observe.jsonl import read_lines
from llamax.observe.writer import Writer, make_writers


def log_config(**changes):
  return LogConfig(
    **{'every': 1, 'tensorboard': False, 'wandb': False, 'wandb_project': 'p', 'batches': False} | changes
  )


class Recorder:
  name = 'recorder'
  essential = False

  def __init__(self):
    self.calls = []

  def write(self, step, metrics):
    self.calls.append((step, dict(metrics)))

  def write_text(self, step, name, text):
    self.calls.append((step, name, text))

  def truncate_after(self, step):
    self.calls.append(('truncate', step))

  def close(self):
    self.calls.append('close')


class Raises(Recorder):
  name = 'broken'

  def write(self, step, metrics):
    super().write(step, metrics)
    raise RuntimeError('the server\nsaid no')


def test_a_sink_that_raises_is_switched_off_with_one_warning():
  broken, healthy, said = Raises(), Recorder(), []
  writer = Writer([broken, healthy], said.append)
  for step in (1, 2, 3):
    writer.write(step, {'loss': 1.5})
  writer.close()
  assert len(broken.calls) == 1
  assert healthy.calls == [(1, {'loss': 1.5}), (2, {'loss': 1.5}), (3, {'loss': 1.5}), 'close']
  assert said == [
    'logging to broken failed (RuntimeError: the server said no); it is off for the rest of this run, '
    'training goes on'
  ]


def test_an_essential_sink_is_tried_again_with_one_warning():
  broken, said = Raises(), []
  broken.essential = True
  writer = Writer([broken], said.append)
  for step in (1, 2, 3):
    writer.write(step, {'loss': 1.5})
  assert len(broken.calls) == 3
  assert len(said) == 1 and 'lines are being lost' in said[0]


def test_an_interrupt_is_not_swallowed():
  class Interrupted(Recorder):
    def write(self, step, metrics):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    Writer([Interrupted()]).write(1, {})


def test_warnings_go_to_stderr_when_nobody_takes_them(capsys):
  Writer([Raises()]).write(1, {})
  assert capsys.readouterr().err.startswith('warning: logging to broken failed')


def test_scalars_of_numpy_and_jax_arrive_as_python_numbers():
  sink = Recorder()
  Writer([sink]).write(7, {'a': np.float32(0.5), 'b': jnp.float32(0.25), 'c': np.int64(2**60 + 1), 'd': 3})
  ((step, metrics),) = sink.calls
  assert (step, metrics) == (7, {'a': 0.5, 'b': 0.25, 'c': 2**60 + 1, 'd': 3})
  assert [type(v) for v in metrics.values()] == [float, float, int, int]


def test_files_hold_numbers_and_texts_and_forget_replayed_steps(tmp_path):
  writer = make_writers(log_config(), tmp_path, {})
  writer.write(10, {'loss': 2.5})
  writer.write_text(10, 'def ', 'def f():\n')
  writer.write(20, {'loss': 1.5})
  writer.write_text(20, 'def ', 'def g():\n')
  writer.close()

  writer = make_writers(log_config(), tmp_path, {})
  writer.truncate_after(10)
  writer.write(20, {'loss': 1.25})
  writer.close()
  assert read_lines(tmp_path / 'metrics.jsonl') == [{'step': 10, 'loss': 2.5}, {'step': 20, 'loss': 1.25}]
  assert read_lines(tmp_path / 'samples.jsonl') == [{'step': 10, 'name': 'def ', 'text': 'def f():\n'}]


def test_numbers_are_on_disk_before_close(tmp_path):
  writer = make_writers(log_config(), tmp_path, {})
  writer.write(1, {'loss': 2.5})
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 1, "loss": 2.5}\n'
  writer.close()


def test_a_log_that_cannot_be_cut_back_stops_the_run_before_it_starts(tmp_path, monkeypatch):
  writer = make_writers(log_config(), tmp_path, {})
  writer.write(20, {'loss': 1.5})

  def full(source, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.replace', full)
  with pytest.raises(UserError, match='No space left'):
    writer.truncate_after(10)
  writer.close()


@pytest.mark.parametrize('extra, package', [('tensorboard', 'tensorboardX'), ('wandb', 'wandb')])
def test_a_missing_extra_is_one_line_that_names_it(tmp_path, monkeypatch, extra, package):
  monkeypatch.setitem(sys.modules, package, None)
  said = []
  writer = make_writers(log_config(**{extra: True}), tmp_path, {}, said.append)
  writer.write(1, {'loss': 1.5})
  writer.close()
  assert said == [
    f'log.{extra}=True needs {package}: pip install "llamax[{extra}]"; training goes on without it'
  ]
  assert read_lines(tmp_path / 'metrics.jsonl') == [{'step': 1, 'loss': 1.5}]


def test_an_extra_that_does_not_start_is_one_line(tmp_path):
  (tmp_path / 'tensorboard').write_text('a file where the folder should be')
  said = []
  make_writers(log_config(tensorboard=True), tmp_path, {}, said.append).close()
  assert len(said) == 1 and said[0].startswith('log.tensorboard=True: tensorboardX does not start (FileExists')


def tensorboard_events(folder):
  """Every event under `folder`, read by the record format: length, its checksum, bytes, their checksum."""
  event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
  events = []
  for path in sorted(folder.iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (size,) = struct.unpack_from('<Q', data, at)
      events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
      at += size + 16
  return events


def test_tensorboard_files_hold_what_was_written(tmp_path):
  pytest.importorskip('tensorboardX')
  said = []
  for start in (0, 10):  # within one second: the second run must not overwrite the first
    writer = make_writers(log_config(tensorboard=True), tmp_path, {}, said.append)
    writer.truncate_after(start)
    writer.write(start + 10, {'loss': 1.5, 'eval/valid/loss': 2.5})
    writer.write_text(start + 10, 'sample', 'def f():\n  pass')
    writer.close()
  assert said == []
  events = tensorboard_events(tmp_path / 'tensorboard')
  scalars = [
    (e.step, v.tag, v.simple_value) for e in events for v in e.summary.value if v.HasField('simple_value')
  ]
  assert scalars == [
    (10, 'loss', 1.5), (10, 'eval/valid/loss', 2.5), (20, 'loss', 1.5), (20, 'eval/valid/loss', 2.5)
  ]  # fmt: skip
  texts = [v.tensor.string_val[0] for e in events for v in e.summary.value if v.tensor.string_val]
  assert texts == [b'    def f():\n      pass'] * 2
  assert [e.step for e in events if e.HasField('session_log')] == [1, 11]


def test_tensorboard_sees_numbers_while_the_run_goes_on(tmp_path):
  pytest.importorskip('tensorboardX')
  writer = make_writers(log_config(tensorboard=True), tmp_path, {})
  writer.write(1, {'loss': 1.5})
  assert [e.step for e in tensorboard_events(tmp_path / 'tensorboard') if e.summary.value] == [1]
  writer.close()


def test_a_tensorboard_disk_that_is_full_costs_one_warning(tmp_path, monkeypatch):
  pytest.importorskip('tensorboardX')
  said = []
  writer = make_writers(log_config(tensorboard=True), tmp_path, {}, said.append)
  writer.write(1, {'loss': 1.5})

  def full(self, event):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('tensorboardX.event_file_writer.EventsWriter.write_event', full)
  for step in range(2, 40):  # more than the queue that SummaryWriter would block on
    writer.write(step, {'loss': 1.5})
  writer.close()
  assert len(said) == 1 and 'TensorBoard' in said[0] and 'No space left' in said[0]
  assert len(read_lines(tmp_path / 'metrics.jsonl')) == 39


class FakeWandb(types.ModuleType):
  """The part of wandb that WandbSink touches, with its rule that steps only grow."""

  def __init__(self, first_step):
    super().__init__('wandb')
    self.run = types.SimpleNamespace(step=first_step, log=self.log, finish=lambda: self.logged.append('finish'))
    self.logged, self.inits, self.logins = [], [], []
    self.Settings = lambda **settings: settings
    self.Html = lambda text, inject: text

  def login(self, timeout):
    self.logins.append(timeout)

  def init(self, **arguments):
    self.inits.append(arguments)
    return self.run

  def log(self, values, step):
    assert step >= self.run.step
    self.run.step = step
    self.logged.append((step, values))


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
  said, fakes = [], []
  for start in (0, 3):  # the second is told to replay step 2, which its run has
    fake = FakeWandb(start)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    writer = make_writers(log_config(wandb=True), tmp_path, {'train': {'seed': 1}}, said.append)
    for step in (2, 3):
      writer.write(step, {'loss': 0.5 * step})
    writer.write_text(3, 'sample', 'a < b & c')
    writer.close()
    fakes.append(fake)
  assert said == []
  first, second = (fake.inits[0] for fake in fakes)
  assert first['id'] == second['id'] == (tmp_path / 'wandb_id.txt').read_text().strip()
  assert first['resume'] == 'allow' and first['project'] == 'p' and first['config'] == {'train': {'seed': 1}}
  assert fakes[0].logins == [writer_file._LOGIN_SECONDS]
  text = (3, {'sample': '<pre>a &lt; b &amp; c</pre>'})
  assert fakes[0].logged == [(2, {'loss': 1.0}), (3, {'loss': 1.5}), text, 'finish']
  assert fakes[1].logged == [(3, {'loss': 1.5}), text, 'finish']


def test_the_real_wandb_works_offline(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  said = []
  for _ in range(2):
    writer = make_writers(log_config(wandb=True), tmp_path, {'train': {'seed': 1}}, said.append)
    writer.write(1, {'loss': 1.5})
    writer.write(2, {'loss': float('nan'), 'eval/valid/loss': 2.5})
    writer.write_text(2, 'sample', 'a < b')
    writer.close()
  assert said == []
  run_id = (tmp_path / 'wandb_id.txt').read_text().strip()
  assert list((tmp_path / 'wandb').glob(f'offline-run-*-{run_id}/*.wandb'))


def test_metrics_are_readable_as_plain_json(tmp_path):
  writer = make_writers(log_config(), tmp_path, {})
  writer.write(1, {'loss': float('inf')})
  writer.close()
  assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {'step': 1, 'loss': 'Infinity'}
