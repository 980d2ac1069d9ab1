"""The code that travels to the machines: one tar of a wheel with constraints, known by a digest."""

import argparse
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import llamax
from llamax.core import exits
from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.core.storage import needed, write_text
from llamax.launch.action import Run

# What a wheel is made of; other changes of a checkout do not matter.
_PATHS = ('llamax', 'configs', 'constraints', 'setup.py', 'pyproject.toml', 'README.md')
_WHEEL = re.compile(r'llamax-([A-Za-z0-9.+_]+)-py3-none-any\.whl')
_VERSION = re.compile(r"(?m)^__version__ = '([^']+)'")


@dataclass(frozen=True)
class Code:
  """Where the code lies on the launcher's machine, once `action` has been done.

  Args:
    version: of llamax with its commit, '0.1.0+g1a2b3c4d5', of a changed checkout '0.1.0+g1a2b3c4d5.d6e7f8a9b';
      of a --wheel that of its name with its digest. It names folders on the machines.
    folder: holds `bundle`, a tar of the wheel, py311.txt, ...; beside it `digest`, the bundle's SHA-256 as
      sha256sum writes it.
    wheel: given by --wheel; None: made of the checkout.
    dirty: of the checkout with what is not committed.
  """

  version: str
  folder: Path
  wheel: Path | None = None
  dirty: bool = False

  @property
  def bundle(self) -> Path:
    return self.folder / 'bundle.tar'

  @property
  def digest(self) -> Path:
    return self.folder / 'bundle.tar.sha256'

  def action(self) -> Run:
    """Makes the bundle, unless it is there already."""
    words = [sys.executable, '-m', 'llamax.launch.code', f'--version={self.version}', f'--out={self.folder}']
    words += [f'--wheel={self.wheel}'] * (self.wheel is not None) + ['--dirty'] * self.dirty
    return Run(tuple(words), f'the code: llamax {self.version} as a wheel with its constraints')


def find(wheel: str | None, dirty: bool, checkout: Path | None = None) -> Code:
  """The code that would travel: `wheel`, else that of the checkout that this llamax runs from. Writes nothing.

  Raises:
    UserError: no such wheel; no checkout; changes that are not committed, without `dirty`.
  """
  if wheel is not None:
    # Not Path.expanduser, which raises where there is no such user.
    return _of_wheel(Path(os.path.expanduser(wheel)).absolute())
  checkout = checkout or Path(llamax.__file__).resolve().parents[1]
  if not (checkout / 'setup.py').is_file():
    raise UserError(
      f'llamax is installed in {checkout}, not run from a checkout that a wheel could be made of: give '
      '--wheel=FILE, the wheel that it was installed from'
    )
  commit = _git(checkout, 'rev-parse', '--short=9', 'HEAD').decode().strip()
  version = _VERSION.search(_git(checkout, 'show', 'HEAD:llamax/__init__.py').decode())
  assert version is not None
  local = f'{version.group(1)}+g{commit}'
  changed = _git(checkout, 'status', '--porcelain', '--', *_PATHS).decode().splitlines()
  if not changed:
    return Code(local, cache(local))
  if not dirty:
    listed = ', '.join(line[3:] for line in changed[:5]) + (', ...' if len(changed) > 5 else '')
    raise UserError(
      f'the checkout {checkout} has changes that are not committed ({listed}): commit them, so that the run '
      'is known by its commit, or give --dirty to send them as they are'
    )
  local += f'.d{_difference(checkout)}'
  return Code(local, cache(local), dirty=True)


def make(code: Code, checkout: Path | None = None) -> None:
  """Writes `code.bundle`, then `code.digest`. The same commit gives the same wheel."""
  if code.digest.is_file() and code.bundle.is_file():
    return
  checkout = checkout or Path(llamax.__file__).resolve().parents[1]
  with tempfile.TemporaryDirectory() as scratch, needed(code.folder):
    code.folder.mkdir(parents=True, exist_ok=True)
    if code.wheel is None:
      source = Path(scratch, 'source')
      _export(checkout, source, code.dirty)
      if code.dirty and not code.version.endswith(f'.d{_difference(checkout)}'):
        raise UserError(
          f'{checkout} was changed while its wheel was made; the same command again takes it as it is'
        )
      wheel, constraints = _build(source, code.version, Path(scratch)), source / 'constraints'
      seconds = int(_git(checkout, 'show', '-s', '--format=%ct', 'HEAD'))
    else:
      wheel, constraints, seconds = code.wheel, code.wheel.parent, int(code.wheel.stat().st_mtime)
    files = [wheel, *sorted(constraints.glob('py3[0-9][0-9].txt'))]
    tar = _tar(files, seconds)
    beside = code.bundle.with_name(f'.bundle.{os.getpid()}')
    beside.write_bytes(tar)
    os.replace(beside, code.bundle)
    write_text(code.digest, f'{hashlib.sha256(tar).hexdigest()}  {code.bundle.name}\n')


