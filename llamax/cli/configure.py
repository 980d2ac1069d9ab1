"""From a config file with the command line's overrides to a checked Config, each value with its origin."""

import contextlib
import importlib
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamax.core.config import Config, fields_of, flatten, parse_text, unflatten, unknown_key
from llamax.core.errors import UserError, nearest
from llamax.model.presets import fill

Provenance = dict[str, tuple[Any, str]]  # dotted key -> (value, where it came from)
BASE, PRESET, FILE, COMMAND_LINE = 'base', 'preset', 'file', 'command line'


def load(path_with_arg: str, overrides: Sequence[tuple[str, str]]) -> tuple[Config, Provenance]:
  """The config of `--config=PATH[:ARG]` with `--config.KEY=TEXT` for each (KEY, TEXT), the last one winning.

  Raises:
    UserError: no such file, an error inside it (named by file:line), an unknown key, a wrong value.
  """
  path, arg = _split_arg(path_with_arg)
  file = _locate(path)
  from_file, from_base = _run_file(file, arg)
  typed = {key: parse_text(key, text) for key, text in overrides}
  config = resolve(unflatten(from_file | typed))
  values = flatten(config.to_mapping())

  def origin(key: str) -> str:
    given = typed if key in typed else from_file
    if given[key] is None and key.startswith('model.'):
      return PRESET
    if given is typed:
      return COMMAND_LINE
    return BASE if key in from_base and from_base[key] == given[key] else FILE

  return config, {key: (value, origin(key)) for key, value in values.items()}


def load_sweep(
  path_with_arg: str, overrides: Sequence[tuple[str, str]], words: types.ModuleType
) -> tuple[Any, Callable[[Sequence[tuple[str, str]]], Config]]:
  """What get_sweep(words) of the file returns; a function from further (KEY, TEXT) pairs to a run's config.

  get_sweep(words, arg) gets what stands after the colon, where it takes that.

  Raises:
    UserError: as `load`; the file has no get_sweep, or there is an error in it.
  """
  path, arg = _split_arg(path_with_arg)
  file = _locate(path)
  from_file, _ = _run_file(file, arg)
  with _importable((file.resolve().parent, _shipped())):
    found = _get_sweep(_module(file), file, arg, words)

  def config(texts: Sequence[tuple[str, str]]) -> Config:
    typed = {key: parse_text(key, text) for key, text in [*overrides, *texts]}
    return resolve(unflatten(from_file | typed))

  return found, config


def resolve(mapping: Any) -> Config:
  """A full nested mapping or ConfigDict -> Config; a model key that is None takes its preset's value.

  Raises:
    UserError: an unknown or missing key, a value of the wrong type, values that do not fit each other.
  """
  plain = _plain(mapping)
  if isinstance(plain.get('model'), Mapping):
    plain['model'] = fill(plain['model'])
  return Config.from_mapping(plain)


def defaults() -> Config:
  """What configs/base.py says, as it came with llamax."""
  return load(str(_shipped() / 'base.py'), [])[0]


def difference(config: Config, provenance: Provenance) -> list[tuple[str, Any, str]]:
  """Rows (key, value, where from): the preset's name, then all that a file or the command line set."""
  rows = []
  for key, value in flatten(config.to_mapping()).items():
    where = provenance[key][1]
    if key == 'model.preset' or where in (FILE, COMMAND_LINE):
      rows.append((key, value, where))
  return rows


def _plain(mapping: Any) -> dict[str, Any]:
  """A ConfigDict or mapping as a plain dict (ConfigDict is known by its method: no import for it)."""
  plain = mapping.to_dict() if hasattr(mapping, 'to_dict') else mapping
  if not isinstance(plain, Mapping):
    raise UserError(f'a config is a ConfigDict or a nested mapping; got {type(mapping).__name__}')
  return dict(plain)


def _split_arg(path_with_arg: str) -> tuple[str, str | None]:
  path, suffix, arg = path_with_arg.partition('.py:')
  return (path + '.py', arg) if suffix else (path_with_arg, None)


def _shipped() -> Path:
  """The folder of configs that came with llamax: inside the installed package, else of the checkout."""
  package, checkout = (parent / 'configs' for parent in Path(__file__).resolve().parents[1:3])
  return package if (package / 'base.py').is_file() else checkout


