"""Starts runs of llamax in a second each: a process that has imported all of it forks a child for each run.

Nothing of jax's devices is touched before the fork. The server is this file run as a program:
lines of JSON come in on stdin ({"start": ...}), lines of JSON go out ({"pid": ...}, {"pid": ..., "exit": ...}).
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILL, FAIL_ONCE, FAIL_FROM, TEAR, KILL_AFTER = 1, 2, 3, 4, 5  # of faulty_disk.c
QUIET = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # tiny programs: compiling them well costs more
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  'TF_CPP_MIN_LOG_LEVEL': '2',
}


def with_devices(count: int) -> dict[str, str]:
  """The environment of a process with so many devices. Of a flag said twice the last one holds."""
  return {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={count}'}


class Child:
  """One run. log: its screen."""

  def __init__(self, pid: int, log: Path):
    self.pid, self.log = pid, log
    self.code: int | None = None
    self.ended = threading.Event()

  def kill(self, number: int = signal.SIGKILL) -> None:
    if not self.ended.is_set():
      os.kill(self.pid, number)

  def wait(self, seconds: float = 60) -> int:
    """The exit code, -9 after SIGKILL. A run that hangs is killed, its screen shown."""
    if not self.ended.wait(seconds):
      self.kill(signal.SIGABRT)
      self.ended.wait(10)
      self.kill()
      raise AssertionError(f'hung for {seconds} s:\n{self.screen()}')
    assert self.code is not None
    return self.code

  def screen(self) -> str:
    return self.log.read_text(errors='replace')


class ForkServer:
  """`start(function or llamax's arguments)`; a context manager."""

  def __init__(self, devices: int = 1, preload: Path | None = None, **env: str):
    env = {**os.environ, **QUIET, **with_devices(devices), 'PYTHONPATH': str(ROOT), **env}
    if preload:
      env['LD_PRELOAD'] = str(preload)
    self._children: dict[int, Child] = {}
    self._started: list[int] = []
    self._news = threading.Condition()
    self._server = subprocess.Popen(
      [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True, cwd=ROOT
    )
    threading.Thread(target=self._listen, daemon=True).start()

  def __enter__(self) -> 'ForkServer':
    return self

  def __exit__(self, *exc_info: object) -> None:
    assert self._server.stdin
    self.kill()
    self._server.stdin.close()
    self._server.wait(30)

  def kill(self) -> None:
    """All that has not ended."""
    for child in list(self._children.values()):
      child.kill()

  def start(
    self, words: list[str], log: Path, call: str | None = None, arm: dict | None = None, **env: str
  ) -> Child:
    """A run of `llamax WORDS`, or of `call` (FILE.py:FUNCTION) with these words.

    arm: arguments of faulty_disk_arm, as a mapping {path, n, how, error, log}.
    """
    request = {'words': list(map(str, words)), 'log': str(log), 'call': call, 'arm': arm, 'env': env}
    assert self._server.stdin
    with self._news:
      self._server.stdin.write(json.dumps(request) + '\n')
      self._server.stdin.flush()
      assert self._news.wait_for(lambda: self._started or self._server.poll() is not None, 240), 'no server'
      assert self._started, 'the server ended'
      pid = self._started.pop()
      child = self._children[pid]
      child.log = log
      return child

  def _listen(self) -> None:
    assert self._server.stdout
    for line in self._server.stdout:
      news = json.loads(line)
      with self._news:
        if 'exit' in news:
          child = self._children[news['pid']]
          child.code = news['exit']
          child.ended.set()
        else:
          self._children[news['pid']] = Child(news['pid'], Path(os.devnull))
          self._started.append(news['pid'])
        self._news.notify_all()
    self._server.wait()
    with self._news:
      self._news.notify_all()  # Whoever waits for a child of it.


def words(tiny_data: Path, workdir: Path, **changes: object) -> list[str]:
  """Arguments of a run with a checkpoint each second step, each step's rows and loss logged."""
  config = {
    'data.sources': tiny_data,
    'eval.splits': f'validation={tiny_data}:validation',
    'eval.num_batches': 1,
    'eval.every': 6,
    'sample.prompts': '()',  # Nothing here is about them: three programs less to trace.
    'data.seq_len': 32,
    'train.batch_size': 2,
    'train.num_steps': 1_000_000,
    'optim.schedule': 'constant',
    'optim.warmup_steps': 0,  # A run that is killed early is compared with one of as few steps.
    'mesh.fsdp': 1,
    'log.every': 1,
    'log.batches': 'true',
    'checkpoint.every': 2,
    'checkpoint.keep_every': 50,
    'checkpoint.lease_seconds': 10,
    'compute.compilation_cache': 'none',
    **changes,
  }
  flags = [f'--config.{key}={value}' for key, value in config.items()]
  return ['train', '--config=configs/debug.py', f'--workdir={workdir}', *flags]


def compile_faulty_disk(folder: Path) -> Path:
  """The shim, compiled; raises FileNotFoundError where there is no C compiler."""
  out = folder / 'faulty_disk.so'
  source = Path(__file__).with_name('faulty_disk.c')
  subprocess.run(['cc', '-O1', '-shared', '-fPIC', '-o', out, source, '-ldl'], check=True)
  return out


def _child(request: dict) -> int:
  out = os.open(request['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
  os.dup2(out, 1)
  os.dup2(out, 2)
  sys.stdin = open(os.devnull)  # noqa: SIM115
  os.environ.update(request['env'])
  if arm := request['arm']:
    import ctypes

    log = arm.get('log')
    ctypes.CDLL(os.environ['LD_PRELOAD']).faulty_disk_arm(
      arm['path'].encode(), ctypes.c_long(arm['n']), arm['how'], arm.get('error', 5), log and log.encode()
    )
  if request['call']:
    file, function = request['call'].rsplit(':', 1)
    names: dict = {'__name__': 'called', '__file__': file}
    exec(compile(Path(file).read_text(), file, 'exec'), names)
    return names[function](*request['words']) or 0
  from llamax.cli.main import main

  return main(request['words'])


def _serve() -> None:
  import importlib
  import warnings

  warnings.filterwarnings('ignore', message='.*fork.*')
  for name in (
    'llamax.train.loop',
    'llamax.cli.train',
    'llamax.cli.configure',
    'ml_collections',
    'matplotlib.figure',
  ):
    importlib.import_module(name)
  import tensorflow_datasets as tfds

  tfds.builder_from_directory  # noqa: B018 - its lazy imports
  gc.freeze()  # The children need not look through all of it again and again.
  out = sys.stdout
  lock = threading.Lock()

  def tell(**news: int) -> None:
    with lock:
      out.write(json.dumps(news) + '\n')
      out.flush()

  def reap(pid: int) -> None:
    tell(pid=pid, exit=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

  for line in sys.stdin:
    request = json.loads(line)
    with lock:  # No other thread is in the middle of a write when the child is made.
      pid = os.fork()
    if pid == 0:
      code = 1
      try:
        code = _child(request)
      except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
      except BaseException:
        import traceback

        traceback.print_exc()
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    tell(pid=pid)
    threading.Thread(target=reap, args=(pid,), daemon=True).start()
  time.sleep(0.1)


if __name__ == '__main__':
  _serve()
