"""What jax finds on this machine, asked in a process of its own: a held TPU lets it wait for ever."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamax.launch.checkup.finding import FAIL, OK, WARN, Finding, one_line
from llamax.launch.checkup.hardware import Hardware

_MARK = 'llamax doctor: '
_DYING = 5.0  # seconds
# Only what is asked here is imported: it has to answer where llamax itself would not start.
_QUESTION = (
  """
import json
answer = {}
try:
  import jax
  answer['jax'] = jax.__version__
  try:
    found = jax.local_devices()
    answer['platform'] = jax.default_backend()
    answer['kinds'] = [d.device_kind for d in found]
    answer['count'], answer['all'] = len(found), jax.device_count()
    if answer['platform'] != 'cpu':
      import jax.numpy as jnp
      answer['sum'] = float(jnp.ones((128, 128)).sum())
      with_stats = [d.memory_stats() for d in found]
      answer['memory'] = [s.get('bytes_limit') for s in with_stats if s]
  except Exception as error:
    answer['error'] = f'{type(error).__name__}: {error}'
  try:
    from jax._src import xla_bridge
    answer['backends'] = {str(k): str(v) for k, v in xla_bridge._backend_errors.items()}
  except Exception:
    pass
except BaseException as error:
  answer['import'] = f'{type(error).__name__}: {error}'
print()
print("""
  + repr(_MARK)
  + """ + json.dumps(answer), flush=True)
"""
)


@dataclass(frozen=True)
class Answer:
  """What the process said. facts: empty when it said nothing in time, or died. stderr: its last lines."""

  facts: Mapping[str, Any] = field(default_factory=dict)
  stderr: str = ''
  code: int | None = None  # None: it did not end in time


def ask(hardware: Hardware, seconds: float, environ: Mapping[str, str]) -> Answer:
  """Asks jax under `environ` as a run of llamax would have it."""
  env = dict(environ)
  if hardware.kind is None:
    # As a run does: else libtpu, where it is installed to compile with, looks for a TPU in the network.
    env.setdefault('JAX_PLATFORMS', 'cpu')
  env['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # Somebody's run may have the memory.
  env['TF_CPP_MIN_LOG_LEVEL'] = '0'
  # No `with`: that would wait for it without end, where not even SIGKILL ends it.
  process = subprocess.Popen(
    [sys.executable, '-c', _QUESTION],
    env=env,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    errors='replace',
    start_new_session=True,
  )
  try:
    out, err = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    return Answer(stderr=_last(_killed(process)))
  line = next((line for line in reversed(out.splitlines()) if line.startswith(_MARK)), None)
  facts = json.loads(line.removeprefix(_MARK)) if line else {}
  return Answer(facts, _last(err), process.returncode)


def _killed(process: subprocess.Popen[str]) -> str:
  """What it has said on standard error; '' of one that does not die, which is left behind."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  try:
    return process.communicate(timeout=_DYING)[1]
  except subprocess.TimeoutExpired:  # In the kernel's hands, as a device driver may have it.
    for pipe in (process.stdout, process.stderr):
      if pipe is not None:
        pipe.close()
    return ''


def examine(
  hardware: Hardware,
  answer: Answer,
  installed: Collection[str],
  environ: Mapping[str, str],
  seconds: float,
) -> list[Finding]:
  """Whether jax uses what the machine has; where it does not, the reason."""
  findings = [Finding('hardware', OK, str(hardware), value=[hardware.kind, hardware.chips, hardware.name])]
  facts = answer.facts
  if 'import' in facts:
    todo = f'mend the environment of {sys.executable}: make a new venv, pip install llamax'
    return [*findings, Finding('jax', FAIL, f'cannot be imported: {one_line(facts["import"])}', todo)]
  if not facts:
    return [*findings, _silent(hardware, answer, environ, seconds)]
  if 'error' in facts and 'platform' not in facts:
    text = f'finds no device: {one_line(facts["error"])}'
    return [*findings, Finding('jax', FAIL, text, why(hardware, answer, installed, environ)[1])]
  kinds = sorted(set(facts['kinds']))
  shown = f'{facts["count"]} {facts["platform"]} device{"s" * (facts["count"] != 1)} ({", ".join(kinds)})'
  if facts['all'] != facts['count']:
    shown += f', {facts["all"]} in the whole run'
  value = [facts['platform'], facts['count'], kinds]
  if 'error' in facts:
    text = f'{shown}, but a sum on them fails: {one_line(facts["error"])}'
    return [*findings, Finding('jax', FAIL, text, 'look at who holds them, at the driver', value)]
  wanted = {'tpu': 'tpu', 'gpu': 'gpu'}.get(hardware.kind or '')
  if wanted and facts['platform'] != wanted:
    reason, todo = why(hardware, answer, installed, environ)
    text = f'FELL BACK TO THE CPU though this machine has {hardware}: {reason}'
    return [*findings, Finding('jax', FAIL, text, todo, value)]
  if wanted and hardware.chips and facts['count'] < hardware.chips:
    hiding = [name for name in _HIDING if environ.get(name)]
    reason = ', '.join(f'{name}={environ[name]}' for name in hiding) or 'no variable that hides them is set'
    todo = f'unset {" ".join(hiding)}, if that is not wanted' if hiding else 'look at who holds the others'
    return [*findings, Finding('jax', WARN, f'{shown} of {hardware.chips} chips: {reason}', todo, value)]
  return [*findings, Finding('jax', OK, shown, value=value)]


