"""The processes that benchmarks/train_step.py times: each holds one library, works only when told to."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

# transformers' two layer norms with the rest, as llamax names them; letters as in llamax/core/dims.py.
WEIGHTS = {
  'embed/table': 'VD',
  'layers/attn/wq': 'LDNH',
  'layers/attn/wk': 'LDKH',
  'layers/attn/wv': 'LDKH',
  'layers/attn/wo': 'LNHD',
  'layers/mlp/w_gate': 'LDF',
  'layers/mlp/w_up': 'LDF',
  'layers/mlp/w_down': 'LFD',
  'lm_head/kernel': 'DV',
}
OPTIM = {'learning_rate': 3e-4, 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8, 'weight_decay': 0.1, 'clip_norm': 1.0}


def model_fields(size: str, seq_len: int) -> dict[str, Any]:
  """Fields of ModelConfig. Imports no jax: the torch workers' memory is torch's alone."""
  from llamax.model.presets import PRESETS

  return PRESETS[f'llamax_{size}'] | {
    'preset': f'llamax_{size}',
    'max_seq_len': seq_len,
    'rope_original_max_len': seq_len,
  }


def dim_sizes(m: dict[str, Any]) -> dict[str, int]:
  names = {'V': 'vocab_size', 'D': 'd_model', 'N': 'num_heads', 'K': 'num_kv_heads', 'H': 'head_dim'}
  return {x: m[name] for x, name in (names | {'F': 'd_ff', 'L': 'num_layers'}).items()}


def initial_weights(m: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """(path, float32 array), N(0, 0.02): the same in every worker. Norms stay at 1."""
  sizes = dim_sizes(m)
  for i, (path, letters) in enumerate(WEIGHTS.items()):
    if path == 'lm_head/kernel' and m['tie_embeddings']:
      continue
    rng = np.random.default_rng([7, i])
    yield path, 0.02 * rng.standard_normal([sizes[x] for x in letters], dtype=np.float32)


def make_batch(step: int, batch: int, seq_len: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
  """(inputs, targets), int32 [B, T], random: a new one for each step."""
  ids = np.random.default_rng([11, step]).integers(vocab, size=(batch, seq_len + 1), dtype=np.int32)
  return ids[:, :-1], ids[:, 1:]


def matmul_shapes(m: dict[str, Any], tokens: int) -> list[tuple[int, int, int]]:
  """(rows, inner, columns) of every weight product of a forward pass."""
  D, F, wide, narrow = (
    m['d_model'],
    m['d_ff'],
    m['num_heads'] * m['head_dim'],
    m['num_kv_heads'] * m['head_dim'],
  )
  layer = [(tokens, D, wide), (tokens, D, narrow), (tokens, D, narrow), (tokens, wide, D)]
  layer += [(tokens, D, F), (tokens, D, F), (tokens, F, D)]
  return layer * m['num_layers'] + [(tokens, D, m['vocab_size'])]


class Llamax:
  """llamax's own train step on a mesh of one device, as a run on this machine has it."""

  def __init__(self, args: dict[str, Any]):
    import functools

    import jax
    import jax.numpy as jnp

    from llamax.core.config import ComputeConfig, MeshConfig, ModelConfig, OptimConfig
    from llamax.model.llama import Llama, param_dims
    from llamax.optim.optimizer import make_optimizer
    from llamax.optim.schedule import make_schedule
    from llamax.parallel.mesh import make_mesh
    from llamax.parallel.rules import tree_shardings
    from llamax.train.state import TrainState
    from llamax.train.step import train_step

    cfg = ModelConfig(**model_fields(args['size'], args['seq_len']))
    compute = ComputeConfig(
      param_dtype='float32',
      compute_dtype='float32',
      attention='xla',
      splash_block=128,
      remat='none',
      scan_layers=args['scan_layers'],
      loss_chunks=args['loss_chunks'],
      compilation_cache=None,
    )
    optim = OptimConfig(
      **OPTIM,
      name='adamw',
      decay=('w[a-z_]*', 'kernel', 'table'),
      schedule='constant',
      warmup_steps=0,
      decay_steps=0,
      end_lr_fraction=0.0,
    )
    tx = make_optimizer(optim, make_schedule(optim, 1000))
    self.jax, self.vocab = jax, cfg.vocab_size
    self.mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    ones = {f'layers/{name}/scale': (cfg.num_layers, cfg.d_model) for name in ('attn_norm', 'mlp_norm')}
    ones['final_norm/scale'] = (cfg.d_model,)
    params: dict[str, Any] = {}
    for path, w in [*initial_weights(vars(cfg)), *((p, np.ones(s, np.float32)) for p, s in ones.items())]:
      *inner, last = path.split('/')
      at = params
      for name in inner:
        at = at.setdefault(name, {})
      at[last] = w
    params = jax.device_put(params, tree_shardings(params, self.mesh, param_dims(cfg)))
    with jax.set_mesh(self.mesh):
      self.state = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(tx.init)(params))
      step = functools.partial(train_step, model=Llama(cfg, compute), tx=tx, z_loss=0.0, grad_accum=1, seed=0)
      self.step = jax.jit(step, donate_argnums=0)

  def __call__(self, tokens: np.ndarray, targets: np.ndarray) -> float:
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    batch = {'tokens': tokens, 'targets': targets, 'segment_ids': np.ones_like(tokens), 'positions': positions}
    with self.jax.set_mesh(self.mesh):
      self.state, metrics = self.step(self.state, batch)
    self.jax.block_until_ready(self.state)
    return float(metrics['loss'])


