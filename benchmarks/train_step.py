"""Times llamax's train step against transformers with torch: same model, batch, threads, taking turns.

  python benchmarks/train_step.py --size=15m
  python benchmarks/train_step.py --size=60m --skip_compile --json=60m.json

Each library lives in a process of its own; the turns alternate, so that only one runs at a time; a machine that
gets slower slows all of them. CPU, float32, full step: loss, gradient, clipping, AdamW.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# name -> tokens per row; the models are llamax_15m, llamax_60m of llamax/model/presets.py.
SEQ_LEN = {'15m': 256, '60m': 512}
LOSS_TOLERANCE = 1e-4  # relative, of the first loss: same weights, same tokens


class Worker:
  """A process of train_step_workers.py that answers one line to each line it is sent."""

  def __init__(self, args: dict[str, Any]):
    self.name = args['name']
    # The same CPUs for all; XLA takes its thread count from NPROC, OpenMP from its own variable.
    env = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'NPROC': str(args['threads']),
      'OMP_NUM_THREADS': str(args['threads']),
    }
    env |= {'PYTHONPATH': str(ROOT), 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, str(ROOT / 'benchmarks/train_step_workers.py'), json.dumps(args)]
    self.started = time.perf_counter()
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)
    self.first = self.read()
    self.first_step_after_s = time.perf_counter() - self.started
    self.turns: list[dict[str, Any]] = []

  def read(self) -> dict[str, Any]:
    line = self.process.stdout.readline()
    if not line:
      raise ChildProcessError(f'{self.name} ended with code {self.process.wait()}; its messages are above')
    return json.loads(line)

  def turn(self) -> None:
    self.process.stdin.write('\n')
    self.process.stdin.flush()
    self.turns.append(self.read())

  def stop(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--size', choices=SEQ_LEN, default='15m')
  parser.add_argument('--batch', type=int, default=8, help='rows per step')
  parser.add_argument('--rounds', type=int, default=10, help='turns of each library')
  parser.add_argument('--steps_per_turn', type=int, default=2)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument('--loss_chunks', type=int, default=4, help='llamax: compute.loss_chunks')
  parser.add_argument('--unroll_layers', action='store_true', help='llamax: compute.scan_layers=False')
  parser.add_argument(
    '--skip_compile', action='store_true', help='leave torch.compile out (it compiles for minutes)'
  )
  parser.add_argument('--json', metavar='PATH', help='write every number here')
  args = parser.parse_args(argv)
  if args.threads > len(os.sched_getaffinity(0)):
    parser.error(f'--threads={args.threads}: this process may use {len(os.sched_getaffinity(0))} CPUs')
  return args


def machine() -> dict[str, Any]:
  cpu = platform.processor() or platform.machine()
  cpuinfo = Path('/proc/cpuinfo')
  if cpuinfo.exists():
    names = [
      line.split(':')[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith('model name')
    ]
    cpu = names[0] if names else cpu
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  return {
    'cpu': cpu,
    'cpus': os.cpu_count(),
    'memory_gib': round(memory, 1),
    'system': platform.platform(),
    'python': platform.python_version(),
  }


def start_workers(args: argparse.Namespace) -> tuple[list[Worker], list[str]]:
  """(workers, what was left out and why). One at a time: compiling is timed too."""
  has_torch = all(importlib.util.find_spec(name) for name in ('torch', 'transformers'))
  names, notes = ['llamax', 'matmul jax'], []
  if has_torch:
    names += ['torch', 'matmul torch']
  else:
    notes.append('torch or transformers is missing: llamax alone. pip install llamax[parity] brings both')
  if has_torch and args.skip_compile:
    notes.append('torch.compile left out: --skip_compile')
  elif has_torch:
    names.append('torch.compile')
  settings = {
    'size': args.size,
    'seq_len': SEQ_LEN[args.size],
    'batch': args.batch,
    'threads': args.threads,
    'steps_per_turn': args.steps_per_turn,
    'loss_chunks': args.loss_chunks,
    'scan_layers': not args.unroll_layers,
  }
  workers = []
  for name in names:
    print(f'starting {name} ...', file=sys.stderr, flush=True)
    try:
      workers.append(Worker(settings | {'name': name}))
    except ChildProcessError as error:
      if name != 'torch.compile':
        raise
      notes.append(f'torch.compile left out: {error}')
  return workers, notes


def check_first_losses(steppers: list[Worker]) -> None:
  losses = {w.name: w.first['loss'] for w in steppers}
  if any(abs(x / losses['llamax'] - 1) > LOSS_TOLERANCE for x in losses.values()):
    raise SystemExit(f'the first losses differ, so these are not the same model: {losses}')


def run_rounds(workers: list[Worker], rounds: int) -> None:
  for i in range(rounds):
    # Rotated: nobody always runs after the same neighbour.
    for worker in workers[i % len(workers) :] + workers[: i % len(workers)]:
      worker.turn()
    print(f'round {i + 1}/{rounds}', file=sys.stderr, flush=True)


def summarise(args: argparse.Namespace, workers: list[Worker]) -> dict[str, Any]:
  from train_step_workers import dim_sizes, initial_weights, model_fields

  from llamax.core.config import ModelConfig
  from llamax.observe.perf import flops_per_token

  fields = model_fields(args.size, SEQ_LEN[args.size])
  sizes = dim_sizes(fields)
  num_params = sum(w.size for _, w in initial_weights(fields)) + (2 * sizes['L'] + 1) * sizes['D']
  flops = flops_per_token(ModelConfig(**fields), num_params, SEQ_LEN[args.size]).causal
  tokens = args.batch * SEQ_LEN[args.size]

  matmul = {
    w.name.removeprefix('matmul '): statistics.median(t['flops_per_second'] for t in w.turns)
    for w in workers
    if w.name.startswith('matmul')
  }
  rows = {}
  for worker in workers:
    if worker.name.startswith('matmul'):
      continue
    rates = [tokens * len(t['seconds']) / sum(t['seconds']) for t in worker.turns]
    median = statistics.median(tokens / s for t in worker.turns for s in t['seconds'])
    rows[worker.name] = {
      'tokens_per_second': median,
      'by_round': rates,
      'cpu_s_per_step': statistics.median(t['cpu_s'] / len(t['seconds']) for t in worker.turns),
      'idle_cpu_s': sum(t['idle_cpu_s'] for t in worker.turns),
      'peak_rss_gb': worker.turns[-1]['peak_rss'] / 1e9,
      'first_step_s': worker.first['first_step_s'],
      'start_to_first_step_s': worker.first_step_after_s,
      'of_matmul_rate': median * flops / max(matmul.values()),
      'first_loss': worker.first['loss'],
      'last_loss': worker.turns[-1]['loss'],
    }
  for row in rows.values():
    ratios = [ours / its for ours, its in zip(rows['llamax']['by_round'], row['by_round'], strict=True)]
    row['llamax_over_this'] = {'median': statistics.median(ratios), 'least': min(ratios), 'most': max(ratios)}
  versions: dict[str, str] = {}
  for worker in workers:
    versions |= worker.first['versions']
  return {
    'settings': vars(args) | {'seq_len': SEQ_LEN[args.size], 'num_params': num_params},
    'machine': machine() | {'versions': versions},
    'flops_per_token': flops,
    'matmul_flops_per_second': matmul,
    'libraries': rows,
  }


def report(result: dict[str, Any], notes: list[str]) -> str:
  s, m = result['settings'], result['machine']
  rates = ', '.join(
    f'{lib} {rate / 1e9:.0f} GFLOP/s' for lib, rate in result['matmul_flops_per_second'].items()
  )
  lines = [
    f'{s["size"]}: {s["num_params"]:,} parameters, {s["batch"]} x {s["seq_len"]} tokens a step, float32, '
    f'{s["threads"]} threads, {s["rounds"]} rounds of {s["steps_per_turn"]} steps',
    f'{m["cpu"]}, {m["cpus"]} CPUs, {m["memory_gib"]} GiB, {m["system"]}, Python {m["python"]}, '
    + ', '.join(f'{k} {v}' for k, v in m['versions'].items()),
    f'load average {m["load_before"]:.1f} before, {m["load_after"]:.1f} after; '
    f'above {s["threads"]} others were at work, which costs the libraries unequally',
    f'llamax: loss_chunks={s["loss_chunks"]}, scan_layers={not s["unroll_layers"]}, attention=xla, remat=none; '
    'torch: sdpa, fused AdamW',
    f'model: {result["flops_per_token"] / 1e6:.1f} MFLOP a token (convention A of docs/metrics.md)',
    f'matrix products of its shapes: {rates}; the faster one is the 100 % of the last column',
    '',
    '| library | tokens/s | llamax / this (least to most) | CPU s/step | memory | first step | model FLOPs |',
    '|---|---|---|---|---|---|---|',
  ]
  for name, row in result['libraries'].items():
    ratio = row['llamax_over_this']
    lines.append(
      f'| {name} | {row["tokens_per_second"]:,.0f} '
      f'| {ratio["median"]:.2f} ({ratio["least"]:.2f} to {ratio["most"]:.2f}) '
      f'| {row["cpu_s_per_step"]:.2f} | {row["peak_rss_gb"]:.2f} GB | {row["first_step_s"]:.1f} s '
      f'| {row["of_matmul_rate"]:.0%} |'
    )
  losses = ', '.join(
    f'{k} {v["first_loss"]:.6f} to {v["last_loss"]:.6f}' for k, v in result['libraries'].items()
  )
  idle = max(row['idle_cpu_s'] for row in result['libraries'].values())
  lines += [
    '',
    f'loss, first to last step: {losses}',
    f'CPU seconds used out of turn: {idle:.2f} at most',
    *notes,
  ]
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  # Workers inherit this: nobody may use more CPUs than --threads.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  load_before = os.getloadavg()[0]
  workers, notes = start_workers(args)
  try:
    check_first_losses([w for w in workers if 'loss' in w.first])
    run_rounds(workers, args.rounds)
    result = summarise(args, workers)
  finally:
    for worker in workers:
      worker.stop()
  result['machine'] |= {'load_before': load_before, 'load_after': os.getloadavg()[0]}
  print(report(result, notes))
  if args.json:
    Path(args.json).write_text(json.dumps(result | {'notes': notes}, indent=1) + '\n')


if __name__ == '__main__':
  main()