def not_asked(hardware: Hardware) -> list[Finding]:
  """Instead of `examine` where another process holds the TPU."""
  return [
    Finding('hardware', OK, str(hardware), value=[hardware.kind, hardware.chips, hardware.name]),
    Finding(
      'jax', WARN, 'not asked: another process holds the TPU', 'end that process (see holder), ask again'
    ),
  ]


_HIDING = ('CUDA_VISIBLE_DEVICES', 'TPU_VISIBLE_CHIPS', 'TPU_VISIBLE_DEVICES', 'TPU_CHIPS_PER_PROCESS_BOUNDS')


def why(
  hardware: Hardware, answer: Answer, installed: Collection[str], environ: Mapping[str, str]
) -> tuple[str, str]:
  """Why jax does not use `hardware`, what to do: the first reason that explains it."""
  platforms = environ.get('JAX_PLATFORMS', '')
  names = {'tpu': ('tpu',), 'gpu': ('cuda', 'gpu')}.get(hardware.kind or '', ())
  if platforms and not set(platforms.lower().split(',')) & set(names):
    return f'JAX_PLATFORMS={platforms} in the environment', 'unset JAX_PLATFORMS'
  if hardware.kind == 'tpu' and 'libtpu' not in installed:
    return 'libtpu is not installed', "pip install -c constraints/pyXYZ.txt 'llamax[tpu]'"
  plugins = [name for name in installed if name.startswith('jax-cuda') and name.endswith('-plugin')]
  if hardware.kind == 'gpu' and not plugins:
    return 'no CUDA plugin of jax is installed', "pip install -c constraints/pyXYZ.txt 'llamax[cuda]'"
  if hardware.kind == 'gpu' and not hardware.nodes:
    todo = "load NVIDIA's driver (nvidia-smi must work); in a container: start it with --gpus all"
    return 'no /dev/nvidia0: the driver is not loaded, or this container does not see it', todo
  if hardware.kind == 'gpu' and environ.get('CUDA_VISIBLE_DEVICES', '0').strip() in ('', '-1'):
    return f'CUDA_VISIBLE_DEVICES={environ["CUDA_VISIBLE_DEVICES"]!r} hides them', 'unset CUDA_VISIBLE_DEVICES'
  backends = answer.facts.get('backends', {})
  said = next((text for name, text in backends.items() if name in (*names, 'cuda')), '')
  said = said or str(answer.facts.get('error', '')) or answer.stderr
  if 'in use' in said or 'lockfile' in said:
    return one_line(said), 'end the process that holds the TPU, then: sudo rm -f /tmp/libtpu_lockfile'
  if said:
    return one_line(said), 'the first words name it; look at the line of the holder, of the versions above'
  return 'jax gave no reason', 'look at the line of the holder, of the versions above'


def _silent(hardware: Hardware, answer: Answer, environ: Mapping[str, str], seconds: float) -> Finding:
  """jax said nothing: it waits, or it died."""
  last = f'; its last words: {one_line(answer.stderr)}' if answer.stderr else ''
  if answer.code is not None:
    how = f'exit code {answer.code}' if answer.code >= 0 else f'killed by signal {-answer.code}'
    return Finding('jax', FAIL, f'died while it looked for devices ({how}){last}', 'look at the versions above')
  text = f'did not answer within {seconds:.0f} s{last}'
  if hardware.kind != 'tpu':
    return Finding('jax', FAIL, text, 'a slow disk or a stuck driver: try again with --seconds=300')
  if environ.get('TPU_WORKER_HOSTNAMES', '').count(','):
    todo = 'the workers of a pod answer only together: llamax launch TARGET doctor asks all of them'
    return Finding('jax', FAIL, text, todo)
  todo = 'another process has the TPU (see holder), or this is one worker of a pod, which answer only together'
  return Finding('jax', FAIL, text, todo)


def _last(text: str, lines: int = 3) -> str:
  return '\n'.join([line for line in text.splitlines() if line.strip()][-lines:])


def environment(environ: Mapping[str, str]) -> Finding:
  """The variables that change what jax, XLA, libtpu, NCCL do."""
  kinds = ('JAX_', 'XLA_', 'LIBTPU_', 'TPU_', 'NCCL_', 'CUDA_', 'LLAMAX_', 'GLIBC_TUNABLES', 'LD_PRELOAD')
  found = {name: environ[name] for name in sorted(environ) if name.startswith(kinds)}
  shown = (
    ', '.join(f'{name}={one_line(text, 60)}' for name, text in found.items()) or 'no variable of jax or XLA'
  )
  # Each worker has its own of the others, or may have.
  same = ('JAX_', 'XLA_', 'LIBTPU_', 'NCCL_', 'LLAMAX_')
  own = ('JAX_PROCESS_ID', 'JAX_LOCAL_DEVICE_IDS', 'LLAMAX_CACHE')
  value = {name: text for name, text in found.items() if name.startswith(same) and name not in own}
  return Finding('environment', OK, shown, value=value)
