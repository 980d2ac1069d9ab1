"""Folders of runs that nothing has trained: what llamax train leaves, with losses from a formula."""

import copy
import json
import math
import random
from pathlib import Path

from llamax.core.config import flatten, unflatten
from llamax.sweep.plan import FORMAT

SPLIT = 'eval/validation/loss'


def base_config():
  """Of configs/quickstart.py, nested, as JSON has it."""
  from llamax.cli.configure import load

  config = load('configs/quickstart.py', [])[0].to_mapping()
  return json.loads(json.dumps(config))


def make_run(
  folder, base, changes=None, *, steps=1000, done=None, lines=50, floor=3.0, ended=True, evals=4, seed=0
):
  """A run of `done` of `steps` steps, ending at a loss near `floor`."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  config = unflatten(flatten(base) | (changes or {}) | {'train.num_steps': steps})
  (folder / 'config.json').write_text(json.dumps(config, indent=2))
  done = steps if done is None else done
  noise = random.Random(seed)
  records, every, last = [], max(1, steps // lines), 0
  for step in [1, *range(every, done + 1, every)]:
    loss = floor + 4.6 * (1 + 30 * step / 1000) ** -0.6
    line = {'step': step, 'loss': loss + noise.gauss(0, 0.05), 'tokens': 1024.0, 'tokens_seen': 1024 * step}
    if step > 1:
      line |= {'tokens_per_second': 5000.0, 'step_seconds': 1024 / 5000, 'mfu': 0.41}
    records.append(line)
    if evals and (step % max(every, steps // evals // every * every) == 0 or step == steps) and step > 1:
      bits = loss / math.log(2) / 3.0
      records.append({'step': step, SPLIT: loss, SPLIT.replace('loss', 'bits_per_byte'): bits})
    last = step
  events = [{'event': 'start', 'step': 0}]
  if ended:
    events.append({'event': 'end', 'step': last, 'finished': last >= steps})
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
  (folder / 'ledger.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in events))
  return folder


def make_plan(folder, base, points, **changes):
  """DIR/sweep.json with {name: point}."""
  plan = {
    'format': FORMAT,
    'config': 'configs/quickstart.py',
    'overrides': [],
    'base': copy.deepcopy(base),
    'objective': SPLIT,
    'direction': 'minimize',
    'runs': [{'name': name, 'point': point} for name, point in points.items()],
    'study': None,
    'prune': None,
  }
  Path(folder).mkdir(parents=True, exist_ok=True)
  (Path(folder) / 'sweep.json').write_text(json.dumps(plan | changes))
