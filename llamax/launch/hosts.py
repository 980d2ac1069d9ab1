"""What is said to each host of an ssh launch, as commands."""

import argparse
import re
import shlex
from collections.abc import Callable, Sequence

from llamax.core.errors import UserError
from llamax.launch.action import Action, Part, Run, Together
from llamax.launch.install import Place
from llamax.launch.job import Job
from llamax.launch.shipped import config_files
from llamax.launch.worker import CODE

_HOST = re.compile(r'([A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*')
# No password is asked for, no unknown host key is taken; a host that has gone is noticed within a minute.
_OPTIONS = ('BatchMode=yes', 'ConnectTimeout=15', 'ServerAliveInterval=15', 'ServerAliveCountMax=4')
_PORT = 8476
_NEVER = '{"state": "none"}'


class Hosts:
  """The hosts of a job, in the order of their processes; each method does one thing on all of them."""

  def __init__(self, args: argparse.Namespace, job: Job):
    self.job, self.args = job, args
    self.names = _names(args)
    if args.max_restarts < 0:
      raise UserError(f'--max_restarts={args.max_restarts}: want at least 0')
    self.place = Place(job.code, args.root, args.python, args.extra, args.installed) if job.code else None
    self.coordinator = _coordinator(args.coordinator, self.names[0])

  def create(self, ranks: Sequence[int] | None = None) -> list[Action]:
    """The code made here, sent, installed, checked by its digest."""
    place = self._placed()
    ranks = range(len(self.names)) if ranks is None else ranks
    receive = [
      Run(
        self._argv(self.names[rank], place.receive()),
        'send',
        stdin=(place.code.bundle,),
        label=self.names[rank],
      )
      for rank in ranks
    ]
    return [
      place.code.action(),
      Together(tuple(receive), 'the code goes to each host'),
      self._each(lambda rank: place.install(), 'each checks its digest, installs it once', ranks),
    ]

  def environments(self) -> Together:
    python = f'exec {self._placed().folder}/bin/python -m llamax.launch.environment\n'
    return self._each(lambda rank: (python,), 'the versions on all hosts, which must be the same')

  def submit(self, ranks: Sequence[int] | None = None) -> Together:
    return self._each(self._start, 'starts the command on each host, where it outlives this connection', ranks)

  def status(self, ranks: Sequence[int] | None = None) -> Together:
    return self._each(
      lambda rank: self._worker(rank, 'status FOLDER', _NEVER), 'what each host is doing', ranks
    )

  def logs(self) -> Together:
    return Together(
      tuple(self.log(rank)(0) for rank in range(len(self.names))), 'the output of all as it comes'
    )

  def log(self, rank: int) -> Callable[[int], Run]:
    """From a byte on."""

    def command(offset: int) -> Run:
      words = f'logs FOLDER --offset {offset}'
      return self._script(rank, self._worker(rank, words, ''), 'its output as it comes')

    return command

  def stop(self, ranks: Sequence[int] | None = None) -> Together:
    return self._each(
      lambda rank: self._worker(rank, 'stop FOLDER', _NEVER), 'asks each to save, to end; then means it', ranks
    )

  def delete(self) -> Together:
    root, name = self.args.root, self.job.name
    return self._each(
      lambda rank: (_DELETE.format(root=root, name=name, rank=rank),), 'what create, submit left on each host'
    )

  def doctor(self) -> Together:
    def parts(rank: int) -> tuple[Part, ...]:
      words = ['doctor', '--json'] + ([f'--workdir={self.job.workdir}'] if self.job.workdir else [])
      if len(self.names) > 1:
        first = [f'--listen={self.coordinator}', f'--peers={len(self.names) - 1}']
        # As long as hosts may differ in how fast they import jax, before they meet.
        words += [*(first if rank == 0 else [f'--peer={self.coordinator}']), '--patience=60']
      return (f'{self._placed().folder}/bin/llamax {shlex.join(words)} || true\n',)

    return self._each(parts, 'what would go wrong on each host')

  def shell(self) -> Run:
    host = self.args.host or self.names[0]
    if host not in self.names:
      raise UserError(f'--host={host} is none of {", ".join(self.names)}')
    argv = self._argv(host)
    return Run(argv[:-1], f'a shell on {host}', interactive=True)

  def command(self, rank: int) -> tuple[str, ...]:
    """What runs on a host."""
    place: tuple[str, ...] = ()
    if len(self.names) > 1:
      place = (
        f'--coordinator={self.coordinator}',
        f'--num_processes={len(self.names)}',
        f'--process_id={rank}',
      )
    return ('llamax', 'supervise', '--', *self.job.command, *place)

  def _start(self, rank: int) -> tuple[Part, ...]:
    if self.job.command[0] != 'llamax':
      raise UserError(f'{self.job.command[0]!r}: a command for other hosts begins with llamax, installed there')
    workdir = self.job.workdir
    if workdir is None or not workdir.startswith('/'):
      raise UserError(
        f'--workdir={workdir}: want the whole path of a folder on a disk that all hosts share, /mnt/...; each '
        'host has a current folder of its own'
      )
    files = ''.join(_write(path, text) for path, text in config_files(self.job.command).items())
    place = self._placed()
    settings = f'folder={self.args.root}/jobs/{self.job.name}/{rank}\ncode={place.folder}\n'
    settings += f'export {CODE}={place.code.version}\n'
    end = f'exec "$folder/python" -m llamax.launch.worker start "$folder" -- {shlex.join(self.command(rank))}\n'
    return (*self.job.exports(), settings, _PREPARE, files, end)

  def _worker(self, rank: int, words: str, absent: str) -> tuple[Part, ...]:
    """launch/worker.py, by the code that the job was started with; says `absent` where it never was."""
    folder = f'{self.args.root}/jobs/{self.job.name}/{rank}'
    say = f"printf '%s\\n' {shlex.quote(absent)}; " if absent else ''
    return (
      f'[ -x {folder}/python ] || {{ {say}exit 0; }}\n'
      f'exec {folder}/python -m llamax.launch.worker {words.replace("FOLDER", folder)}\n',
    )

  def _each(
    self, parts: Callable[[int], tuple[Part, ...]], why: str, ranks: Sequence[int] | None = None
  ) -> Together:
    ranks = range(len(self.names)) if ranks is None else ranks
    return Together(tuple(self._script(rank, parts(rank), why) for rank in ranks), why)

  def _script(self, rank: int, parts: tuple[Part, ...], why: str) -> Run:
    """A POSIX shell reads `parts` there: nothing depends on how a login shell takes words apart."""
    host = self.names[rank]
    return Run(self._argv(host, 'exec sh -s'), why, stdin=parts, label=host)

  def _argv(self, host: str, command: str = '') -> tuple[str, ...]:
    config = ('-F', str(self.args.ssh_config)) if self.args.ssh_config else ()
    options = [word for option in (*_OPTIONS, *self.args.ssh_option) for word in ('-o', option)]
    return ('ssh', *config, *options, '--', host, command)

  def _placed(self) -> Place:
    assert self.place is not None, 'this verb comes with code (target.WITH_CODE)'
    return self.place


