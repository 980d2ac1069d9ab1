"""The disk under a workdir: rights are tried out, file systems are named with what they cannot do."""

import errno
import os
from types import SimpleNamespace

import pytest

from llamax.core import storage
from llamax.launch.checkup import workdir
from llamax.launch.checkup.finding import FAIL, OK, WARN
from llamax.launch.checkup.tree import Tree


def mounts(tree, *lines):
  return tree({'/proc/self/mountinfo': '\n'.join(lines)})


ROOT = '1 0 254:0 / / rw - ext4 /dev/vda rw'


@pytest.mark.parametrize(
  ('path', 'lines', 'want'),
  [
    ('/mnt/runs/a', [ROOT], ('ext4', '/dev/vda')),
    ('/b/a', [ROOT, '2 1 0:5 / /b rw shared:1 - fuse.gcsfuse own rw,user_id=0'], ('fuse.gcsfuse', 'own')),
    ('/mnt/runs2', [ROOT, '2 1 0:5 / /mnt/runs rw - nfs4 host:/x rw'], ('ext4', '/dev/vda')),
    ('/my runs/a', [ROOT, r'2 1 0:5 / /my\040runs rw - nfs4 host:/x rw'], ('nfs4', 'host:/x')),
    ('/b/a', [ROOT, '2 1 0:5 / /b rw - ext4 /dev/vdb rw', '3 2 0:6 / /b rw - tmpfs t rw'], ('tmpfs', 't')),
    ('/tmp/a', [], ('unknown', '')),
  ],
)  # fmt: skip
def test_the_mount_of_a_path(tree, path, lines, want):
  assert workdir.mount_of(mounts(tree, *lines), path)[:2] == want


def test_a_bucket_is_named_with_its_limits(tree, tmp_path):
  fake = mounts(tree, ROOT, f'2 1 0:5 / {tmp_path} rw - fuse.gcsfuse my-bucket rw')
  kind, _, rights = workdir.examine(fake, str(tmp_path / 'run'))
  assert kind.verdict == WARN and 'fuse.gcsfuse my-bucket' in kind.text and 'hierarchical' in kind.text
  assert kind.value == ['fuse.gcsfuse', 'my-bucket'] and (rights.item, rights.verdict) == ('bucket', OK)


def test_a_good_disk_is_left_as_it_was(tmp_path):
  found = workdir.examine(Tree(), str(tmp_path / 'to/be/made'))
  assert [f.item for f in found] == ['workdir', 'room', 'rights']
  assert found[2].verdict == OK and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('code', 'todo'),
  [
    (errno.EACCES, 'this user'),
    (errno.EROFS, 'read-only'),
    (errno.ENOSPC, 'make room'),
  ],
)
@pytest.mark.parametrize(('call', 'doing'), [('fsync', 'fsync a file'), ('rename', 'rename a folder')])
def test_what_cannot_be_done_is_named(tmp_path, monkeypatch, call, doing, code, todo):
  def refuse(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(os, call, refuse)
  finding = workdir.examine(Tree(), str(tmp_path))[-1]
  assert finding.verdict == FAIL and doing in finding.text and todo in finding.todo
  monkeypatch.undo()
  assert list(tmp_path.iterdir()) == []


def test_gcsfuse_that_renames_no_folders(tree, tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.EMFILE, 'Too many open files')  # as it says it

  monkeypatch.setattr(storage, 'move', refuse)
  fake = mounts(tree, f'2 1 0:5 / {tmp_path} rw - fuse.gcsfuse b rw')
  assert '--rename-dir-limit' in workdir.examine(fake, str(tmp_path))[-1].todo


def test_an_address_is_no_folder():
  (finding,) = workdir.examine(Tree(), 'gs://bucket/run')
  assert finding.verdict == FAIL and 'gcsfuse' in finding.todo


def test_a_file_in_the_way(tmp_path):
  (tmp_path / 'file').write_text('')
  (finding,) = workdir.examine(Tree(), str(tmp_path / 'file' / 'run'))
  assert finding.verdict == FAIL and 'is no folder' in finding.text


@pytest.mark.parametrize(
  ('blocks', 'names', 'verdict'), [(100e9, 1e6, OK), (5e9, 1e6, WARN), (1e8, 1e6, FAIL), (100e9, 5, FAIL)]
)
def test_room(tmp_path, monkeypatch, blocks, names, verdict):
  free = SimpleNamespace(f_bavail=int(blocks), f_frsize=1, f_favail=int(names), f_files=10**7, f_blocks=10**9)
  monkeypatch.setattr(os, 'statvfs', lambda path: free)
  assert workdir._room(tmp_path).verdict == verdict


@pytest.mark.parametrize('why', ['rights', 'name'])
def test_a_folder_that_cannot_be_looked_at(tmp_path, why):
  folder = tmp_path / 'closed' / 'run'
  folder.mkdir(parents=True)
  if why == 'name':
    (finding,) = workdir.examine(Tree(), f'{folder}/{"x" * 300}')
    assert 'File name too long' in finding.text and finding.todo == 'a shorter name'
  else:
    folder.parent.chmod(0)
    own = os.geteuid()
    if own == 0:
      os.seteuid(65534)  # Root may look everywhere.
    try:
      (finding,) = workdir.examine(Tree(), str(folder / 'deep'))
    finally:
      os.seteuid(own)
      folder.parent.chmod(0o755)
    assert 'Permission denied' in finding.text and 'chmod the folder' in finding.todo
  assert finding.verdict == FAIL and f'cannot look at {folder}' in finding.text
