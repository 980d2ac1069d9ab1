"""The disk under a workdir: its room, its rights, what it cannot do."""

import errno
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from llamax.core import storage
from llamax.launch.checkup.finding import FAIL, OK, WARN, Finding
from llamax.launch.checkup.tree import Tree

_LOW, _TOO_LOW = 20e9, 1e9  # bytes free
_SLOW = 2.0  # seconds of one fsync


class Mount(NamedTuple):
  kind: str
  source: str
  options: str


# What the file systems that are not simply disks are like.
_BUCKETS = ('fuse.gcsfuse', 'gcsfuse', 'fuse.s3fs', 'fuse.mount-s3', 'fuse.rclone', 'fuse.goofys')
_BUCKET_LIMITS = (
  'a bucket: a folder is renamed file by file unless the bucket has hierarchical namespace (digests find a '
  'step that was cut short), an append writes the whole file again, an fsync waits for the upload'
)
_PASSING = {
  'tmpfs': 'in memory: gone after a reboot',
  'ramfs': 'in memory: gone after a reboot',
  'overlay': "this container's own: gone with it",
}


def mount_of(tree: Tree, path: Path) -> Mount:
  """The file system that `path` lies on, by the longest mount point above it; the last one mounted there."""
  best, found = -1, Mount('unknown', '', '')
  for line in (tree.read('/proc/self/mountinfo') or '').splitlines():
    left, dash, right = line.partition(' - ')
    words, kinds = left.split(' '), right.split(' ')
    if not dash or len(words) < 6 or len(kinds) < 3:
      continue
    point = words[4].encode().decode('unicode_escape')  # \040 is a space
    inside = point == '/' or str(path) == point or str(path).startswith(f'{point}/')
    if inside and len(point) >= best:
      best, found = len(point), Mount(kinds[0], kinds[1], kinds[2])
  return found


def examine(tree: Tree, workdir: str) -> list[Finding]:
  """Findings on the folder, or on the nearest one above that is there; what it writes it removes."""
  if '://' in workdir:
    todo = 'mount the bucket (gcsfuse BUCKET /mnt/runs), give the folder: --workdir=/mnt/runs/...'
    return [Finding('workdir', FAIL, f'{workdir} is an address, want a folder', todo)]
  folder = Path(os.path.abspath(os.path.expanduser(workdir)))
  try:
    return _examine(tree, folder)
  except OSError as error:
    text = f'cannot look at {folder}: {error.strerror or error}'
    return [Finding('workdir', FAIL, text, _mend(error, Mount('unknown', '', ''), 'look at'))]


def _examine(tree: Tree, folder: Path) -> list[Finding]:
  above = folder
  while not above.exists() and above != above.parent:
    above = above.parent
  if not above.is_dir():
    return [
      Finding('workdir', FAIL, f'{above} is no folder', 'move what is in the way, or give another workdir')
    ]
  mount = mount_of(tree, above.resolve())
  where = f'{folder}' + ('' if above == folder else f' (to be made in {above})')
  where += f' on {mount.kind}' + (f' {mount.source}' if mount.source not in ('', 'none', mount.kind) else '')
  shared = [mount.kind, mount.source if mount.kind in _BUCKETS or mount.kind.startswith('nfs') else '']
  findings = [_kind(mount, where, shared), _room(above)]
  return findings + _rights(above, mount)


def _kind(mount: Mount, where: str, shared: list[str]) -> Finding:
  if mount.kind in _BUCKETS:
    return Finding(
      'workdir', WARN, f'{where}: {_BUCKET_LIMITS}', 'see docs/faults.md, what was not run', shared
    )
  if mount.kind in _PASSING:
    todo = 'a folder on a disk that stays, for what should outlive this machine'
    return Finding('workdir', WARN, f'{where}: {_PASSING[mount.kind]}', todo, shared)
  return Finding('workdir', OK, where, value=shared)


def _room(folder: Path) -> Finding:
  free = os.statvfs(folder)
  room, names = free.f_bavail * free.f_frsize, free.f_favail
  text = f'{room / 1e9:,.1f} GB free'
  if free.f_files and names < 10_000:
    return Finding('room', FAIL, f'{text}, room for {names:,} files', 'delete files: an inode each')
  if free.f_blocks == 0:  # A file system that does not tell.
    return Finding('room', OK, 'the file system does not tell')
  if room < _TOO_LOW:
    return Finding('room', FAIL, text, 'make room: a checkpoint takes 12 bytes per parameter')
  if room < _LOW:
    return Finding('room', WARN, text, 'a checkpoint takes 12 bytes per parameter, several are kept')
  return Finding('room', OK, text)


def _rights(folder: Path, mount: Mount) -> list[Finding]:
  """Does what a checkpoint does: writes, reads, syncs, renames a folder with a file in it, deletes."""
  item = 'bucket' if mount.kind in _BUCKETS else 'rights'
  own = folder / f'.llamax-doctor-{uuid.uuid4().hex}'
  doing, slowest = 'make a folder in', 0.0
  try:
    own.mkdir()
    doing = 'write a file in'
    (own / 'a').mkdir()
    content = os.urandom(1 << 16)
    with open(own / 'a' / 'file', 'wb') as file:
      file.write(content)
      file.flush()
      doing, start = 'fsync a file in', time.monotonic()
      os.fsync(file.fileno())
      slowest = time.monotonic() - start
    doing = 'read a file back from'
    if (own / 'a' / 'file').read_bytes() != content:
      raise OSError(errno.EIO, 'it has other bytes than were written')
    doing = 'rename a folder with files in'
    storage.move(own / 'a', own / 'b')
    doing = 'replace a file in'
    storage.write_json(own / 'b' / 'file', {'written': 'by llamax doctor'})
    doing = 'make a file that must not be there in'
    os.close(os.open(own / 'once', os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    doing = 'delete a file in'
    (own / 'once').unlink()
    shutil.rmtree(own)
  except OSError as error:
    storage.remove_tree(own)
    return [
      Finding(item, FAIL, f'cannot {doing} {folder}: {error.strerror or error}', _mend(error, mount, doing))
    ]
  text = f'write, fsync ({slowest * 1e3:.0f} ms), read, rename, delete'
  if slowest > _SLOW:
    return [Finding(item, WARN, text, 'each small file of the ledger, the lease waits so long: a faster disk')]
  return [Finding(item, OK, text)]


def _mend(error: OSError, mount: Mount, doing: str) -> str:
  if 'gcsfuse' in mount.kind and doing.startswith('rename a folder'):
    return 'mount with --rename-dir-limit=200000, or take a bucket with hierarchical namespace'
  if 'gcsfuse' in mount.kind:
    return (
      'the service account of this machine needs roles/storage.objectUser on the bucket (and the VM the scope '
      'cloud-platform); mount with -o rw'
    )
  if error.errno == errno.EROFS:
    return 'the disk is mounted read-only: mount -o remount,rw, or another folder'
  if error.errno in (errno.ENOSPC, errno.EDQUOT):
    return 'make room, or ask for a larger quota'
  if error.errno in (errno.EACCES, errno.EPERM):
    return f'this user ({os.getuid()}) may not: chown or chmod the folder, or give another one'
  if error.errno == errno.ENAMETOOLONG:
    return 'a shorter name'
  if error.errno == errno.ESTALE:
    return 'its server has lost it: unmount, mount it again, or give another folder'
  return 'mend the disk, or give another folder'
