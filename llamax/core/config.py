"""The whole configuration of a run as frozen dataclasses, checked field by field."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from llamax.core import fields
from llamax.core.checks import check
from llamax.core.errors import UserError
from llamax.core.fields import flatten as flatten
from llamax.core.fields import read_number, strip_optional
from llamax.core.fields import unflatten as unflatten


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What function the model is. A preset fills these (llamax/model/presets.py).

  A field with a default came later: the default is what a config written before it meant.
  """

  preset: str
  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_ff: int
  max_seq_len: int  # tokens the positions are made for
  attention: str  # part names: see llamax/model/parts.py
  mlp: str
  norm: str
  position: str
  norm_eps: float
  tie_embeddings: bool
  qk_norm: bool  # RMSNorm over head_dim on q, k before the rotation (Qwen 3)
  qkv_bias: bool
  out_bias: bool
  mlp_bias: bool
  sliding_window: int  # keys a query sees, itself included; 0: all earlier ones
  rope_theta: float
  rope_scaling: str  # none, linear, llama3, yarn
  rope_factor: float
  rope_original_max_len: int
  rope_low_freq_factor: float
  rope_high_freq_factor: float
  rope_beta_fast: float
  rope_beta_slow: float
  init: str  # normal, depth_scaled, fan_in
  init_std: float
  dropout: float
  # The d_model at which muP is the standard parametrisation; None: the standard one (llamax/model/mup.py).
  mup_base_width: int | None = None


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
  """How the function is computed: changes speed, memory, rounding; never what is learnt."""

  param_dtype: str
  compute_dtype: str  # auto: bfloat16 on accelerators, float32 on CPU
  attention: str  # auto, xla, cudnn, splash
  splash_block: int  # tokens per block of the splash kernel
  remat: str  # none, dots, qkv, full
  scan_layers: bool
  loss_chunks: int  # pieces of a row whose logits exist at one time
  compilation_cache: str | None  # folder for compiled programs; None: no cache


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; one may be -1: all that remain."""

  data: int
  fsdp: int
  tensor: int


@dataclasses.dataclass(frozen=True)
class DataConfig:
  sources: tuple[str, ...]  # prepared folders or tfds:NAME
  weights: tuple[float, ...]  # rows drawn from each source, relative
  text_feature: str  # of tfds: sources
  tfds_data_dir: str | None
  cache_dir: str  # where tfds: sources are tokenised to, once
  tokenizer: str | None  # a file or folder that holds one; None: that of the first prepared source
  seq_len: int
  seed: int
  read_threads: int
  prefetch_rows: int
  verify_digests: bool  # read every file of a source once, to compare it with its recorded SHA-256


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  name: str
  learning_rate: float
  b1: float
  b2: float
  eps: float
  weight_decay: float
  decay: tuple[str, ...]  # regular expressions for the last part of a decayed parameter's path
  clip_norm: float | None
  schedule: str  # constant, cosine, linear, inverse_sqrt, wsd
  warmup_steps: int
  decay_steps: int  # wsd: steps of the final decay
  end_lr_fraction: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  num_steps: int
  batch_size: int | None  # global batch in sequences; or
  batch_tokens: int | None  # ... in tokens. Exactly one is given.
  grad_accum: int  # microbatches a step is cut into
  z_loss: float
  seed: int  # of the initial weights, dropout
  init_from: str | None  # a checkpoint of any format, whose weights are the first ones; None: drawn


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  every: int | None  # steps; None: at the end only
  splits: tuple[str, ...]  # NAME=SOURCE:SPLIT
  batch_size: int | None  # global, in sequences; None: the train step's microbatch
  num_batches: int | None  # None: the whole split


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  every: int | None  # steps; None: at the end only
  prompts: tuple[str, ...]
  max_new_tokens: int
  temperature: float
  top_k: int
  top_p: float
  min_p: float
  seed: int


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every: int | None  # steps; None: at the end only
  every_minutes: float | None
  keep_last: int
  keep_every: int | None  # steps whose checkpoints are kept for good
  keep_best: int  # ... of the lowest loss on the first of eval.splits; 0: none
  keep_before_trouble: int  # ... the newest ones before a step that was skipped or rolled back
  asynchronous: bool
  digests: bool  # False: a restore checks the sizes of its files alone
  on_failed_save: str  # continue, stop
  grace_seconds: float  # from SIGTERM until the machine is taken away
  lease_seconds: float  # a run unheard of for so long has lost its workdir


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  """What happens when the numbers go bad."""

  max_bad_steps: int  # steps in a row with a NaN or Inf, each of them skipped, before the run stops
  spike_threshold: float | None  # loss above the median, in robust standard deviations; None: no roll-back
  spike_window: int  # steps that the median is taken over
  spike_rewind: int  # go back to a checkpoint at least so many steps before the spike
  spike_skip: int  # batches left out from there on, the spike's own among them
  spike_max_rollbacks: int  # then the run stops


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
  """Seconds without progress after which a host is given up."""

  enabled: bool
  heartbeat_seconds: int  # a process unheard of for so long is dead
  compile_seconds: float
  first_step_seconds: float
  step_seconds: float  # at least; or
  step_factor: float  # ... times the median step
  save_seconds: float
  eval_seconds: float  # one held-out split, or all samples


@dataclasses.dataclass(frozen=True)
class LogConfig:
  every: int
  tensorboard: bool
  wandb: bool
  wandb_project: str
  batches: bool  # a hash of each row, the bits of each loss, in batches-<process>.jsonl


@dataclasses.dataclass(frozen=True)
class Config:
  model: ModelConfig
  compute: ComputeConfig
  mesh: MeshConfig
  data: DataConfig
  optim: OptimConfig
  train: TrainConfig
  eval: EvalConfig
  sample: SampleConfig
  checkpoint: CheckpointConfig
  guard: GuardConfig
  watchdog: WatchdogConfig
  log: LogConfig

  @classmethod
  def from_mapping(cls, mapping: Mapping[str, Any]) -> 'Config':
    """Every key exactly once, each value of its field's type, the fields consistent; else UserError."""
    config = fields.build(cls, mapping, cls)
    check(config)
    return config

  def to_mapping(self) -> dict[str, Any]:
    """Plain nested dicts; `from_mapping` gives the same config back."""
    return dataclasses.asdict(self)

  @property
  def batch_size(self) -> int:
    """The global batch in sequences."""
    return self.train.batch_size or (self.train.batch_tokens or 0) // self.data.seq_len


