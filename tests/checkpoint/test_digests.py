"""Every change to a file is seen, no other is."""

import json
import os
import random
import shutil
import threading

import pytest

from llamax.checkpoint import digests


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / '7'
  (root / 'state/d').mkdir(parents=True)
  for i, size in enumerate((0, 1, 100, 70_000, 3 << 20)):
    (root / f'state/d/part{i}').write_bytes(random.Random(i).randbytes(size))
  (root / 'commit').write_text('done')
  return root


def test_the_manifest_is_that_of_an_independent_hash(folder, monkeypatch):
  import xxhash

  monkeypatch.setattr(digests, '_PIECE', 40_000)  # so that a file has several
  manifest = digests.write(folder)
  assert json.loads((folder / digests.MANIFEST).read_text()) == manifest
  assert set(manifest['files']) == {'commit', *(f'state/d/part{i}' for i in range(5))}
  for name, (size, digest) in manifest['files'].items():
    data = (folder / name).read_bytes()
    pieces = [xxhash.xxh3_128_digest(data[at : at + 40_000]) for at in range(0, max(len(data), 1), 40_000)]
    assert size == len(data) and digest == xxhash.xxh3_128_hexdigest(b''.join(pieces))
  assert digests.verify(folder) == [] and digests.size(folder) == 4 + 1 + 100 + 70_000 + (3 << 20)


def test_each_flipped_bit_is_found(folder):
  digests.write(folder)
  rng = random.Random(0)
  files = [path for path in folder.rglob('*') if path.is_file() and path.stat().st_size]
  for _ in range(200):
    path = rng.choice(files)
    good = path.read_bytes()
    at, bit = rng.randrange(len(good)), rng.randrange(8)
    path.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
    found = [damage.file for damage in digests.verify(folder)]
    if path.name == digests.MANIFEST and not found:
      # A blank that became another blank changes nothing.
      assert json.loads(path.read_bytes()) == json.loads(good)
    else:
      assert found in ([str(path.relative_to(folder))], [digests.MANIFEST])
    path.write_bytes(good)
  assert digests.verify(folder) == []


@pytest.mark.parametrize(
  'text', ['', '[]', 'null', '{', '{"files": {}}', '{"format":1,"algorithm":null,"files":3}']
)
def test_a_broken_manifest_is_damage(folder, text):
  digests.write(folder)
  (folder / digests.MANIFEST).write_text(text)
  assert [damage.file for damage in digests.verify(folder)] == [digests.MANIFEST]


def test_files_come_and_go(folder, tmp_path):
  digests.write(folder)
  (folder / 'state/more').write_text('not ours')
  assert digests.verify(folder) == [], 'what was added changes nothing of what was written'
  (folder / 'state/d/part3').write_bytes(b'x')
  (folder / 'commit').unlink()
  assert [str(d) for d in digests.verify(folder)] == [
    'commit is missing',
    'state/d/part3 has 1 bytes; 70,000 were written',
  ]
  shutil.rmtree(folder)
  assert [str(d) for d in digests.verify(folder)] == ['digests.json is missing']


def test_sizes_alone(folder):
  digests.write(folder, hashed=False)
  (folder / 'commit').write_text('Done')
  assert digests.verify(folder) == []
  (folder / 'commit').write_text('')
  assert [d.file for d in digests.verify(folder)] == ['commit']


@pytest.mark.parametrize('name', ['state/d/part0', 'state/d/part3', digests.MANIFEST])
def test_nothing_waits_for_a_pipe(folder, name):
  digests.write(folder)
  (folder / name).unlink()
  os.mkfifo(folder / name)
  try:
    found = []
    reader = threading.Thread(target=lambda: found.extend(digests.verify(folder)), daemon=True)
    reader.start()
    reader.join(5)
    assert [damage.file for damage in found] == [name] and 'is no regular file' in str(found[0])
  finally:
    if not found:
      os.close(os.open(folder / name, os.O_RDWR | os.O_NONBLOCK))  # Lets the reader go.
  (folder / name).unlink()
  (folder / name).mkdir()
  assert 'is no regular file' in str(digests.verify(folder)[0])


def test_a_file_of_another_size_is_not_read(folder):
  digests.write(folder)
  with open(folder / 'state/d/part4', 'ab') as file:
    file.write(b'x')
  read = []
  assert len(digests.verify(folder, progress=read.append)) == 1
  assert sum(read) == 4 + 1 + 100 + 70_000