class Torch:
  """transformers' Llama with torch's fused AdamW, the fastest that torch has on CPU."""

  def __init__(self, args: dict[str, Any]):
    import torch
    import transformers

    torch.set_num_threads(args['threads'])
    m = model_fields(args['size'], args['seq_len'])
    config = transformers.LlamaConfig(
      vocab_size=m['vocab_size'],
      hidden_size=m['d_model'],
      intermediate_size=m['d_ff'],
      num_hidden_layers=m['num_layers'],
      num_attention_heads=m['num_heads'],
      num_key_value_heads=m['num_kv_heads'],
      head_dim=m['head_dim'],
      max_position_embeddings=args['seq_len'],
      rms_norm_eps=m['norm_eps'],
      rope_parameters={'rope_type': 'default', 'rope_theta': m['rope_theta']},
      tie_word_embeddings=m['tie_embeddings'],
      attn_implementation='sdpa',
      use_cache=False,
    )
    self.torch, self.vocab = torch, m['vocab_size']
    self.model = transformers.LlamaForCausalLM(config)
    self._fill(m)
    decayed = [p for p in self.model.parameters() if p.ndim == 2]
    rest = [p for p in self.model.parameters() if p.ndim == 1]
    groups = [{'params': decayed, 'weight_decay': OPTIM['weight_decay']}, {'params': rest, 'weight_decay': 0.0}]
    self.optimizer = torch.optim.AdamW(
      groups, lr=OPTIM['learning_rate'], betas=(OPTIM['b1'], OPTIM['b2']), eps=OPTIM['eps'], fused=True
    )
    self.forward = torch.compile(self.model) if args['name'] == 'torch.compile' else self.model

  def _fill(self, m: dict[str, Any]) -> None:
    D, theirs = m['d_model'], self.model.model
    places = {
      'layers/attn/wq': lambda layer: layer.self_attn.q_proj,
      'layers/attn/wk': lambda layer: layer.self_attn.k_proj,
      'layers/attn/wv': lambda layer: layer.self_attn.v_proj,
      'layers/mlp/w_gate': lambda layer: layer.mlp.gate_proj,
      'layers/mlp/w_up': lambda layer: layer.mlp.up_proj,
      'layers/mlp/w_down': lambda layer: layer.mlp.down_proj,
    }
    with self.torch.no_grad():
      for path, w in initial_weights(m):
        if path == 'embed/table':
          theirs.embed_tokens.weight.copy_(self.torch.from_numpy(w))
        elif path == 'lm_head/kernel':
          self.model.lm_head.weight.copy_(self.torch.from_numpy(w.T))
        else:
          for i, layer in enumerate(theirs.layers):
            into_width = path == 'layers/attn/wo'
            linear = layer.self_attn.o_proj if into_width else places[path](layer)
            inner = w[i].reshape(-1, D) if into_width else w[i].reshape(w.shape[1], -1)
            linear.weight.copy_(self.torch.from_numpy(inner.T))

  def __call__(self, tokens: np.ndarray, targets: np.ndarray) -> float:
    torch = self.torch
    tokens, targets = (torch.from_numpy(x.astype(np.int64)) for x in (tokens, targets))
    self.optimizer.zero_grad(set_to_none=True)
    logits = self.forward(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIM['clip_norm'])
    self.optimizer.step()
    return loss.item()