def fields_of() -> dict[str, Any]:
  """Dotted key -> type, for every leaf of `Config`."""
  return fields.fields_of(Config)


def later_fields() -> dict[str, Any]:
  """Dotted key -> what a config that lacks it, written by an earlier version, meant."""
  return fields.later_fields(Config)


def unknown_key(key: str) -> UserError:
  return fields.unknown_key(key, Config)


def parse_text(key: str, text: str) -> Any:
  """The value of `--config.KEY=TEXT`, read by the field's type ('1e6' is an integer, 'none' is None)."""
  known = fields_of()
  if key not in known:
    raise unknown_key(key)
  kind, optional = strip_optional(known[key])
  # A model field that is None takes the preset's value; of a text field 'none' is a word: rope_scaling.
  if text.strip().lower() == 'none' and (optional or (key.startswith('model.') and kind is not str)):
    return None
  if kind is bool:
    words = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
    if text.strip().lower() not in words:
      raise UserError(f'{key}={text!r}: want true or false')
    return words[text.strip().lower()]
  if kind is int or kind is float:
    return read_number(key, text, kind)
  if typing.get_origin(kind) is tuple:
    items = [item.strip() for item in text.strip('()[]').split(',') if item.strip()]
    inner = typing.get_args(kind)[0]
    return tuple(read_number(key, i, inner) if inner is float else i.strip('\'"') for i in items)
  return text
