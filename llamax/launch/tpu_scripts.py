"""What the virtual machines of a TPU slice are told to do, as scripts for their bash."""

import shlex
from collections.abc import Sequence

from llamax.core.errors import UserError
from llamax.launch.action import Part
from llamax.launch.install import SCRIPT, Place
from llamax.launch.job import Job
from llamax.launch.shipped import config_files

# Where the code arrives, in the home of the user, who is the same on all of them.
BUNDLE = 'bundle.tar'
_HOME = '$HOME/.llamax'
# Of a host name such as t1v-n-0123abcd-w-3.
_NUMBER = 'w=${HOSTNAME##*-w-}'
MARK = 'llamax-worker'  # begins the line with which a worker answers


def install(place: Place, line: str) -> str:
  """Puts the code that has arrived where launch/install.py wants it, installs it there once.

  Args:
    line: of Python, '3.12': the images come with 3.10, so uv fetches it beside that one.
  """
  settings = {'folder': place.folder, 'python': place.python, 'extra': f'[{place.extra}]', 'how': 'venv'}
  return f"""set -eu
cd "$HOME"
export PATH="$HOME/.llamax/python{line}/bin:$HOME/.local/bin:$PATH"
mkdir -p {place.folder}
(
  flock 9
  [ ! -e {BUNDLE} ] || mv -f {BUNDLE} {place.folder}/bundle.tar
  if ! command -v {place.python} >/dev/null; then
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    uv --quiet venv --clear --seed --python {line} "{_HOME}/python{line}"
  fi
) 9>"{_HOME}/lock"
digest=$(cut -c1-64 {BUNDLE}.sha256)
ln -sfn "$HOME/{place.folder}" "{_HOME}/current"
{''.join(f'{name}={shlex.quote(text)}{chr(10)}' for name, text in settings.items())}{SCRIPT}"""


def mount(spec: str) -> str:
  """Mounts gs://BUCKET[/FOLDER] with gcsfuse, if it is not; spec: 'gs://bucket/folder:/mnt/runs'."""
  bucket, folder, place = parse_mount(spec)
  path, only = shlex.quote(place), f'--only-dir={shlex.quote(folder)} ' if folder else ''
  keys = '/usr/share/keyrings/cloud.google.asc'
  apt = 'https://packages.cloud.google.com/apt'
  # Without --metadata-cache-ttl-secs=0 one host sees for a minute what another has changed long since.
  return f"""set -eu
mountpoint -q {path} && exit 0
if ! command -v gcsfuse >/dev/null; then
  curl -fsS {apt}/doc/apt-key.gpg | sudo tee {keys} >/dev/null
  line="deb [signed-by={keys}] {apt} gcsfuse-$(lsb_release -cs) main"
  echo "$line" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
fi
sudo mkdir -p {path} && sudo chown "$(id -u)" {path}
gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 {only}{bucket} {path}
"""


def parse_mount(spec: str) -> tuple[str, str, str]:
  """'gs://bucket/folder:/mnt/runs' -> ('bucket', 'folder', '/mnt/runs')."""
  source, _, place = spec.rpartition(':')
  bucket, _, folder = source.removeprefix('gs://').partition('/')
  known = set('abcdefghijklmnopqrstuvwxyz0123456789-_.')
  if not source.startswith('gs://') or not bucket or set(bucket) - known or not place.startswith('/'):
    raise UserError(f'--mount={spec!r}: want gs://BUCKET[/FOLDER]:/PATH, such as gs://my-runs:/mnt/runs')
  return bucket, folder.strip('/'), place


def start(job: Job, place: Place, command: Sequence[str]) -> tuple[Part, ...]:
  """Starts `command` unless it runs: gcloud does the same again where a connection breaks."""
  files = ''.join(
    f'mkdir -p {shlex.quote(path.rpartition("/")[0] or ".")}\n'
    f"printf '%s' {shlex.quote(text)} > {shlex.quote(path)}\n"
    for path, text in config_files(job.command).items()
  )
  before = f"""set -eu
{_folder(job)}
code="$HOME/{place.folder}"
mkdir -p "$f/work"
if [ -e "$f/lock" ] && ! flock --nonblock --shared "$f/lock" true; then exit 0; fi
rm -f "$f/asked"
ln -sfn "$code/bin/python" "$f/python"
export PATH="$code/bin:$PATH" PYTHONUNBUFFERED=1
cd "$f/work"
"""
  end = f'exec "$f/python" -m llamax.launch.worker start "$f" -- {shlex.join(command)}\n'
  return (before, *job.exports(), files, end) if files else (before, *job.exports(), end)


def status(job: Job) -> str:
  """Prints 'llamax-worker NUMBER JSON': code (the folder of it), asked (to stop), job (launch/worker.py)."""
  return f"""{_NUMBER}
{_folder(job)}
c=$(readlink "{_HOME}/current" || true)
[ -e "$c/ready" ] || c=
a=$([ -e "$f/asked" ] && echo true || echo false)
s=$("$f/python" -m llamax.launch.worker status "$f" 2>/dev/null || echo '{{"state": "none"}}')
printf '{MARK} %s {{"code": "%s", "asked": %s, "job": %s}}\\n' "$w" "${{c##*/}}" "$a" "$s"
"""


def logs(job: Job, last: int | None) -> str:
  """Its output with the worker's number, the last lines or all of it, then what comes."""
  count = '+1' if last is None else str(last)
  return f"""{_NUMBER}
{_folder(job)}
tail -n {count} -F "$f/output.log" 2>/dev/null | sed -u "s/^/[$w] /"
"""


def stop(job: Job, seconds: int) -> str:
  """Asks it to save, to end; after `seconds` it is killed."""
  return f"""{_folder(job)}
[ -e "$f/python" ] || exit 0
touch "$f/asked"
"$f/python" -m llamax.launch.worker stop "$f" --wait {seconds}
"""


def doctor(place: Place, workdir: str | None) -> str:
  """Prints 'llamax-worker NUMBER JSON', the report of llamax doctor."""
  where = f' --workdir={shlex.quote(workdir)}' if workdir else ''
  return f"""{_NUMBER}
r=$("$HOME/{place.folder}/bin/llamax" doctor --json{where} | tail -n 1 || true)
printf '{MARK} %s %s\\n' "$w" "$r"
"""


def _folder(job: Job) -> str:
  return f'f="{_HOME}/jobs/{job.name}/0"'
