"""Stands for llamax train in tests of who starts it: writes the same files, in milliseconds, without jax.

python fake_train.py WORKDIR STEPS SCALE [fail|diverge]: the loss of step k is SCALE * (1 + 1 / k) to the bit,
by whatever way it comes there. It ends with an error when another process is in the same workdir.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

EVERY = 5  # steps between checkpoints


def loss(scale, step, how):
  if how == 'diverge' and step > 20:
    return scale * step
  return scale * (1 + 1 / step)


def main(workdir, steps, scale, how=''):
  steps, scale, folder = int(steps), float(scale), Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  lock = open(folder / 'fake.lock', 'w')  # noqa: SIM115 (until the end)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    (folder / 'twice').touch()
    return 2
  (folder / 'pid').write_text(str(os.getpid()))
  asked = []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(75))
  signal.signal(signal.SIGINT, lambda *_: asked.append(130))
  at = folder / 'checkpoint'
  begin = int(at.read_text()) if at.exists() else 0
  metrics = folder / 'metrics.jsonl'
  lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
  (folder / 'new').write_text(''.join(line for line in lines if line.endswith('\n') and step_of(line) <= begin))
  os.replace(folder / 'new', metrics)
  print(f'from step {begin}', flush=True)
  if how == 'fail':
    print('what went wrong', file=sys.stderr)
    return 77
  for step in range(begin + 1, steps + 1):
    time.sleep(0.01)
    line = {'step': step, 'tokens_seen': 10 * step, 'loss': loss(scale, step, how)}
    if step == steps or step % EVERY == 0:
      line['eval/x/loss'] = line['loss']
    with open(metrics, 'a') as file:
      file.write(json.dumps(line) + '\n')
    if step % EVERY == 0 or step == steps or asked:
      (folder / 'new').write_text(str(step))
      os.replace(folder / 'new', at)
    if asked:
      return asked[0]
  if begin < steps:
    with open(folder / 'ledger.jsonl', 'a') as file:
      file.write(json.dumps({'event': 'end', 'step': steps, 'finished': True}) + '\n')
  return 0


def step_of(line):
  return json.loads(line)['step']


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