def jax_matmul(args: dict[str, Any]):
  """() -> FLOP/s over the model's shapes; results stay in one buffer per shape, as in a warm cache of pages."""
  import jax
  import jax.numpy as jnp

  shapes = matmul_shapes(model_fields(args['size'], args['seq_len']), args['batch'] * args['seq_len'])
  counts = {shape: shapes.count(shape) for shape in shapes}
  work = []
  for (rows, inner, columns), times in counts.items():
    x, w = jnp.ones((rows, inner)), jnp.ones((inner, columns))

    @jax.jit
    def run(x, w, times=times):
      # Each turn's input differs, or the compiler would take the product out of the loop.
      return jax.lax.fori_loop(0, times, lambda i, y: (x + i) @ w, jnp.zeros((x.shape[0], w.shape[1])))

    jax.block_until_ready(run(x, w))
    work.append((run, x, w, 2.0 * rows * inner * columns * times))

  def rate() -> float:
    start = time.perf_counter()
    for run, x, w, _ in work:
      jax.block_until_ready(run(x, w))
    return sum(flops for *_, flops in work) / (time.perf_counter() - start)

  return rate


def torch_matmul(args: dict[str, Any]):
  """() -> FLOP/s over the model's shapes, into outputs that exist already."""
  import torch

  torch.set_num_threads(args['threads'])
  shapes = matmul_shapes(model_fields(args['size'], args['seq_len']), args['batch'] * args['seq_len'])
  work = {s: (torch.ones(s[0], s[1]), torch.ones(s[1], s[2]), torch.zeros(s[0], s[2])) for s in set(shapes)}

  def rate() -> float:
    start = time.perf_counter()
    for shape in shapes:
      x, w, y = work[shape]
      torch.mm(x, w, out=y)
    return sum(2.0 * a * b * c for a, b, c in shapes) / (time.perf_counter() - start)

  rate()
  return rate


MATMUL = {'matmul jax': jax_matmul, 'matmul torch': torch_matmul}


def versions() -> dict[str, str]:
  return {
    name: sys.modules[name].__version__ for name in ('jax', 'torch', 'transformers') if name in sys.modules
  }


def serve(args: dict[str, Any], commands: Any, answer: Any) -> None:
  """Builds, takes the first step, then a turn per line of `commands`."""
  begun = time.perf_counter()
  if args['name'] in MATMUL:
    rate = MATMUL[args['name']](args)
    answer({'versions': versions()})
    for _ in commands:
      answer({'flops_per_second': rate()})
    return
  worker = Llamax(args) if args['name'] == 'llamax' else Torch(args)
  built = time.perf_counter()
  loss = worker(*make_batch(0, args['batch'], args['seq_len'], worker.vocab))
  stepped = time.perf_counter()
  answer({'build_s': built - begun, 'first_step_s': stepped - built, 'loss': loss, 'versions': versions()})
  step, rested = 1, time.process_time()
  for _ in commands:
    idle_cpu = time.process_time() - rested
    seconds, cpu = [], time.process_time()
    for _ in range(args['steps_per_turn']):
      batch = make_batch(step, args['batch'], args['seq_len'], worker.vocab)
      start = time.perf_counter()
      loss = worker(*batch)
      seconds.append(time.perf_counter() - start)
      step += 1
    rested = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer({'seconds': seconds, 'cpu_s': rested - cpu, 'idle_cpu_s': idle_cpu, 'peak_rss': peak, 'loss': loss})


def main() -> None:
  args = json.loads(sys.argv[1])
  # What libraries print must not mix with the answers.
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)

  def answer(reply: dict[str, Any]) -> None:
    out.write(json.dumps(reply) + '\n')
    out.flush()

  serve(args, sys.stdin, answer)


if __name__ == '__main__':
  main()
