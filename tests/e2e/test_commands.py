"""The commands as a user types them, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from llamax.cli.main import main

ENV = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'JAX_PLATFORMS': 'cpu'}


def command(*words):
  return [sys.executable, '-m', 'llamax.cli.main', *map(str, words)]


def llamax(*words, code=0, timeout=280):
  """Runs a verb; returns its standard output with its standard error."""
  done = subprocess.run(command(*words), env=ENV, capture_output=True, text=True, timeout=timeout, check=False)
  assert done.returncode == code, done.stdout + done.stderr
  return done.stdout + done.stderr


def train_words(data, workdir, *more):
  return (
    'train',
    '--config=configs/debug.py',
    f'--workdir={workdir}',
    f'--config.data.sources={data}',
    f'--config.eval.splits=held={data}:validation',
    '--config.compute.compilation_cache=none',
    '--config.log.every=1',
    *more,
  )


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_bytes().split(b'\n')[:-1]
  records = [json.loads(line) for line in lines]
  return {r['step']: r['loss'] for r in records if 'loss' in r}


def test_train_killed_resumed_then_generate(tiny_data, tmp_path):
  more = ('--config.train.num_steps=60', '--config.checkpoint.every=10', '--config.eval.every=none')
  whole = llamax(*train_words(tiny_data, tmp_path / 'whole', *more))
  for told in ('mesh      data=1 x fsdp=2', 'embed/table', 'flops', 'memory', 'bits/byte', 'loss by step'):
    assert told in whole
  killed = tmp_path / 'killed'
  process = subprocess.Popen(
    command(*train_words(tiny_data, killed, *more)),
    env=ENV,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 200
  while not (killed / 'metrics.jsonl').exists() or len(losses(killed)) < 25:
    assert time.monotonic() < deadline
    assert process.poll() is None, 'the run ended before it was killed'
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  again = llamax(*train_words(tiny_data, killed, *more))
  assert 'resuming after step' in again
  assert losses(killed) == losses(tmp_path / 'whole')
  generate = ('generate', f'--workdir={killed}', '--prompt=def f', '--max_new_tokens=8', '--seed=3')
  first, second = (llamax(*generate).partition('step 60:')[0] for _ in range(2))
  assert first.startswith('def f') and len(first) > 8
  assert first == second


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('--config.optim.learning_rat=1',), "Did you mean 'optim.learning_rate'"),
    (('--config.train.num_steps=1.5',), 'train.num_steps'),
    (('--config.mesh.fsdp=3',), 'mesh'),
    (('--config.model.vocab_size=300',), 'vocab'),
    (('--config.data.sources=no/such/folder',), 'no/such/folder'),
    (('--no_such_flag',), 'no_such_flag'),
    (('--config=configs/debgu.py',), 'debug.py'),
    (('--topology=v5e:2x2',), '--dry_run'),
  ],
  ids=lambda words: str(words)[:40],
)
def test_a_mistake_ends_with_code_2_before_training(tiny_data, tmp_path, capsys, words, message):
  """In this process: each one of its own would import jax, for seconds."""
  assert main(train_words(tiny_data, tmp_path / 'run', *words)) == 2
  assert_told(''.join(capsys.readouterr()), message, tmp_path)


def test_a_mistake_ends_a_process_with_code_2(tiny_data, tmp_path):
  said = llamax(*train_words(tiny_data, tmp_path / 'run', '--config.mesh.fsdp=3'), code=2)
  assert_told(said, 'mesh', tmp_path)


def assert_told(said, message, folder):
  assert message in said
  assert 'Traceback' not in said
  assert not (folder / 'run/metrics.jsonl').exists()


def test_dry_run_shows_where_values_come_from_without_data(tmp_path):
  said = llamax(
    'train', '--config=configs/llama3_8b.py', '--dry_run', '--config.mesh.fsdp=2', '--config.optim.b1=0.8'
  )
  for told in ('optim.b1', 'command line', 'file', '8,030,261,248 parameters', 'LDNH', 'memory', 'MB/device'):
    assert told in said


def test_help_is_instant():
  best = 9.0
  for _ in range(5):
    start = time.perf_counter()
    assert 'train' in llamax('--help')
    best = min(best, time.perf_counter() - start)
  print(f'llamax --help: {best:.2f} s')
  words = [sys.executable, '-X', 'importtime', '-m', 'llamax.cli.main', '--help']
  loaded = subprocess.run(words, env=ENV, capture_output=True, text=True, check=True).stderr
  for heavy in ('jax', 'flax', 'numpy', 'tensorflow_datasets', 'grain', 'orbax', 'absl', 'ml_collections'):
    assert f' {heavy}\n' not in loaded
