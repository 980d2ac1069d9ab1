"""Keeps a command running on the machine it is started on, after whoever started it has gone.

python -m llamax.launch.worker start FOLDER -- COMMAND ...   one in a folder, with this environment
python -m llamax.launch.worker status FOLDER                 a line of JSON
python -m llamax.launch.worker logs FOLDER [--offset N] [--no_follow]
python -m llamax.launch.worker stop FOLDER [--wait SECONDS]
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llamax
from llamax.core import exits
from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.core.storage import write_json

LOG, STATE, END, LOCK = 'output.log', 'started.json', 'ended.json', 'lock'
PREVIOUS = 'previous.log'  # of the start before
CODE = 'LLAMAX_CODE'  # variable with the version of the code as its launcher knows it (launch/code.py)
_STEP = 0.2  # seconds between two looks
_PATIENCE = 1.0  # with who asks for the status, which takes an instant


def start(folder: Path, command: Sequence[str]) -> int:
  """Starts the command with its output in FOLDER/output.log; returns its keeper's process id.

  The keeper holds a lock on FOLDER/lock, as does the guard that outlives it until the command is dead: that
  says whether the job runs, whatever process ids come to mean. SIGTERM to the keeper goes on to the command.

  Raises:
    UserError: it runs already; the folder cannot be written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
  except OSError as error:
    raise UserError(f'{folder} cannot be written: {error.strerror}') from None
  if not _take(lock, fcntl.LOCK_EX, _PATIENCE):
    raise UserError(f'{folder}: its job runs already ({in_words(status(folder))}); stop it first, or follow it')
  (folder / END).unlink(missing_ok=True)
  with contextlib.suppress(FileNotFoundError):
    os.replace(folder / LOG, folder / PREVIOUS)
  read, write = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  keeper = os.fork()
  if keeper:
    os.close(write)
    os.close(lock)
    os.waitpid(keeper, 0)
    told = os.read(read, 8)
    os.close(read)
    if len(told) < 8:
      raise UserError(f'{folder}: the job could not be started; see {folder / LOG}')
    return int.from_bytes(told)
  # From here on a process of its own: nothing may return to the caller's code.
  try:
    os.close(read)
    os.setsid()
    if os.fork() == 0:
      _keep(folder, command, lock, write)
  finally:
    os._exit(0)


def _keep(folder: Path, command: Sequence[str], lock: int, told: int) -> None:
  from llamax.train.supervise import once

  null, log = (
    os.open(os.devnull, os.O_RDONLY),
    os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
  )
  for handle, number in ((null, 0), (log, 1), (log, 2)):
    os.dup2(handle, number)
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  code = 1
  try:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    facts = {
      'pid': os.getpid(),
      'host': socket.gethostname(),
      'started': now,
      'version': os.environ.get(CODE, llamax.__version__),
      'command': list(command),
    }
    write_json(folder / STATE, facts)
    os.write(told, os.getpid().to_bytes(8))
    os.close(told)
    code = once(command)
  except UserError as error:
    tell(f'llamax launch: {error}')
    code = 2
  finally:
    write_json(folder / END, {'code': code})
    os._exit(code)


def status(folder: Path) -> dict[str, Any]:
  """{'state': 'none' | 'running' | 'ended' | 'lost'} with what is known: pid, host, started, command, code.

  version: of the code it runs. 'lost': it ended without a word, as in a power cut.
  """
  with contextlib.suppress(OSError):
    lock = os.open(folder / LOCK, os.O_RDWR)
    try:
      running = not _take(lock, fcntl.LOCK_SH, 0.0)
    finally:
      os.close(lock)
    facts = _read(folder / STATE)
    if running:
      return {'state': 'running', **facts}
    end = _read(folder / END)
    return {'state': 'ended' if end else 'lost', **facts, **end}
  return {'state': 'none'}


def in_words(facts: dict[str, Any]) -> str:
  """A status as a line."""
  from llamax.train.supervise import in_words as code_in_words

  where = f'process {facts.get("pid")} on {facts.get("host")}, since {facts.get("started")}'
  return {
    'none': 'never started',
    'running': f'running: {where}',
    'lost': f'gone without a word: {where}',
  }.get(facts['state']) or f'ended: {code_in_words(facts["code"])}'


def follow(folder: Path, offset: int = 0, *, wait: bool = True) -> Iterator[bytes]:
  """The log from byte `offset` on, as it grows, until the job has ended; b'' now and then."""
  while True:
    running = wait and status(folder)['state'] == 'running'  # Before the last look.
    with contextlib.suppress(FileNotFoundError), open(folder / LOG, 'rb') as log:
      log.seek(offset)
      while block := log.read(1 << 16):
        offset += len(block)
        yield block
    if not running:
      return
    yield b''
    time.sleep(_STEP)


def stop(folder: Path, seconds: float) -> bool:
  """SIGTERM, then, after `seconds`, SIGTERM again, which kills; whether the job has ended."""
  for limit in (seconds, 15.0):
    facts = status(folder)
    if facts['state'] != 'running':
      return True
    with contextlib.suppress(ProcessLookupError, KeyError):
      os.kill(facts['pid'], signal.SIGTERM)
    end = time.monotonic() + limit
    while time.monotonic() < end:
      if status(folder)['state'] != 'running':
        return True
      time.sleep(_STEP)
  return False


def _take(lock: int, kind: int, seconds: float) -> bool:
  end = time.monotonic() + seconds
  while True:
    try:
      fcntl.flock(lock, kind | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      if time.monotonic() >= end:
        return False
      time.sleep(_STEP / 4)


def _read(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}


def show(blocks: Iterator[bytes]) -> None:
  """Writes to standard output until its reader has gone, which an ssh whose other end broke off looks like."""
  reader = select.poll()
  reader.register(sys.stdout.fileno(), 0)
  for block in blocks:
    if reader.poll(0):
      return
    sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def main(argv: Sequence[str] | None = None) -> int:
  words = list(sys.argv[1:] if argv is None else argv)
  command: list[str] = []
  if '--' in words:
    words, command = words[: words.index('--')], words[words.index('--') + 1 :]
  parser = argparse.ArgumentParser(prog='llamax.launch.worker', usage=__doc__, allow_abbrev=False)
  parser.add_argument('verb', choices=('start', 'status', 'logs', 'stop'))
  parser.add_argument('folder', type=Path)
  parser.add_argument('--offset', type=int, default=0, help='byte of the log to begin with')
  parser.add_argument('--no_follow', action='store_true')
  parser.add_argument('--wait', type=float, default=120.0, help='seconds until stop means it')
  args = parser.parse_args(words)
  try:
    return _do(args, command)
  except UserError as error:
    tell(f'llamax launch: {error}')
    return exits.MISTAKE


def _do(args: argparse.Namespace, command: Sequence[str]) -> int:
  if args.verb == 'start':
    if not command:
      raise UserError('no command to start; it stands after --')
    start(args.folder, command)
  elif args.verb == 'logs':
    show(follow(args.folder, args.offset, wait=not args.no_follow))
  elif args.verb == 'stop' and not stop(args.folder, args.wait):
    raise UserError(f'{args.folder}: the job does not end: {in_words(status(args.folder))}')
  if args.verb != 'logs':
    print(json.dumps(status(args.folder)), flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(main())
