"""How far a few steps move a model's activations at each width: as far under muP, ever further without it.

  python benchmarks/coordinate_check.py [--init=normal] [--steps=4] [--picture=coordinates.png]

The coordinate check of Yang et al. 2022 (arXiv 2203.03466, appendix D.1): a wrong factor shows as a slope.
"""

import argparse
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llamax.cli.configure import load
from llamax.core.config import Config
from llamax.core.types import PyTree
from llamax.model import mup
from llamax.model.attention import Tokens
from llamax.model.llama import Block, Embed, Llama, init_params, param_dims, settle
from llamax.model.parts import find_part
from llamax.optim.optimizer import make_optimizer
from llamax.train.state import TrainState
from llamax.train.step import train_step

BASE, HEAD_DIM = 32, 8
ROWS, LENGTH, VOCAB = 4, 32, 64
SEEDS = 2


def config(width: int, init: str, base_width: int | None, num_layers: int, rate: float) -> Config:
  """A model of this width; heads and d_ff in proportion."""
  cfg, _ = load('configs/debug.py', [('compute.compilation_cache', 'none')])
  model = dataclasses.replace(
    cfg.model,
    **{'vocab_size': VOCAB, 'd_model': width, 'num_layers': num_layers, 'd_ff': width * 5 // 2},
    **{'num_heads': width // HEAD_DIM, 'num_kv_heads': width // HEAD_DIM // 2, 'head_dim': HEAD_DIM},
    **{'tie_embeddings': False, 'qkv_bias': True, 'qk_norm': False, 'init': init, 'mup_base_width': base_width},
  )
  optim = dataclasses.replace(cfg.optim, learning_rate=rate, clip_norm=None)
  return dataclasses.replace(cfg, model=model, optim=optim, compute=settle(cfg.compute, 'cpu'))


def batch() -> dict[str, jax.Array]:
  """The rows that every model sees again and again: random walks that often repeat a step."""
  rng = np.random.default_rng(0)
  steps = np.where(rng.random((ROWS, LENGTH + 1)) < 0.8, 3, rng.integers(VOCAB, size=(ROWS, LENGTH + 1)))
  ids = jnp.asarray(np.cumsum(steps, axis=1) % VOCAB, jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), (ROWS, LENGTH))
  ones = jnp.ones((ROWS, LENGTH), jnp.int32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'segment_ids': ones, 'positions': positions}


def activations(cfg: Config, params: PyTree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """The residual stream after the embedding, after each layer; the logits."""
  x_BTD, _ = Embed(cfg.model, cfg.compute).apply({'params': params['embed']}, rows['tokens'])
  tables = find_part(cfg.model, 'position').tables(cfg.model, rows['positions'])
  tokens = Tokens(rows['positions'], rows['segment_ids'], tables)
  found, block = {'embedding': x_BTD}, Block(cfg.model, cfg.compute, dropout_on=False)
  for layer in range(cfg.model.num_layers):
    own = jax.tree.map(lambda w, layer=layer: w[layer], params['layers'])
    x_BTD, _ = block.apply({'params': own}, x_BTD, None, tokens)
    found[f'layer {layer + 1}'] = x_BTD
  norm: nn.Module = find_part(cfg.model, 'norm')(cfg.model.norm_eps, cfg.compute.param_dtype)
  hidden_BTD = norm.apply({'params': params['final_norm']}, x_BTD)
  return found | {'logits': hidden_BTD @ params['lm_head']['kernel']}


def moved(cfg: Config, steps: int) -> dict[str, float]:
  """Activation -> mean absolute change of a coordinate by `steps` updates, over SEEDS first weights."""
  model, rows = Llama(cfg.model, cfg.compute), batch()
  factors = mup.lr_factors(cfg.model, param_dims(cfg.model))
  tx = make_optimizer(cfg.optim, lambda step: cfg.optim.learning_rate, factors)

  @jax.jit
  def change(key: jax.Array) -> dict[str, jax.Array]:
    params = init_params(model, key)
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))

    def update(state, _):
      return train_step(state, rows, model=model, tx=tx, z_loss=0.0, grad_accum=1, seed=0)

    state, _ = jax.lax.scan(update, state, length=steps)
    before, after = (activations(cfg, each, rows) for each in (params, state.params))
    return {name: jnp.abs(after[name] - before[name]).mean() for name in before}

  found = [change(jax.random.key(seed)) for seed in range(SEEDS)]
  return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def slope(widths: list[int], values: list[float]) -> float:
  """The power of the width that fits best."""
  return float(np.polyfit(np.log2(widths), np.log2(values), 1)[0])


def check(
  widths: list[int], init: str, base_width: int | None, *, num_layers: int, steps: int, rate: float
) -> dict[str, list[float]]:
  """Activation -> `moved` at each width."""
  by_width = [moved(config(width, init, base_width, num_layers, rate), steps) for width in widths]
  return {name: [each[name] for each in by_width] for name in by_width[0]}


def draw(path: str, widths: list[int], found: dict[str, dict[str, list[float]]], steps: int) -> None:
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.6), layout='constrained')
  panes = figure.subplots(1, len(found), sharey=True)
  for pane, (title, rows) in zip(panes, found.items(), strict=True):
    for name, values in rows.items():
      style = '--' if name in ('embedding', 'logits') else '-'
      pane.loglog(widths, values, style, marker='o', markersize=3, label=name, base=2)
    pane.set(title=title, xlabel='width', xticks=widths, xticklabels=widths)
    pane.grid(alpha=0.3)
  panes[0].set_ylabel(f'mean |change| in {steps} steps')
  panes[-1].legend(fontsize='small')
  figure.savefig(path, dpi=150)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--widths', default='32,64,128,256,512')
  parser.add_argument('--init', default='normal', help='model.init')
  parser.add_argument('--layers', type=int, default=3)
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--rate', type=float, default=2e-3)
  parser.add_argument('--picture', metavar='PNG')
  args = parser.parse_args()
  widths = [int(width) for width in args.widths.split(',')]
  found = {}
  for title, base in (('standard', None), (f'muP, base width {BASE}', BASE)):
    rows = check(widths, args.init, base, num_layers=args.layers, steps=args.steps, rate=args.rate)
    found[title] = rows
    print(f'{title} (init {args.init}): mean |change| of a coordinate in {args.steps} steps')
    print(f'{"":12}' + ''.join(f'{width:>9}' for width in widths) + '   width to the power')
    for name, values in rows.items():
      print(f'{name:12}' + ''.join(f'{v:9.4f}' for v in values) + f'{slope(widths, values):12.2f}')
    print(flush=True)
  if args.picture:
    draw(args.picture, widths, found, args.steps)


if __name__ == '__main__':
  main()
