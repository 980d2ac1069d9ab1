"""The rules between config fields, all in one place."""

import math
from typing import TYPE_CHECKING

from llamax.core.errors import UserError, divisors_near, multiples_near, nearest
from llamax.core.fields import flatten

if TYPE_CHECKING:
  from llamax.core.config import Config, ModelConfig

# Keys whose values must be at least so much; the rest of the rules are in `check`.
_AT_LEAST = {
  1: (
    'model.vocab_size model.d_model model.num_layers model.num_heads model.num_kv_heads model.head_dim '
    'model.d_ff model.mup_base_width model.max_seq_len model.rope_original_max_len compute.splash_block '
    'compute.loss_chunks '
    'data.seq_len data.read_threads data.prefetch_rows train.num_steps train.batch_size train.batch_tokens '
    'train.grad_accum eval.every eval.batch_size eval.num_batches sample.every sample.max_new_tokens '
    'checkpoint.every checkpoint.keep_last checkpoint.keep_every log.every guard.max_bad_steps '
    'guard.spike_window guard.spike_skip guard.spike_max_rollbacks watchdog.heartbeat_seconds '
    'watchdog.step_factor'
  ),
  0: (
    'model.sliding_window model.dropout model.init_std optim.learning_rate optim.b1 optim.b2 optim.eps '
    'optim.weight_decay optim.clip_norm optim.warmup_steps optim.decay_steps optim.end_lr_fraction '
    'train.z_loss train.seed data.seed sample.seed sample.temperature sample.top_k sample.top_p sample.min_p '
    'checkpoint.every_minutes checkpoint.keep_best checkpoint.keep_before_trouble checkpoint.grace_seconds '
    'guard.spike_rewind model.rope_beta_fast model.rope_beta_slow'
  ),
}
_POSITIVE = (
  'model.norm_eps model.rope_theta model.rope_factor model.rope_low_freq_factor model.rope_high_freq_factor '
  'checkpoint.lease_seconds watchdog.compile_seconds watchdog.first_step_seconds watchdog.step_seconds '
  'watchdog.save_seconds watchdog.eval_seconds'
)
_CHOICES = {
  'model.rope_scaling': 'none linear llama3 yarn',
  'model.init': 'normal depth_scaled fan_in',
  'compute.param_dtype': 'float32 bfloat16',
  'compute.compute_dtype': 'auto float32 bfloat16',
  'compute.attention': 'auto xla cudnn splash',
  'compute.remat': 'none dots qkv full',
  'checkpoint.on_failed_save': 'continue stop',
  'optim.name': 'adamw',
  'optim.schedule': 'constant cosine linear inverse_sqrt wsd',
}


def check(cfg: 'Config') -> None:
  """The rules between fields that need no device; UserError names the keys and the nearest valid values."""
  flat = flatten(cfg.to_mapping())
  for bound, keys in _AT_LEAST.items():
    for key in keys.split():
      if flat[key] is not None and flat[key] < bound:
        raise UserError(f'{key}={flat[key]}: want at least {bound}')
  for key in _POSITIVE.split():
    if flat[key] <= 0:
      raise UserError(f'{key}={flat[key]}: want more than 0')
  for key, choices in _CHOICES.items():
    if flat[key] not in choices.split():
      raise UserError(f'{key}={flat[key]!r} is not known.{nearest(flat[key], choices.split(), 2)}')
  if flat['guard.spike_threshold'] is not None and flat['guard.spike_threshold'] <= 0:
    raise UserError(f'guard.spike_threshold={flat["guard.spike_threshold"]}: want more than 0, or none')
  if cfg.guard.spike_threshold is not None and cfg.guard.spike_skip <= cfg.guard.spike_rewind:
    raise UserError(
      f'guard.spike_skip={cfg.guard.spike_skip}: want more than guard.spike_rewind={cfg.guard.spike_rewind}: '
      'less would not reach the batch of the spike'
    )
  for key in ('model.dropout', 'optim.b1', 'optim.b2'):
    if flat[key] >= 1:
      raise UserError(f'{key}={flat[key]}: want at least 0 and below 1')
  for key in ('sample.top_p', 'sample.min_p', 'optim.end_lr_fraction'):
    if flat[key] > 1:
      raise UserError(f'{key}={flat[key]}: want at most 1')
  _check_model(cfg.model)
  _check_batch(cfg)
  _check_sources(cfg)
  sizes = {axis: flat[f'mesh.{axis}'] for axis in ('data', 'fsdp', 'tensor')}
  if any(n == 0 or n < -1 for n in sizes.values()) or list(sizes.values()).count(-1) > 1:
    raise UserError(f'mesh={sizes}: each axis is a number of devices from 1; one may be -1 (all that remain)')
  if cfg.optim.warmup_steps > cfg.train.num_steps:
    raise UserError(
      f'optim.warmup_steps={cfg.optim.warmup_steps} is more than train.num_steps={cfg.train.num_steps}'
    )
  if cfg.optim.schedule == 'wsd' and cfg.optim.warmup_steps + cfg.optim.decay_steps > cfg.train.num_steps:
    raise UserError(
      f'optim.warmup_steps={cfg.optim.warmup_steps} + optim.decay_steps={cfg.optim.decay_steps} is more than '
      f'train.num_steps={cfg.train.num_steps}'
    )