def _of_wheel(wheel: Path) -> Code:
  name = _WHEEL.fullmatch(wheel.name)
  if not os.path.isfile(wheel) or name is None:
    raise UserError(f'--wheel={wheel}: want a file named llamax-VERSION-py3-none-any.whl')
  try:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:9]
  except OSError as error:
    raise UserError(f'--wheel={wheel} cannot be read: {error.strerror}') from None
  version = f'{name.group(1)}{"." if "+" in name.group(1) else "+"}w{digest}'
  return Code(version, cache(version), wheel=wheel)


def cache(version: str) -> Path:
  return Path(os.environ.get('LLAMAX_CACHE') or '~/.cache/llamax').expanduser().absolute() / 'code' / version


def _git(checkout: Path, *words: str) -> bytes:
  try:
    return subprocess.run(('git', '-C', str(checkout), *words), capture_output=True, check=True).stdout
  except OSError as error:
    raise UserError(f'git cannot be run ({error.strerror}): install it, or give --wheel=FILE') from None
  except subprocess.CalledProcessError as error:
    raise UserError(
      f'git {words[0]} in {checkout}: {error.stderr.decode().strip()}; '
      'where that is no checkout, give --wheel=FILE'
    ) from None


def _untracked(checkout: Path) -> list[str]:
  names = _git(checkout, 'ls-files', '-z', '--others', '--exclude-standard', '--', *_PATHS).decode()
  return sorted(filter(None, names.split('\0')))


def _difference(checkout: Path) -> str:
  """A digest of all that differs from HEAD."""
  digest = hashlib.sha256(_git(checkout, 'diff', '--binary', '--no-ext-diff', 'HEAD', '--', *_PATHS))
  for name in _untracked(checkout):
    content = (checkout / name).read_bytes()
    digest.update(f'\0{name}\0{len(content)}\0'.encode() + content)
  return digest.hexdigest()[:9]


def _export(checkout: Path, target: Path, dirty: bool) -> None:
  """HEAD, or the files as they lie there."""
  target.mkdir()
  if not dirty:
    tar = _git(checkout, 'archive', '--format=tar', 'HEAD', '--', *_PATHS)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
      archive.extractall(target, filter='data')
    return
  tracked = _git(checkout, 'ls-files', '-z', '--', *_PATHS).decode().split('\0')
  for name in filter(None, [*tracked, *_untracked(checkout)]):
    if (checkout / name).is_file():  # Else it is deleted there.
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      (target / name).write_bytes((checkout / name).read_bytes())


def _build(source: Path, version: str, out: Path) -> Path:
  """The wheel, whose llamax.__version__ is `version`."""
  init = source / 'llamax/__init__.py'
  init.write_text(_VERSION.sub(f"__version__ = '{version}'", init.read_text(), count=1))
  # Times, rights inside a wheel are always the same, so that the same commit has the same digest.
  env = {**os.environ, 'SOURCE_DATE_EPOCH': '1577836800', 'PYTHONWARNINGS': 'ignore'}
  for path in source.rglob('*'):
    path.chmod(0o755 if path.is_dir() else 0o644)
  if importlib.util.find_spec('setuptools') is not None:  # Needs no network.
    build = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'
    words = ['-c', build, str(out)]
  else:
    words = ['-m', 'pip', 'wheel', '--quiet', '--no-deps', f'--wheel-dir={out}', '.']
  ended = subprocess.run(
    [sys.executable, *words], cwd=source, capture_output=True, text=True, env=env, umask=0o022
  )
  wheels = sorted(out.glob('llamax-*.whl'))
  if ended.returncode or len(wheels) != 1:
    said = '\n'.join((ended.stderr or ended.stdout).splitlines()[-20:])
    raise UserError(f'the wheel could not be made: {said}')
  return wheels[0]


def _tar(files: Sequence[Path], seconds: int) -> bytes:
  written = io.BytesIO()
  with tarfile.open(fileobj=written, mode='w') as tar:
    for file in files:
      content = file.read_bytes()
      entry = tarfile.TarInfo(file.name)
      entry.size, entry.mtime, entry.mode = len(content), seconds, 0o644
      tar.addfile(entry, io.BytesIO(content))
  return written.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
  """python -m llamax.launch.code --version=V --out=FOLDER [--wheel=FILE] [--dirty]"""
  parser = argparse.ArgumentParser(prog='llamax.launch.code', usage=main.__doc__, allow_abbrev=False)
  parser.add_argument('--version', required=True)
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--wheel', type=Path)
  parser.add_argument('--dirty', action='store_true')
  args = parser.parse_args(argv)
  try:
    make(Code(args.version, args.out, args.wheel, args.dirty))
  except UserError as error:
    tell(f'llamax launch: {error}')
    return exits.MISTAKE
  return 0


if __name__ == '__main__':
  sys.exit(main())
