"""Config files of a command that are not part of llamax, so that they travel beside it."""

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
    UserError: no such file; a path that leads out of the current folder.
  """
  path = (option(command, 'config') or '').partition('.py:')
  file = Path(path[0] + '.py' if path[1] else path[0])
  if not file.name or file.is_absolute() or _came_with_llamax(file):
    return {}
  if '..' in file.parts:
    raise UserError(f'--config={file}: a worker has nothing above its own folder; give the path in full')
  if not file.is_file():
    raise UserError(f'no config file {str(file)!r} here; the job would need it')
  beside = sorted(file.parent.glob('*.py'))
  texts = {str(one): one.read_text() for one in beside}
  if sum(map(len, texts.values())) > _LARGEST:
    raise UserError(
      f'the {len(beside)} Python files beside {file} are too much to send: give it its own folder'
    )
  return texts


def _came_with_llamax(file: Path) -> bool:
  shipped = [parent / 'configs' / file.name for parent in Path(llamax.__file__).resolve().parents[:2]]
  if file.parent != Path('configs'):
    return False
  return any(one.is_file() and (not file.exists() or one.samefile(file)) for one in shipped)