def _locate(path: str) -> Path:
  """The file itself, or for configs/NAME.py that is not here the one shipped with llamax."""
  try:
    file = Path(path).expanduser()
  except RuntimeError:
    raise UserError(f'--config={path}: no user {path.partition("/")[0]!r} whose home is known') from None
  choices = [file] + [_shipped() / file.name] * (file.parent == Path('configs'))
  for choice in choices:
    if choice.is_file():
      return choice
  if file.is_dir():
    raise UserError(f'--config={path} is a folder; name a file in it.{_near(file, file)}')
  why = '' if file.parent.is_dir() else f': there is no folder {str(file.parent)!r}'
  raise UserError(f'no config file {path!r}{why}.{_near(file, file.parent)}')


def _near(file: Path, folder: Path) -> str:
  """' Did you mean ...?' over the config files of a folder; the shipped ones where it has none."""
  here = sorted(folder.glob('*.py'))
  if here:
    return nearest(file.name, [other.name for other in here])
  return nearest(file.name, [f'configs/{other.name}' for other in _shipped().glob('*.py')])


def _run_file(file: Path, arg: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
  """Flat values of the file's get_config, then of the base that it imported, else of the shipped one."""
  with _importable((file.resolve().parent, _shipped())):
    from_file = _get_config(_module(file), file, arg)
    base = sys.modules.get('base')
    if base is None or not hasattr(base, 'get_config'):
      base = _module(_shipped() / 'base.py')
    from_base = _get_config(base, file, None)
  known = fields_of()
  for key in from_file:
    if key not in known:
      raise UserError(f'{file}: {unknown_key(key)}')
  return from_file, from_base


@contextlib.contextmanager
def _importable(folders: Sequence[Path]) -> Iterator[None]:
  """Lets a config import its neighbours; sys.path, sys.modules are afterwards what they were."""
  names = {f.stem for folder in folders for f in folder.glob('*.py')} - sys.stdlib_module_names
  path = sys.path.copy()
  hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
  sys.path[:0] = [str(folder) for folder in folders]
  importlib.invalidate_caches()  # A file written since the folder was last read would not be found.
  try:
    yield
  finally:
    sys.path[:] = path
    for name in names:
      sys.modules.pop(name, None)
    sys.modules.update(hidden)


def _module(file: Path) -> types.ModuleType:
  """The file's globals after running it."""
  module = types.ModuleType(file.stem)
  module.__file__ = str(file)
  try:
    exec(compile(file.read_bytes(), str(file), 'exec'), module.__dict__)
  except Exception as error:
    raise _inside(file, error) from error
  return module


def _get_config(module: types.ModuleType, file: Path, arg: str | None) -> dict[str, Any]:
  if not callable(getattr(module, 'get_config', None)):
    raise UserError(f'{file} has no function get_config; a config file defines get_config() -> ConfigDict')
  if arg is not None and not inspect.signature(module.get_config).parameters:
    raise UserError(f'{file} takes no argument; got {arg!r}, what stands after the colon')
  try:
    mapping = module.get_config() if arg is None else module.get_config(arg)
    return flatten(_plain(mapping))
  except Exception as error:
    raise _inside(file, error) from error


def _get_sweep(module: types.ModuleType, file: Path, arg: str | None, words: types.ModuleType) -> Any:
  if not callable(getattr(module, 'get_sweep', None)):
    raise UserError(
      f'{file} has no function get_sweep; beside get_config want, for instance:\n'
      '  def get_sweep(s):\n'
      "    return s.grid('optim.learning_rate', [1e-3, 3e-3])"
    )
  takes_arg = len(inspect.signature(module.get_sweep).parameters) > 1
  try:
    return module.get_sweep(words, arg) if takes_arg and arg is not None else module.get_sweep(words)
  except Exception as error:
    raise _inside(file, error) from error


def _inside(file: Path, error: Exception) -> UserError:
  """`error` as a message that names the line of the user's config, or of a config beside it."""
  where = str(file)
  for frame in traceback.extract_tb(error.__traceback__):
    if Path(frame.filename).resolve().parent in (file.resolve().parent, _shipped()):
      where = f'{frame.filename}:{frame.lineno}'
  if isinstance(error, SyntaxError) and error.filename:
    where = f'{error.filename}:{error.lineno}'
  kind = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
  return UserError(f'{where}: {kind}{error}')
