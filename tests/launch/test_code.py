"""The wheel that travels: made of a commit, of nothing else, the same each time."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

from llamax.core.errors import UserError
from llamax.launch import code
from tests.launch.processes import ROOT

SETUP = """
import re
from setuptools import setup

version = re.search("'(.+)'", open('llamax/__init__.py').read())[1]
setup(name='llamax', version=version, packages=['llamax'])
"""


def git(folder, *words):
  return subprocess.run(
    ['git', '-C', folder, '-c', 'user.name=x', '-c', 'user.email=x@example.org', *words],
    check=True,
    capture_output=True,
    text=True,
  ).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A small llamax under git."""
  folder = tmp_path / 'a checkout'
  (folder / 'llamax').mkdir(parents=True)
  (folder / 'llamax/__init__.py').write_text("__version__ = '1.2.3'\n")
  (folder / 'constraints').mkdir()
  (folder / 'constraints/py311.txt').write_text('numpy==1\n')
  (folder / 'setup.py').write_text(SETUP)
  (folder / 'README.md').write_text('x\n')
  (folder / 'pyproject.toml').write_text('')
  (folder / 'configs').mkdir()
  (folder / 'configs/a.py').write_text('')
  (folder / '.gitignore').write_text('*.log\n')
  git(folder, 'init', '-q')
  git(folder, 'add', '.')
  git(folder, 'commit', '-q', '-m', 'x')
  monkeypatch.setenv('LLAMAX_CACHE', str(tmp_path / 'cache'))
  return folder


def contents(made):
  """Names in the bundle, then the files in its wheel."""
  with tarfile.open(made.bundle) as tar:
    names = tar.getnames()
    wheel = zipfile.ZipFile(tar.extractfile(names[0]))
    return names, {name: wheel.read(name).decode() for name in wheel.namelist()}


def test_a_commit_gives_the_same_bytes_each_time(checkout):
  found = code.find(None, False, checkout)
  commit = git(checkout, 'rev-parse', '--short=9', 'HEAD').strip()
  assert found.version == f'1.2.3+g{commit}' and not found.dirty and not found.folder.exists()
  code.make(found, checkout)
  first = found.bundle.read_bytes()
  assert found.digest.read_text() == f'{hashlib.sha256(first).hexdigest()}  bundle.tar\n'
  names, files = contents(found)
  assert names == [f'llamax-{found.version}-py3-none-any.whl', 'py311.txt']
  assert files['llamax/__init__.py'] == f"__version__ = '{found.version}'\n"
  found.digest.unlink()
  (checkout / 'llamax/__init__.py').touch()
  before = os.umask(0o077)
  try:
    code.make(found, checkout)
  finally:
    os.umask(before)
  assert found.bundle.read_bytes() == first
  subprocess.run(['sha256sum', '--check', '--quiet', found.digest.name], cwd=found.folder, check=True)


@pytest.mark.parametrize('change', ['edited', 'new', 'deleted', 'staged'])
def test_a_changed_checkout_is_refused_or_told_by_its_version(checkout, change):
  clean = code.find(None, False, checkout)
  if change == 'new':
    (checkout / 'llamax/extra.py').write_text('x = 1\n')
  elif change == 'deleted':
    (checkout / 'configs/a.py').unlink()
  else:
    (checkout / 'llamax/__init__.py').write_text("__version__ = '1.2.3'\nx = 1\n")
  if change == 'staged':
    git(checkout, 'add', '.')
  with pytest.raises(UserError, match=r'changes that are not committed \((llamax|configs)/.*give --dirty'):
    code.find(None, False, checkout)
  dirty = code.find(None, True, checkout)
  assert re.fullmatch(re.escape(clean.version) + r'\.d[0-9a-f]{9}', dirty.version)
  # Other changes have another version.
  (checkout / 'llamax/more.py').write_text('')
  assert code.find(None, True, checkout).version != dirty.version


def test_a_changed_checkout_travels_as_it_lies_there(checkout):
  (checkout / 'llamax/extra.py').write_text('x = 1\n')
  (checkout / 'llamax/__init__.py').write_text("__version__ = '1.2.3'\nx = 1\n")
  (checkout / 'configs/a.py').unlink()
  found = code.find(None, True, checkout)
  code.make(found, checkout)
  _, files = contents(found)
  assert files['llamax/extra.py'] == 'x = 1\n'
  assert files['llamax/__init__.py'] == f"__version__ = '{found.version}'\nx = 1\n"


def test_what_no_wheel_holds_may_change(checkout):
  before = code.find(None, False, checkout)
  (checkout / 'notes.txt').write_text('x')
  (checkout / 'llamax/run.log').write_text('x')
  assert code.find(None, False, checkout) == before


def test_a_change_while_the_wheel_is_made_is_noticed(checkout):
  (checkout / 'llamax/extra.py').write_text('x = 1\n')
  found = code.find(None, True, checkout)
  (checkout / 'llamax/extra.py').write_text('x = 2\n')
  with pytest.raises(UserError, match='was changed while'):
    code.make(found, checkout)
  assert not found.digest.exists()


def test_a_wheel_is_taken_as_it_is(tmp_path, monkeypatch):
  monkeypatch.setenv('LLAMAX_CACHE', str(tmp_path / 'cache'))
  wheel = tmp_path / 'llamax-1.2.3-py3-none-any.whl'
  wheel.write_bytes(b'a wheel')
  (tmp_path / 'py312.txt').write_text('numpy==1\n')
  found = code.find(str(wheel), False)
  assert found.version == f'1.2.3+w{hashlib.sha256(b"a wheel").hexdigest()[:9]}'
  action = found.action()
  subprocess.run(action.argv, check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  with tarfile.open(found.bundle) as tar:
    assert tar.getnames() == [wheel.name, 'py312.txt'] and tar.extractfile(wheel.name).read() == b'a wheel'


@pytest.mark.parametrize('name', ['none-1-py3-none-any.whl', 'llamax-1-cp311-none-any.whl', 'llamax.whl'])
def test_what_is_no_wheel_of_llamax_is_refused(tmp_path, name):
  (tmp_path / name).write_bytes(b'')
  with pytest.raises(UserError, match='want a file named llamax-VERSION'):
    code.find(str(tmp_path / name), False)


def test_a_wheel_of_a_user_that_is_none():
  with pytest.raises(UserError, match='~no-such-user/x: want a file named'):
    code.find('~no-such-user/x', False)


def test_where_there_is_no_checkout_it_wants_a_wheel(tmp_path):
  with pytest.raises(UserError, match='--wheel=FILE'):
    code.find(None, False, tmp_path)
  (tmp_path / 'setup.py').write_text('')
  with pytest.raises(UserError, match='--wheel=FILE'):
    code.find(None, False, tmp_path)


def test_this_checkout_makes_a_wheel_that_runs_elsewhere(cache, wheel, tmp_path):
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(tmp_path)
  ran = subprocess.run(
    [sys.executable, '-m', 'llamax.cli.main', '--version'],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert ran.stdout.split()[1] == wheel.name.split('-')[1]
  assert (tmp_path / 'llamax/configs/base.py').is_file()
