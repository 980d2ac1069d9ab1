"""Config files of a command that are not part of llamax, so that they travel beside it."""

import os
from collections.abc import Sequence
from pathlib import Path

import llamax
from llamax.core.errors import UserError
from llamax.train.supervise import option

_LARGEST = 1 << 20  # bytes


def config_files(command: Sequence[str]) -> dict[str, str]:
  """{path as the command has it: content} of its --config with the files beside it, which it may import.

  None for configs/NAME.py that came with llamax, nor for an absolute path, which a shared disk should have.

  Raises:
    UserError: no such file; one that cannot be read; a path that leads out of the current folder.
  """
  path = (option(command, 'config') or '').partition('.py:')
  file = Path(path[0] + '.py' if path[1] else path[0])
  if not file.name or file.is_absolute() or _came_with_llamax(file):
    return {}
  if '..' in file.parts:
    raise UserError(f'--config={file}: a worker has nothing above its own folder; give the path in full')
  if not os.path.isfile(file):
    raise UserError(f'no config file {str(file)!r} here; the job would need it')
  # Not all that is named so is a file: an editor's lock is a link to nothing.
  beside = [one for one in sorted(file.parent.glob('*.py')) if os.path.isfile(one)]
  texts = {str(one): _text(one, file) for one in beside}
  if sum(map(len, texts.values())) > _LARGEST:
    raise UserError(
      f'the {len(beside)} Python files beside {file} are too much to send: give it its own folder'
    )
  return texts


def _text(one: Path, config: Path) -> str:
  try:
    return one.read_text('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    why = error.strerror if isinstance(error, OSError) else f'it is not UTF-8 at byte {error.start}'
    own = '' if one == config else f', or give {config.name} its own folder'
    raise UserError(f'{one} would be sent with {config.name}: {why}; mend that{own}') from None


def _came_with_llamax(file: Path) -> bool:
  shipped = [parent / 'configs' / file.name for parent in Path(llamax.__file__).resolve().parents[:2]]
  if file.parent != Path('configs'):
    return False
  return any(one.is_file() and (not file.exists() or one.samefile(file)) for one in shipped)
