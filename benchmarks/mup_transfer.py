"""The runs of configs/mup_sweep.py in one process, each model compiled once; a table, a picture of the losses.

  python benchmarks/mup_transfer.py --out=mup.jsonl [--picture=mup.png]

As `llamax sweep --config=configs/mup_sweep.py`, without the files of a run: what starting, compiling 25 runs
takes is saved. Runs that --out has are left alone; --sweep=DIR reads the losses of a finished sweep instead.
"""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llamax.cli.configure import load_sweep
from llamax.core.config import Config
from llamax.data.pipeline import open_eval, open_training
from llamax.model.llama import Llama, init_params, param_dims, settle
from llamax.model.mup import lr_factors
from llamax.optim.optimizer import make_optimizer
from llamax.optim.schedule import make_schedule
from llamax.sweep import space
from llamax.train.state import TrainState
from llamax.train.step import eval_step, train_step

RATE = 'optim.learning_rate'


def losses(cfg: Config, rates: list[float]):
  """(rate, held-out loss after the run) for each rate, which the compiled step takes as an argument."""
  model = Llama(cfg.model, settle(cfg.compute, 'cpu'))
  data = open_training(cfg.data)
  rows = data.batches(batch_size=cfg.batch_size, start_step=0)
  batches = [next(rows) for _ in range(cfg.train.num_steps)]
  rows.close()
  heldout = open_eval(cfg.eval.splits[0], cfg.data, data.tokenizer)
  splits = list(heldout.batches(batch_size=cfg.eval.batch_size, num_batches=cfg.eval.num_batches))
  of_peak_one = make_schedule(dataclasses.replace(cfg.optim, learning_rate=1.0), cfg.train.num_steps)
  factors = lr_factors(cfg.model, param_dims(cfg.model))

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, batch, rate):
    tx = make_optimizer(cfg.optim, lambda step: rate * of_peak_one(step), factors)
    return train_step(
      state, batch, model=model, tx=tx, z_loss=cfg.train.z_loss, grad_accum=1, seed=cfg.train.seed
    )

  judge = jax.jit(functools.partial(eval_step, model=model))
  for rate in rates:
    params = init_params(model, jax.random.key(cfg.train.seed))
    moments = make_optimizer(cfg.optim, of_peak_one, factors).init(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, moments)
    for batch in batches:
      state, _ = update(state, batch, rate)
    sums = [judge(state.params, batch) for batch in splits]
    yield rate, float(sum(s['nll'] for s in sums) / sum(s['tokens'] for s in sums))


def train_all(path: Path, source: str | None) -> None:
  """One line in `path` per run of the sweep that is not there yet."""
  overrides = [('data.sources', source), ('eval.splits', f'validation={source}:validation')] if source else []
  found, resolve = load_sweep('configs/mup_sweep.py', overrides, space)
  models: dict[str, list[Any]] = {}
  for point in found:
    models.setdefault(point.name, []).append(point.values)
  done = [(row['model'], row['rate']) for row in read(path)] if path.exists() else []
  for name, points in models.items():
    rates = [values[RATE] for values in points if (name, values[RATE]) not in done]
    texts = [(key, str(value).lower()) for key, value in points[0].items() if key != RATE]
    begin = time.process_time()
    for rate, loss in losses(resolve(texts), rates) if rates else ():
      row = {'model': name, 'rate': rate, 'loss': loss, 'cpu_seconds': round(time.process_time() - begin, 1)}
      with path.open('a') as file:
        file.write(json.dumps(row) + '\n')
      print(row, flush=True)
      begin = time.process_time()


def read(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def read_sweep(folder: Path) -> list[dict[str, Any]]:
  """The same rows from a folder of `llamax sweep`: its runs are named MODEL,learning_rate=RATE."""
  rows = []
  for run in json.loads((folder / 'sweep.json').read_text())['runs']:
    lines = folder.joinpath('runs', run['name'], 'metrics.jsonl')
    found = [row['eval/validation/loss'] for row in read(lines) if 'eval/validation/loss' in row]
    rows.append({'model': run['name'].partition(',')[0], 'rate': run['point'][RATE], 'loss': found[-1]})
  return rows


def best(rates: list[float], losses: list[float]) -> float:
  """log2 of the rate at the bottom of the parabola through the lowest loss with both its neighbours."""
  i, x = int(np.argmin(losses)), np.log2(rates)
  if not 0 < i < len(x) - 1:
    return float(x[i])
  a, b, _ = np.polyfit(x[i - 1 : i + 2], losses[i - 1 : i + 2], 2)
  return float(-b / (2 * a))


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
  """Parametrisation -> width -> (rates, losses); at the base width both are one model."""
  found: dict[str, dict[str, tuple[list[float], list[float]]]] = {'standard': {}, 'mup': {}}
  names = sorted({row['model'] for row in rows}, key=lambda name: int(name.partition('-')[2]))
  for name in names:
    kind, _, width = name.partition('-')
    own = sorted((row['rate'], row['loss']) for row in rows if row['model'] == name)
    pair = [rate for rate, _ in own], [loss for _, loss in own]
    found[kind][width] = pair
    if kind == 'standard' and f'mup-{width}' not in names:
      found['mup'][width] = pair
  return found


def tell(found: dict[str, dict[str, tuple[list[float], list[float]]]]) -> None:
  for kind, widths in found.items():
    rates = sorted({rate for own, _ in widths.values() for rate in own})
    print(f'\n{kind}: held-out loss')
    print('width'.ljust(8) + ''.join(f'2^{np.log2(rate):g}'.rjust(9) for rate in rates) + '     best')
    for width, (own, values) in widths.items():
      at = dict(zip(own, values, strict=True))
      cells = ''.join(f'{at[rate]:9.3f}' if rate in at else ' ' * 9 for rate in rates)
      print(f'{width:8}{cells}   2^{best(own, values):.1f}')


def draw(path: Path, found: dict[str, dict[str, tuple[list[float], list[float]]]]) -> None:
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.8), layout='constrained')
  panes = figure.subplots(1, 2, sharey=True, sharex=True)
  titles = {'standard': 'standard parametrisation', 'mup': 'muP'}
  for pane, (kind, widths) in zip(panes, found.items(), strict=True):
    for i, (width, (rates, values)) in enumerate(widths.items()):
      colour = ('#8fb8de', '#3f7fbf', '#123a66', '#000000')[i % 4]
      pane.plot(rates, values, marker='o', markersize=4, color=colour, label=f'width {width}')
      low = int(np.argmin(values))
      pane.plot(rates[low], values[low], marker='o', markersize=11, fillstyle='none', color=colour)
    pane.set(title=titles[kind], xlabel='learning rate')
    pane.set_xscale('log', base=2)
    pane.grid(alpha=0.3)
  panes[0].set_ylabel('held-out loss (nats per token)')
  panes[1].legend()
  figure.savefig(path, dpi=150)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=Path, help='a line of JSON per run')
  parser.add_argument('--sweep', type=Path, metavar='DIR', help='read this sweep, train nothing')
  parser.add_argument('--data', metavar='DIR', help='prepared data in place of data/stdlib')
  parser.add_argument('--picture', type=Path, metavar='PNG')
  args = parser.parse_args()
  if (args.out is None) == (args.sweep is None):
    parser.error('give --out=FILE or --sweep=DIR')
  if args.out:
    train_all(args.out, args.data)
  found = curves(read_sweep(args.sweep) if args.sweep else read(args.out))
  tell(found)
  if args.picture:
    draw(args.picture, found)


if __name__ == '__main__':
  main()
