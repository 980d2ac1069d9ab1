"""The formats that llamax knows: how each is recognised, opened, written."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from llamax.convert import lora_config
from llamax.convert.source import Source
from llamax.convert.target import Model, Target
from llamax.core.errors import UserError, pick
from llamax.data.tokenizer import Tokenizer


class Format(NamedTuple):
  """module: has `recognise(path) -> bool`, `open_source(path, tokenizer, ...) -> Source`, class `Target`.
  endings: of the names that --to is guessed from. options: keywords of open_source, of Target.
  """

  module: str
  what: str
  endings: tuple[str, ...]
  source_options: tuple[str, ...] = ()
  target_options: tuple[str, ...] = ()


# In the order in which a path is tried.
FORMATS = {
  'llamax': Format('native', 'workdir of llamax (Orbax)', (), ('step',), ('mesh',)),
  'hf': Format('hf', 'Hugging Face directory', (), (), ('max_shard_bytes',)),
  'meta': Format('meta', 'Meta consolidated.*.pth with params.json', (), (), ('shards',)),
  'gguf': Format('gguf', 'GGUF file of llama.cpp', ('.gguf',), (), ('dtype',)),
  'llama2c': Format('llama2c', 'llama2.c .bin file', ('.bin',), (), ('version',)),
  'easylm': Format('easylm', 'EasyLM stream', ('.msgpack', '.stream', 'streaming_params'), ('preset',), ()),
}


def module(name: str) -> Any:
  return importlib.import_module(f'llamax.convert.{FORMATS[name].module}')


def recognise(path: Path) -> str:
  """The format of what is at `path`. Raises UserError: nothing is there, or nothing that is known."""
  if not path.exists():
    raise UserError(f'{path} does not exist; want a checkpoint: {_known()}')
  for name in FORMATS:
    if module(name).recognise(path):
      return name
  if (path / lora_config.FILE).exists():
    raise UserError(f'{path} is an adapter, no model: convert its base model with --lora={path} to merge it')
  there = f' It holds: {", ".join(sorted(p.name for p in path.iterdir())[:8])}.' if path.is_dir() else ''
  raise UserError(f'{path} is no checkpoint that llamax knows.{there} Want one of: {_known()}')


def guess_target(path: Path) -> str:
  """The format that a name of DST stands for. Raises UserError when its ending says nothing."""
  for name, format_ in FORMATS.items():
    if format_.endings and path.name.endswith(format_.endings):
      return name
  raise UserError(f'{path}: its name does not say which format it is to have; give --to={"|".join(FORMATS)}')


def open_source(
  path: Path, name: str | None = None, tokenizer: Tokenizer | None = None, **options: Any
) -> Source:
  """Opens a checkpoint of any format. options: what the format knows of; None counts as not given."""
  name = name or recognise(path)
  format_ = pick(FORMATS, name, '--from')
  return module(name).open_source(path, tokenizer, **_given(name, format_.source_options, options))


def open_target(name: str, model: Model, **options: Any) -> Target:
  format_ = pick(FORMATS, name, '--to')
  return module(name).Target(model, **_given(name, format_.target_options, options))


def _given(name: str, known: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
  given = {key: value for key, value in options.items() if value is not None}
  for key in given:
    if key not in known:
      raise UserError(f'--{key}={given[key]}: the format {name} has no such option')
  return given


def _known() -> str:
  return ', '.join(f'{format_.what} ({name})' for name, format_ in FORMATS.items())
