"""Config files that travel with a command."""

import pytest

from llamax.core.errors import UserError
from llamax.launch.shipped import config_files


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def command(config):
  return ['llamax', 'train', *config]


@pytest.mark.parametrize('config', [[], ['--config=configs/debug.py'], ['--config', 'configs/debug.py:x']])
def test_what_came_with_llamax_stays(here, config):
  assert config_files(command(config)) == {}


def test_one_of_ones_own_goes_with_its_neighbours(here):
  (here / 'a/b').mkdir(parents=True)
  for name in ('mine.py', 'base.py'):
    (here / 'a' / name).write_text(f'# {name}')
  (here / 'a/b/other.py').write_text('')
  (here / 'a/notes.txt').write_text('')
  files = {'a/base.py': '# base.py', 'a/mine.py': '# mine.py'}
  assert config_files(command(['--config=a/mine.py:arg'])) == files
  assert config_files(command(['--config', 'a/mine.py'])) == files
  assert config_files(command([f'--config={here}/a/mine.py'])) == {}


def test_a_file_of_ones_own_in_configs_goes_before_the_one_of_llamax(here):
  (here / 'configs').mkdir()
  (here / 'configs/debug.py').write_text('# mine')
  assert config_files(command(['--config=configs/debug.py'])) == {'configs/debug.py': '# mine'}


def test_what_is_no_file_stays(here):
  (here / 'mine.py').write_text('# mine')
  (here / '.#mine.py').symlink_to('somebody@a-host.4711')  # As Emacs says that it has the file open.
  (here / 'folder.py').mkdir()
  assert config_files(command(['--config=mine.py'])) == {'mine.py': '# mine'}


def test_a_neighbour_that_is_no_utf_8(here):
  (here / 'mine.py').write_text('# mine')
  (here / 'old.py').write_bytes('# größer'.encode('latin-1'))
  with pytest.raises(
    UserError, match=r'old\.py would be sent with mine\.py: it is not UTF-8 at byte 4;.*own folder'
  ):
    config_files(command(['--config=mine.py']))


def test_mistakes(here):
  with pytest.raises(UserError, match='no config file'):
    config_files(command(['--config=none.py']))
  with pytest.raises(UserError, match='nothing above its own folder'):
    config_files(command(['--config=../x.py']))
  (here / 'big.py').write_text('#' * (2 << 20))
  with pytest.raises(UserError, match='too much to send'):
    config_files(command(['--config=big.py']))
