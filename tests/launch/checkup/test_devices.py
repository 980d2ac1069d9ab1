"""Whether jax uses what the machine has, the reason where it does not; jax is asked for real."""

import os
import signal
import subprocess
import time

import pytest

from llamax.launch.checkup import devices
from llamax.launch.checkup.devices import Answer, ask, environment, examine
from llamax.launch.checkup.finding import FAIL, OK, WARN
from llamax.launch.checkup.hardware import Hardware

NONE = Hardware(None, 0, '', ())
TPU = Hardware('tpu', 4, 'v5e', ('/dev/accel0',))
GPU = Hardware('gpu', 2, '', ('/dev/nvidia0', '/dev/nvidia1'))
NO_DRIVER = Hardware('gpu', 2, '', ())


def said(platform='cpu', count=1, **facts):
  return Answer(
    {'jax': '0.10.2', 'platform': platform, 'count': count, 'all': count, 'kinds': [platform], **facts}
  )


IN_USE = {'tpu': 'ABORTED: The TPU is already in use by process with pid 7.\nNot loading libtpu.so'}


@pytest.mark.parametrize(
  ('hardware', 'answer', 'installed', 'environ', 'text', 'todo'),
  [
    (TPU, said(), ['jax'], {}, 'libtpu is not installed', 'llamax[tpu]'),
    (TPU, said(), ['libtpu'], {'JAX_PLATFORMS': 'cpu'}, 'JAX_PLATFORMS=cpu', 'unset JAX_PLATFORMS'),
    (TPU, said(backends=IN_USE), ['libtpu'], {}, 'in use by process with pid 7', 'libtpu_lockfile'),
    (TPU, said(backends={'tpu': 'strange'}), ['libtpu'], {'JAX_PLATFORMS': 'tpu,cpu'}, 'strange', 'look at'),
    (GPU, said(), ['jax'], {}, 'no CUDA plugin', 'llamax[cuda]'),
    (GPU, said(), ['jax-cuda12-plugin'], {'CUDA_VISIBLE_DEVICES': ''}, 'hides them', 'unset'),
    (NO_DRIVER, said(), ['jax-cuda12-plugin'], {}, 'the driver is not loaded', 'nvidia-smi'),
    (GPU, said(backends={'cuda': 'no kernel image'}), ['jax-cuda12-plugin'], {}, 'no kernel image', 'look at'),
    (GPU, said(), ['jax-cuda12-plugin'], {}, 'gave no reason', 'look at'),
  ],
)  # fmt: skip
def test_a_fall_back_has_its_reason(hardware, answer, installed, environ, text, todo):
  _, finding = examine(hardware, answer, installed, environ, 90)
  assert finding.verdict == FAIL and finding.text.startswith('FELL BACK TO THE CPU though this machine has')
  assert text in finding.text and todo in finding.todo


@pytest.mark.parametrize(
  ('hardware', 'answer', 'environ', 'verdict', 'text'),
  [
    (NONE, said(), {}, OK, '1 cpu device (cpu)'),
    (TPU, said('tpu', 4), {}, OK, '4 tpu devices (tpu)'),
    (GPU, said('gpu', 1), {'CUDA_VISIBLE_DEVICES': '1'}, WARN, 'of 2 chips: CUDA_VISIBLE_DEVICES=1'),
    (TPU, said('tpu', 4, error='no memory'), {}, FAIL, 'a sum on them fails: no memory'),
    (TPU, Answer({'jax': '1', 'error': 'RuntimeError: no TPU'}), {}, FAIL, 'finds no device'),
    (NONE, Answer({'import': "ModuleNotFoundError: No module named 'jax'"}), {}, FAIL, 'cannot be imported'),
    (TPU, Answer(stderr='waiting\nfor libtpu'), {}, FAIL, 'answer within 90 s; its last words: waiting for'),
    (TPU, Answer(code=-11), {}, FAIL, 'killed by signal 11'),
  ],
)  # fmt: skip
def test_other_answers(hardware, answer, environ, verdict, text):
  finding = examine(hardware, answer, ['libtpu', 'jax-cuda12-plugin'], environ, 90)[-1]
  assert finding.verdict == verdict and text in finding.text


def test_a_worker_of_a_pod_is_told_to_ask_all():
  environ = {'TPU_WORKER_HOSTNAMES': 'w-0,w-1'}
  assert 'llamax launch' in examine(TPU, Answer(), ['libtpu'], environ, 90)[-1].todo


@pytest.mark.parametrize(
  ('jax', 'text'),
  [
    ('import time; time.sleep(99)', 'did not answer within 1 s'),
    ('raise RuntimeError("half installed")', 'cannot be imported: RuntimeError: half installed'),
    ('import os; os.kill(os.getpid(), 11)', 'killed by signal 11'),
    ('import os; os._exit(3)', 'exit code 3'),
  ],
)
def test_a_jax_that_hangs_or_dies_is_told(tmp_path, jax, text):
  (tmp_path / 'jax.py').write_text(jax)
  start = time.monotonic()
  seconds = 1 if 'sleep' in jax else 60
  answer = ask(NONE, seconds, {**os.environ, 'PYTHONPATH': str(tmp_path)})
  finding = examine(NONE, answer, [], {}, seconds)[-1]
  assert finding.verdict == FAIL and text in finding.text
  assert time.monotonic() - start < 30


def test_the_question_takes_no_memory_from_a_run(monkeypatch):
  monkeypatch.setattr(devices, '_QUESTION', 'import os; print(); print("llamax doctor: " + '
    'repr(os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false").lower())')  # fmt: skip
  assert ask(GPU, 30, dict(os.environ)).facts is True


def test_variables_that_change_a_run_are_compared():
  finding = environment({'XLA_FLAGS': '--a', 'HOME': '/root', 'TPU_WORKER_ID': '3', 'AWS_SECRET': 'x'})
  assert finding.value == {'XLA_FLAGS': '--a'} and 'x' not in finding.text.split(', ')


def test_a_jax_that_not_even_sigkill_ends_is_left(tmp_path, monkeypatch):
  """As in state D, within a device's driver."""
  (tmp_path / 'jax.py').write_text('import time; time.sleep(8)')
  monkeypatch.setattr(devices, '_DYING', 0.3, raising=False)
  started, popen = [], subprocess.Popen
  monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
  with monkeypatch.context() as context:
    context.setattr(os, 'killpg', lambda *_: None)
    start = time.monotonic()
    assert ask(NONE, 0.3, {**os.environ, 'PYTHONPATH': str(tmp_path)}) == Answer()
    took = time.monotonic() - start
  (process,) = started
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  assert took < 4 and process.stdout.closed and process.stderr.closed
