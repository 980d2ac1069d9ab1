"""What a run says before its first step."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from llamax.core.config import Config
from llamax.data.pipeline import EvalData, TrainingData
from llamax.model import mup
from llamax.observe import perf
from llamax.observe.progress import human
from llamax.observe.report import table
from llamax.optim.optimizer import decays
from llamax.parallel.mesh import BATCH_AXES, describe
from llamax.parallel.rules import letters_of, param_spec, path_of
from llamax.train.budget import estimate
from llamax.train.program import Program


def model_params(program: Program) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(program.state.params))


def batch_lines(cfg: Config, sizes: dict[str, int]) -> list[str]:
  """The global batch, down to what one device sees at a time."""
  shards = math.prod(sizes[axis] for axis in BATCH_AXES)
  rows, length = cfg.batch_size, cfg.data.seq_len
  micro = f' in {cfg.train.grad_accum} microbatches' if cfg.train.grad_accum > 1 else ''
  local = rows // shards // cfg.train.grad_accum
  return [
    f'batch     {rows} sequences x {length} = {rows * length:,} tokens a step{micro}',
    f'          {rows} / {shards} batch shards / {cfg.train.grad_accum} microbatches = {local} sequences '
    f'({local * length:,} tokens) on a device at a time',
    f'run       {cfg.train.num_steps:,} steps = {human(cfg.train.num_steps * rows * length)} tokens',
  ]


def param_table(program: Program, dims: dict[str, str]) -> str:
  """One line per parameter: its rule, shape, layout, whether it decays, bytes on one device, muP's factor."""
  rows, factors = [], mup.lr_factors(program.cfg.model, dims)
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(program.state.params):
    path = path_of(key_path)
    _, letters = letters_of(path, leaf.ndim, dims)
    local = math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    layout = ' '.join(
      f'{letter}:{axis}' for letter, axis in zip(letters, param_spec(letters), strict=True) if axis
    )
    decay = 'decay' if decays(program.cfg.optim, path) else '-'
    shape = ' x '.join(str(n) for n in leaf.shape)
    row = (path, letters, shape, f'{leaf.size:,}', layout or 'whole', decay, f'{local / 1e6:,.2f}')
    rows.append(row + ((f'{factors[path]:.3g}',) if factors else ()))
  names = ('parameter', 'dims', 'shape', 'count', 'split by', 'decay', 'MB/device')
  return table(rows, names + (('lr x',) if factors else ()))


def data_lines(cfg: Config, data: TrainingData, heldout: Sequence[EvalData]) -> list[str]:
  """What is read: documents, tokens, how often the run goes through them."""
  lines = []
  total = sum(cfg.data.weights)
  for spec, weight, source, rows in zip(
    cfg.data.sources, cfg.data.weights, data.sources, data.epochs, strict=True
  ):
    read = cfg.train.num_steps * cfg.batch_size * weight / total
    lines.append(
      f'data      {spec}: {len(source):,} documents, {human(rows.num_pairs)} tokens, '
      f'weight {weight / total:.3g}; this run reads it {read / len(rows):.2g} times'
    )
  lines += [f'held out  {s.name}: {len(s.source):,} documents, {human(s.num_tokens)} tokens' for s in heldout]
  return [*lines, f'tokenizer {data.vocab_size:,} ids, {data.tokenizer.fingerprint[:12]}']


def flops_line(cfg: Config, num_params: int) -> str:
  flops = perf.flops_per_token(cfg.model, num_params, cfg.data.seq_len)
  step = flops.causal * cfg.batch_size * cfg.data.seq_len
  return (
    f'flops     {human(flops.causal)} a token (causal; {human(flops.palm)} by the PaLM convention), '
    f'{human(step)} a step'
  )


def preflight(program: Program, dims: dict[str, str], warning: str | None) -> str:
  """Devices, mesh, batch arithmetic, parameters by rule, memory, FLOPs: a text to print."""
  cfg, model = program.cfg, program.cfg.model
  count = model_params(program)
  lines = [
    f'jax       {jax.__version__}, {jax.process_count()} process(es)',
    f'mesh      {describe(program.mesh)}',
    f'model     {model.preset}: {count:,} parameters, {model.num_layers} layers, width {model.d_model}, '
    f'{model.num_heads} heads over {model.num_kv_heads} key/value heads, vocabulary {model.vocab_size:,}',
    *([] if model.mup_base_width is None else [f'muP       {mup.describe(model)}']),
    f'compute   {cfg.compute.compute_dtype}, parameters {cfg.compute.param_dtype}, attention '
    f'{cfg.compute.attention}, remat {cfg.compute.remat}, loss in {cfg.compute.loss_chunks} chunk(s)',
    *batch_lines(cfg, dict(program.mesh.shape)),
    flops_line(cfg, count),
    *estimate(cfg, dict(program.mesh.shape)).lines(),
    '',
    param_table(program, dims),
  ]
  if warning:
    bar = '!' * 10
    lines.insert(0, f'{bar} NO ACCELERATOR IN USE: {warning} {bar}')
  return '\n'.join(lines)
