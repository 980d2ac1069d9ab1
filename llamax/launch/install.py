"""The script that puts a bundle of code (launch/code.py) onto a worker."""

import hashlib
import re
import shlex
from dataclasses import dataclass

from llamax.core.errors import UserError
from llamax.launch.action import Part
from llamax.launch.code import Code

_PATH = re.compile(r'[A-Za-z0-9._+][A-Za-z0-9._+/-]*|/[A-Za-z0-9._+/-]+')
_EXTRA = re.compile(r'[a-z0-9]+(,[a-z0-9]+)*')


@dataclass(frozen=True)
class Place:
  """Where the code goes on each worker.

  Args:
    root: a folder; relative to the home folder, or absolute.
    python: the interpreter to make an environment with.
    extra: of llamax, 'tpu', 'cuda' or 'tpu,tensorboard'; '' for none.
    installed: True: no environment is made; the code uses the packages that `python` has.

  Raises:
    UserError: what no shell of any kind would leave as it is.
  """

  code: Code
  root: str = '.llamax'
  python: str = 'python3'
  extra: str = ''
  installed: bool = False

  def __post_init__(self) -> None:
    for name, text in (('root', self.root), ('python', self.python)):
      if not _PATH.fullmatch(text):
        raise UserError(f'--{name}={text}: want letters, digits, . _ + - / alone')
    if self.extra and not _EXTRA.fullmatch(self.extra):
      raise UserError(f'--extra={self.extra}: want names with commas between, such as tpu')
    if self.extra and self.installed:
      raise UserError(
        f'--extra={self.extra} installs packages, --installed takes those that are there: want one'
      )

  @property
  def folder(self) -> str:
    """Of this code with this Python: `bin/llamax`, `bin/python` run it."""
    how = '\0'.join((self.python, self.extra, str(self.installed)))
    return f'{self.root}/code/{self.code.version}-{hashlib.sha256(how.encode()).hexdigest()[:6]}'

  def receive(self) -> str:
    """A command for a login shell of any kind that takes the bundle from its standard input."""
    there = self.folder
    # Several workers may have one home folder.
    return (
      f"exec sh -c 'mkdir -p {there} && part=$(mktemp {there}/bundle.XXXXXX) && cat > $part && "
      f"mv $part {there}/bundle.tar'"
    )

  def install(self) -> tuple[Part, ...]:
    """A script for a POSIX shell; it needs flock, tar, sha256sum. Done already, it does nothing.

    It ends with 2 where the digest or the Python is not what it should be.
    """
    settings = {
      'folder': self.folder,
      'python': self.python,
      'extra': f'[{self.extra}]' if self.extra else '',
      'how': 'installed' if self.installed else 'venv',
    }
    lines = ''.join(f'{name}={shlex.quote(text)}\n' for name, text in settings.items())
    # The digest is known once the bundle has been made.
    return (lines, "digest=$(cut -c1-64 <<'END'\n", self.code.digest, 'END\n)\n', SCRIPT)


SCRIPT = r"""set -eu
umask 022
fail() { printf 'install: %s\n' "$*" >&2; exit 2; }
mkdir -p "$folder"
cd "$folder"
here=$(pwd -P)
# Several workers may have one home folder: one of them installs, the others find it done.
exec 9> lock
flock 9
if [ "$(cat ready 2> /dev/null)" = "$digest" ]; then
  printf '%s is installed already\n' "$here"
  exit 0
fi
printf '%s  bundle.tar\n' "$digest" | sha256sum -c --status \
  || fail "$here/bundle.tar: digest $(sha256sum bundle.tar | cut -c1-64), want $digest: send it again (create)"
command -v "$python" > /dev/null || fail "there is no $python here; give --python"
line=$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
case $line in
  py311 | py312 | py313) ;;
  *) fail "$python is $("$python" --version 2>&1); llamax wants 3.11, 3.12 or 3.13: give --python" ;;
esac
rm -rf ready files venv site bin
mkdir files bin
tar -x -C files -f bundle.tar
wheel=$(echo "$here"/files/llamax-*.whl)
if [ "$how" = venv ]; then
  "$python" -m venv venv || fail "$python makes no virtual environment (Debian: apt-get install python3-venv)"
  set -- --quiet --disable-pip-version-check
  [ ! -e "files/$line.txt" ] || set -- "$@" --constraint "files/$line.txt"
  venv/bin/python -m pip install "$@" "$wheel$extra"
  printf '#!/bin/sh\nexec "%s" "$@"\n' "$here/venv/bin/python" > bin/python
else
  "$python" -m zipfile -e "$wheel" site
  # shellcheck disable=SC2016 # That is for the script to expand.
  printf '#!/bin/sh\nPYTHONPATH="%s${PYTHONPATH:+:$PYTHONPATH}" exec "%s" "$@"\n' \
    "$here/site" "$(command -v "$python")" > bin/python
fi
printf '#!/bin/sh\nexec "%s" -m llamax.cli.main "$@"\n' "$here/bin/python" > bin/llamax
chmod +x bin/python bin/llamax
bin/llamax --version
printf '%s' "$digest" > ready.part
mv ready.part ready
printf 'installed in %s\n' "$here"
"""