def _names(args: argparse.Namespace) -> list[str]:
  if args.hosts_file:
    try:
      lines = [line.partition('#')[0].strip() for line in args.hosts_file.read_text().splitlines()]
    except OSError as error:
      raise UserError(f'--hosts_file={args.hosts_file} cannot be read: {error.strerror}') from None
    except UnicodeDecodeError as error:
      raise UserError(
        f'--hosts_file={args.hosts_file} is not UTF-8 at byte {error.start}; want a text file, one host a line'
      ) from None
    names, where = [line for line in lines if line], f'--hosts_file={args.hosts_file}'
  else:
    names, where = args.hosts.split(','), f'--hosts={args.hosts}'
  for name in names:
    if not _HOST.fullmatch(name):
      raise UserError(f'{where}: {name!r} is no host; want HOST or USER@HOST, letters, digits, . _ - alone')
    if names.count(name) > 1:
      raise UserError(f'{where}: {name} is there twice; each host runs one process')
  if not names:
    raise UserError(f'{where}: no host there')
  return names


def _coordinator(given: str | None, first: str) -> str:
  address = given or first.rpartition('@')[2]
  if not re.fullmatch(r'[A-Za-z0-9._-]+(:[0-9]{1,5})?', address):
    raise UserError(f'--coordinator={given}: want HOST or HOST:PORT, the first host as the others reach it')
  return address if ':' in address else f'{address}:{_PORT}'


def _write(path: str, text: str) -> str:
  """Shell lines that write a config file below the current folder."""
  folder, quoted = path.rpartition('/')[0], shlex.quote(path)
  # printf, not a here-document: it keeps a last line without its end.
  return (
    f'mkdir -p {shlex.quote(folder)}\n' if folder else ''
  ) + f"printf '%s' {shlex.quote(text)} > {quoted}\n"


_PREPARE = r"""set -eu
fail() { printf 'submit: %s\n' "$*" >&2; exit 2; }
[ -e "$code/ready" ] || fail "llamax is not installed in $code; llamax launch ssh create does that"
mkdir -p "$folder/work"
code=$(cd "$code" && pwd -P)
folder=$(cd "$folder" && pwd -P)
if [ -e "$folder/lock" ] && ! flock --nonblock --shared "$folder/lock" true; then
  fail "the job runs already: stop it first, or take another --name"
fi
ln -sfn "$code/bin/python" "$folder/python"
PATH="$code/bin:$PATH" PYTHONUNBUFFERED=1
export PATH PYTHONUNBUFFERED
cd "$folder/work"
"""

# The code stays while another job runs: it may be the same.
_DELETE = r"""set -u
cd {root} 2> /dev/null || exit 0
here=$(pwd -P)
held() {{ [ -e "$1" ] && ! flock --nonblock --shared "$1" true; }}
if held jobs/{name}/{rank}/lock; then
  echo 'it runs: stop it first' >&2
  exit 2
fi
# ROOT may be somebody's own folder, with other jobs, code: what submit, create made is known by its parts.
[ ! -d jobs/{name}/{rank}/work ] || rm -rf jobs/{name}/{rank}
rmdir jobs/{name} 2> /dev/null
for lock in jobs/*/*/lock; do
  if held "$lock"; then
    echo "$lock is held: code stays"
    exit 0
  fi
done
for one in code/*-[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]; do
  for part in "$one"/lock "$one"/bundle.*; do
    [ ! -e "$part" ] || rm -rf "$one" 2> /dev/null
  done
done
rmdir code jobs 2> /dev/null
cd / && rmdir "$here" 2> /dev/null
exit 0
"""