def _check_model(m: 'ModelConfig') -> None:
  if m.num_heads % m.num_kv_heads:
    raise UserError(
      f'model.num_heads={m.num_heads} does not divide by model.num_kv_heads={m.num_kv_heads}; '
      f'nearest num_kv_heads: {divisors_near(m.num_heads, m.num_kv_heads)}'
    )
  if m.head_dim % 2:
    raise UserError(f'model.head_dim={m.head_dim} is odd; rotary positions turn pairs: want an even number')
  if m.rope_scaling == 'llama3' and m.rope_low_freq_factor >= m.rope_high_freq_factor:
    raise UserError(
      f'model.rope_low_freq_factor={m.rope_low_freq_factor}: want less than '
      f'model.rope_high_freq_factor={m.rope_high_freq_factor}'
    )
  if m.mup_base_width is not None:
    _check_mup(m, m.mup_base_width)


def _check_mup(m: 'ModelConfig', base: int) -> None:
  if m.tie_embeddings:
    raise UserError(
      f'model.mup_base_width={base} with model.tie_embeddings=True: muP draws the embedding and the head '
      'differently, gives them different learning rates, which one table cannot have; want '
      'model.tie_embeddings=False'
    )
  unit = m.d_model // math.gcd(m.d_model, m.num_kv_heads)
  if base % unit:
    heads, kv_heads = (f'{n * base / m.d_model:.3g}' for n in (m.num_heads, m.num_kv_heads))
    raise UserError(
      f'model.mup_base_width={base}: the base model would have {heads} heads over {kv_heads} key/value heads. '
      f'Along the width muP keeps model.head_dim={m.head_dim}, the {m.num_heads // m.num_kv_heads} query heads '
      f'of a key/value head; nearest: {multiples_near(unit, base)}'
    )


def _check_batch(cfg: 'Config') -> None:
  train, seq_len = cfg.train, cfg.data.seq_len
  if (train.batch_size is None) == (train.batch_tokens is None):
    raise UserError(
      f'train.batch_size={train.batch_size}, train.batch_tokens={train.batch_tokens}: give the global batch '
      'once, in sequences or in tokens; set the other to none'
    )
  if train.batch_tokens is not None and train.batch_tokens % seq_len:
    raise UserError(
      f'train.batch_tokens={train.batch_tokens} is no multiple of data.seq_len={seq_len}; '
      f'nearest: {multiples_near(seq_len, train.batch_tokens)}'
    )
  if cfg.batch_size % train.grad_accum:
    raise UserError(
      f'the global batch of {cfg.batch_size} sequences does not divide into '
      f'train.grad_accum={train.grad_accum} microbatches; '
      f'nearest grad_accum: {divisors_near(cfg.batch_size, train.grad_accum)}, '
      f'nearest batch: {multiples_near(train.grad_accum, cfg.batch_size)}'
    )
  if seq_len > cfg.model.max_seq_len:
    raise UserError(
      f'data.seq_len={seq_len} is more than model.max_seq_len={cfg.model.max_seq_len}, the positions that the '
      'model is made for'
    )
  if seq_len % cfg.compute.loss_chunks:
    raise UserError(
      f'data.seq_len={seq_len} does not divide into compute.loss_chunks={cfg.compute.loss_chunks}; '
      f'nearest: {divisors_near(seq_len, cfg.compute.loss_chunks)}'
    )


def _check_sources(cfg: 'Config') -> None:
  data = cfg.data
  if not data.sources:
    raise UserError('data.sources is empty: name a prepared folder (llamax prepare makes one) or tfds:NAME')
  if len(data.sources) != len(data.weights):
    raise UserError(
      f'data.sources has {len(data.sources)} entries, data.weights {len(data.weights)}: want one weight '
      'per source'
    )
  if min(data.weights) < 0 or sum(data.weights) <= 0:
    raise UserError(f'data.weights={data.weights}: want none below 0, their sum above 0')
  names = [entry.split('=', 1)[0] for entry in cfg.eval.splits]
  for entry in cfg.eval.splits:
    name, equals, rest = entry.partition('=')
    if not (name and equals and ':' in rest):
      raise UserError(
        f'eval.splits entry {entry!r}: want NAME=SOURCE:SPLIT, as in valid=data/stdlib:validation'
      )
  if len(set(names)) != len(names):
    raise UserError(f'eval.splits names {names}: want each name once')
