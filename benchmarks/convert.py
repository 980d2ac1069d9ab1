"""Converts a large synthetic checkpoint Hugging Face -> llamax -> Hugging Face: memory, speed beside cp, bytes.

  python benchmarks/convert.py --folder=/somewhere/with/room          # 16 GB; needs three times that
  python benchmarks/convert.py --folder=... --gigabytes=4             # the same model with fewer layers

Random bits in the shape of Llama 3 8B, bfloat16. In one run, on one disk: `cp` of the files, then both
conversions, each with its peak of memory, its bytes per second beside cp's, then the SHA-256 of each tensor.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from llamax.convert import hf
from llamax.convert.hf_config import write_model
from llamax.convert.rows import bind
from llamax.convert.target import Model, Wanted
from llamax.core.config import ModelConfig
from llamax.model.presets import PRESETS

_BF16_BYTES = 2
_BUFFER = 1 << 26


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=Path, required=True, help='an empty folder on the disk that is measured')
  parser.add_argument('--gigabytes', type=float, default=16.1)
  parser.add_argument('--threads', type=int)
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  source, there, back, copy = (args.folder / name for name in ('hf', 'llamax', 'back', 'cp'))
  for folder in (source, there, back, copy):
    shutil.rmtree(folder, ignore_errors=True)
  size = make(source, args.gigabytes)
  print(f'source: {size / 1e9:.2f} GB of random bfloat16', flush=True)
  threads = [f'--threads={args.threads}'] if args.threads else []
  rates = {}
  plain = ['sh', '-c', f'cp -r "{source}" "{copy}" && sync -f "{copy}"']
  rates['cp'] = size / timed(plain, 'cp, then sync')[0]
  shutil.rmtree(copy)
  for name, first, second, to in (
    ('HF -> llamax', source, there, 'llamax'),
    ('llamax -> HF', there, back, 'hf'),
  ):
    command = [
      sys.executable,
      '-m',
      'llamax.cli.main',
      'convert',
      str(first),
      str(second),
      f'--to={to}',
      *threads,
    ]
    seconds, memory = timed(command, name)
    rates[name] = size / seconds
    print(f'  {rates[name] / rates["cp"]:.2f} of cp; peak memory {memory / 1e9:.2f} GB', flush=True)
  print('comparing the SHA-256 of each tensor ...', flush=True)
  before, after = digests(source), digests(back)
  print(f'{len(before)} tensors, {sum(before[name] != after.get(name) for name in before)} differ')
  assert before == after


def make(folder: Path, gigabytes: float) -> int:
  """Writes the checkpoint; returns the bytes of its files of weights."""
  shape = ModelConfig(preset='none', **PRESETS['llama3_8b'])
  heads = 2 * shape.head_dim * (shape.num_heads + shape.num_kv_heads)
  layer = shape.d_model * (heads + 3 * shape.d_ff)
  layers = round((gigabytes * 1e9 / _BF16_BYTES - 2 * shape.vocab_size * shape.d_model) / layer)
  cfg = dataclasses.replace(shape, num_layers=max(1, min(shape.num_layers, layers)))
  target = hf.Target(Model(cfg, 'llama', None, {}))
  target.result = folder.name
  import ml_dtypes

  tensors = [
    Wanted(place.theirs, place.layout.shape, np.dtype(ml_dtypes.bfloat16))
    for place in bind(hf.ROWS, cfg, 'hf').values()
  ]
  target.folder = folder.parent
  target.lay_out(folder.parent, tensors)
  noise = np.random.default_rng(0)
  for tensor in tensors:
    file, at = target.extents[tensor.name]
    left = tensor.num_bytes
    while left:
      piece = noise.bytes(min(left, _BUFFER))
      file.write(at + tensor.num_bytes - left, piece)
      left -= len(piece)
  target.finish()
  (folder / 'config.json').write_text(json.dumps(write_model(cfg, 'llama', 'bfloat16', {})))
  target.sync()
  return sum(file.stat().st_size for file in folder.glob('*.safetensors'))


def timed(command: list[str], name: str) -> tuple[float, int]:
  """(seconds, peak bytes of memory) of a command."""
  start = time.monotonic()
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  _, status, usage = os.wait4(process.pid, 0)
  seconds = time.monotonic() - start
  assert status == 0, f'{name} failed: {" ".join(command)}'
  print(f'{name}: {seconds:.1f} s', flush=True)
  return seconds, usage.ru_maxrss * 1024


def digests(folder: Path) -> dict[str, str]:
  found = {}
  for file in sorted(folder.glob('*.safetensors')):
    with open(file, 'rb') as opened:
      size = int.from_bytes(opened.read(8), 'little')
      header = json.loads(opened.read(size))
      header.pop('__metadata__', None)
      for name, tensor in header.items():
        begin, end = tensor['data_offsets']
        opened.seek(8 + size + begin)
        digest = hashlib.sha256()
        while begin < end:
          digest.update(piece := opened.read(min(_BUFFER, end - begin)))
          begin += len(piece)
        found[name] = digest.hexdigest()
  return found


if __name__ == '__main__':
  main()
