"""The one full default: every key of a run; other configs are differences from it."""

from ml_collections import ConfigDict

MODEL_KEYS = (
  'vocab_size', 'd_model', 'num_layers', 'num_heads', 'num_kv_heads', 'head_dim', 'd_ff', 'max_seq_len',
  'attention', 'mlp', 'norm', 'position', 'norm_eps', 'tie_embeddings', 'qk_norm', 'qkv_bias', 'out_bias',
  'mlp_bias', 'sliding_window', 'rope_theta', 'rope_scaling', 'rope_factor', 'rope_original_max_len',
  'rope_low_freq_factor', 'rope_high_freq_factor', 'rope_beta_fast', 'rope_beta_slow', 'init', 'init_std',
  'dropout', 'mup_base_width',
)  # fmt: skip


def get_config():
  config = ConfigDict()
  # A model key that is None takes the preset's value (llamax/model/presets.py).
  config.model = ConfigDict({'preset': 'llamax_15m'} | dict.fromkeys(MODEL_KEYS))
  config.compute = ConfigDict(
    {
      'param_dtype': 'float32',
      'compute_dtype': 'auto',
      'attention': 'auto',
      'splash_block': 512,
      'remat': 'none',
      'scan_layers': True,
      'loss_chunks': 1,
      'compilation_cache': '~/.cache/llamax/xla',
    }
  )
  config.mesh = ConfigDict({'data': 1, 'fsdp': -1, 'tensor': 1})
  config.data = ConfigDict(
    {
      'sources': ('data/stdlib',),
      'weights': (1.0,),
      'text_feature': 'text',
      'tfds_data_dir': None,
      'cache_dir': 'data/tfds_cache',
      'tokenizer': None,
      'seq_len': 1024,
      'seed': 0,
      'read_threads': 4,
      'prefetch_rows': 256,
      'verify_digests': True,
    }
  )
  config.optim = ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 3e-4,
      'b1': 0.9,
      'b2': 0.95,
      'eps': 1e-8,
      'weight_decay': 0.1,
      # Matrices decay; norm scales, biases do not.
      'decay': ('w[a-z_]*', 'kernel', 'table'),
      'clip_norm': 1.0,
      'schedule': 'cosine',
      'warmup_steps': 100,
      'decay_steps': 0,
      'end_lr_fraction': 0.1,
    }
  )
  config.train = ConfigDict(
    {
      'num_steps': 1000,
      'batch_size': 8,
      'batch_tokens': None,
      'grad_accum': 1,
      'z_loss': 0.0,
      'seed': 0,
      'init_from': None,
    }
  )
  config.eval = ConfigDict(
    {'every': 500, 'splits': ('validation=data/stdlib:validation',), 'batch_size': None, 'num_batches': None}
  )
  config.sample = ConfigDict(
    {
      'every': 500,
      'prompts': ('def ',),
      'max_new_tokens': 64,
      'temperature': 0.8,
      'top_k': 0,
      'top_p': 0.95,
      'min_p': 0.0,
      'seed': 0,
    }
  )
  config.checkpoint = ConfigDict(
    {
      'every': 500,
      'every_minutes': None,
      'keep_last': 2,
      'keep_every': None,
      'keep_best': 1,
      'keep_before_trouble': 2,
      'asynchronous': True,
      'digests': True,
      'on_failed_save': 'continue',
      'grace_seconds': 25.0,
      'lease_seconds': 60.0,
    }
  )
  config.guard = ConfigDict(
    {
      'max_bad_steps': 10,
      'spike_threshold': None,
      'spike_window': 128,
      'spike_rewind': 100,
      'spike_skip': 200,
      'spike_max_rollbacks': 3,
    }
  )
  config.watchdog = ConfigDict(
    {
      'enabled': True,
      'heartbeat_seconds': 10,
      'compile_seconds': 3600.0,
      'first_step_seconds': 1200.0,
      'step_seconds': 60.0,
      'step_factor': 10.0,
      'save_seconds': 1800.0,
      'eval_seconds': 3600.0,
    }
  )
  config.log = ConfigDict(
    {'every': 10, 'tensorboard': False, 'wandb': False, 'wandb_project': 'llamax', 'batches': False}
  )
  return config
