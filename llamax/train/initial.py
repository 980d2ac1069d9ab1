"""The checkpoint that a new run takes its first weights from."""

from pathlib import Path
from typing import Any

import jax

from llamax.checkpoint import steps as folder_of_steps
from llamax.convert import formats, native
from llamax.convert.hf_config import same_function
from llamax.convert.source import Source
from llamax.convert.vocabulary import probe
from llamax.core.config import Config, ModelConfig
from llamax.core.errors import UserError
from llamax.data.tokenizer import Tokenizer
from llamax.parallel.decide import by_first, none_complains

_KEY = 'train.init_from'


def check_initial(cfg: Config, workdir: str | Path | None) -> None:
  """Whether a new run could begin from `train.init_from`; touches no device, reads no weights.

  Raises:
    UserError: there is no such checkpoint, it is damaged, or of another model.
  """
  begun = workdir is not None and folder_of_steps.steps(Path(workdir, 'checkpoints'))
  if cfg.train.init_from is not None and not begun:
    _open(cfg)


def open_initial(cfg: Config, tokenizer: Tokenizer) -> Source:
  """The checkpoint of `train.init_from`, opened by every process; all of them call this.

  Raises:
    UserError: as `check_initial`; or its tokenizer is not the one of the data.
  """
  path, step = _path(cfg), None
  if by_first(lambda: path.exists() and formats.recognise(path) == 'llamax'):
    step = by_first(lambda: native.whole_step(path, None)[0])  # Every byte is read once, by one of us.
  complaint = None
  try:
    source = _open(cfg, step)
    if jax.process_index() == 0:
      _require_tokenizer(source, tokenizer)
  except UserError as error:
    complaint = str(error)
  none_complains(complaint)
  return source


def record(source: Source) -> dict[str, Any]:
  """What is noted of it, in the ledger, in each checkpoint. files: name -> bytes."""
  return {
    'path': str(source.path.absolute()),
    'format': source.format,
    'files': {str(path): path.stat().st_size for path in source.files},
  }


def _path(cfg: Config) -> Path:
  assert cfg.train.init_from is not None
  return Path(cfg.train.init_from).expanduser()


def _open(cfg: Config, step: int | None = None) -> Source:
  path = _path(cfg)
  try:
    if formats.recognise(path) == 'llamax':
      source = native.open_source(path, None, step, digests=False)
    else:
      source = formats.open_source(path)
    source.places  # noqa: B018 - raises unless the tensors are those of its config
  except UserError as error:
    raise UserError(f'{_KEY}={cfg.train.init_from}: {error}') from None
  _require_model(source, cfg.model)
  return source


def _require_model(source: Source, wanted: ModelConfig) -> None:
  names = same_function(source.cfg, wanted)
  if not names:
    return
  lines = [
    f'  model.{name}: it has {getattr(source.cfg, name)!r}, the config {getattr(wanted, name)!r}'
    for name in names
  ]
  flags = ' '.join(f'--config.model.{name}={getattr(source.cfg, name)}' for name in names)
  raise UserError(
    '\n'.join([f'{_KEY}: {source.path} ({source.format}) is of another model:', *lines])
    + f'\nTo train that one: {flags}'
  )


def _require_tokenizer(source: Source, tokenizer: Tokenizer) -> None:
  own = source.tokenizer
  if own is None or own.fingerprint == tokenizer.fingerprint:
    return
  if problem := probe(own, tokenizer):
    raise UserError(
      f'{_KEY}: {source.path} was trained with another tokenizer than that of the data ({problem}): its '
      'ids would mean other words. Prepare the data with its own; to do without on purpose, convert it '
      'with --tokenizer=none first'
    )
