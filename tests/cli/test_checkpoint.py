"""llamax checkpoint on run directories made by hand: no device, no jax."""

import io
import json
import os
import subprocess
import sys

import pytest

from llamax.checkpoint import digests
from llamax.checkpoint.lease import acquire
from llamax.cli.checkpoint import size_of
from llamax.cli.main import main
from llamax.core.config import CheckpointConfig


def make_step(folder, name, settings, loss=None, hashed=True, size=1000):
  path = folder / name
  (path / 'state/d').mkdir(parents=True)
  (path / 'meta').mkdir()
  (path / 'state/d/0').write_bytes(os.urandom(size))
  (path / 'state/manifest').write_bytes(b'x' * 10)
  meta = {
    'leaves': {},
    'step': int(name),
    'config': {'checkpoint': settings, 'mesh': {'data': 2, 'fsdp': 4}, 'train': {'seed': int(name)}},
  }
  if loss is not None:
    meta['validation_loss'] = loss
  (path / 'meta/metadata').write_text(json.dumps(meta))
  digests.write(path, hashed)


@pytest.fixture
def run(tiny_config, tmp_path):
  """A run with checkpoints 5, 10, 20, and one put aside."""
  kept = {'checkpoint.keep_last': 1, 'checkpoint.keep_best': 1, 'checkpoint.keep_every': 5}
  settings = tiny_config(**kept).to_mapping()['checkpoint']
  assert CheckpointConfig(**settings).keep_every == 5
  folder = tmp_path / 'run/checkpoints'
  for name, loss in (('5', 3.5), ('10', 1.25), ('20', 2.0), ('15', None)):
    make_step(folder, name, settings, loss)
  os.rename(folder / '15', folder / 'damaged-15')
  (folder / 'writer-3/25').mkdir(parents=True)
  (folder / 'trash').mkdir()
  (folder / 'protected.json').write_text('{"5": "NaN at step 7"}')
  return tmp_path / 'run'


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def rows(text):
  """{name: its line} of a table."""
  return {line.split()[0]: line for line in text.splitlines()[2:]}


def test_ls_shows_each_checkpoint(run, capsys):
  assert main(['checkpoint', 'ls', str(run)]) == 0
  found = rows(capsys.readouterr().out)
  assert list(found) == ['5', '10', '20', 'damaged-15']
  for told in (
    '1.25',
    'data=2 fsdp=4',
    'each 5, best',
    'whole',
    '3',
    digests.read(run / 'checkpoints/10')['digest'][:12],
  ):
    assert told in found['10']
  assert (
    'latest' in found['20'] and 'each 5, before trouble' in found['5'] and 'put aside' in found['damaged-15']
  )


def test_ls_of_some_as_json(run, capsys):
  assert main(['checkpoint', 'ls', str(run), '20', 'damaged-15', '--json']) == 0
  step, aside = (json.loads(line) for line in capsys.readouterr().out.splitlines())
  manifest = digests.read(run / 'checkpoints/20')
  size = sum(
    file.stat().st_size
    for file in (run / 'checkpoints/20').rglob('*')
    if file.name != 'digests.json' and file.is_file()
  )
  assert (step['name'], step['step'], step['loss'], step['files'], step['bytes']) == ('20', 20, 2.0, 3, size)
  assert (step['digest'], step['mesh'], step['state']) == (manifest['digest'], {'data': 2, 'fsdp': 4}, 'whole')
  assert step['kept'] == ['latest', 'each 5'] and step['written'].endswith('+00:00')
  assert (aside['name'], aside['step'], aside['state'], aside['kept']) == ('damaged-15', 15, 'put aside', [])


@pytest.mark.parametrize(
  ('harm', 'told'),
  [
    (lambda step: (step / 'state/d/0').unlink(), 'state/d/0 is missing'),
    (lambda step: os.truncate(step / 'state/d/0', 7), 'state/d/0 has 7 bytes; 1,000 were written'),
    (lambda step: (step / 'digests.json').unlink(), 'digests.json is missing'),
    (lambda step: (step / 'digests.json').write_text('{'), 'digests.json cannot be read'),
  ],
)
def test_ls_tells_damage_that_shows_without_reading(run, capsys, harm, told):
  harm(run / 'checkpoints/10')
  assert main(['checkpoint', 'ls', str(run)]) == 1
  found = rows(capsys.readouterr().out)
  assert told in found['10'] and 'damaged' in found['10'] and found['5'].endswith('whole')
  assert main(['checkpoint', 'ls', str(run), '5', '20']) == 0


def test_ls_survives_meta_data_that_cannot_be_read(run, capsys):
  (run / 'checkpoints/20/meta/metadata').write_text('{')
  assert main(['checkpoint', 'ls', str(run)]) == 1
  assert 'damaged: meta/metadata has 1 bytes' in rows(capsys.readouterr().out)['20']


def test_ls_prints_a_config(run, capsys):
  for words, seed in ((['5'], 5), ([], 20), (['damaged-15'], 15)):
    assert main(['checkpoint', 'ls', str(run), *words, '--config']) == 0
    assert json.loads(capsys.readouterr().out)['train'] == {'seed': seed}


def test_verify_of_whole_checkpoints(run, capsys):
  assert main(['checkpoint', 'verify', str(run)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(': ')[0] for line in lines] == ['step 5', 'step 10', 'step 20']
  assert all('whole' in line and 'GB/s' in line and '1.' in line for line in lines)


def test_verify_names_every_damaged_file(run, capsys):
  flip(run / 'checkpoints/10/state/d/0')
  (run / 'checkpoints/10/state/manifest').unlink()
  flip(run / 'checkpoints/20/meta/metadata')
  assert main(['checkpoint', 'verify', str(run)]) == 1
  said = capsys.readouterr().out
  assert 'step 5: whole' in said and 'step 10: DAMAGED, 2 files' in said and 'step 20: DAMAGED, 1 files' in said
  for told in ('  state/d/0 has digest', '  state/manifest is missing', '  meta/metadata has digest', '2 of 3'):
    assert told in said
  assert main(['checkpoint', 'verify', str(run), '5']) == 0
  capsys.readouterr()
  assert main(['checkpoint', 'verify', str(run), '10', '--json']) == 1
  found = json.loads(capsys.readouterr().out)
  assert not found['whole'] and {damage['file'] for damage in found['damage']} == {
    'state/d/0',
    'state/manifest',
  }


def test_verify_says_when_there_are_no_digests(run, capsys):
  make_step(run / 'checkpoints', '30', {}, hashed=False)
  assert main(['checkpoint', 'verify', str(run), '30']) == 0
  assert 'saved without digests' in capsys.readouterr().out


def test_verify_shows_how_far_it_is_on_a_terminal(run, capsys, monkeypatch):
  make_step(run / 'checkpoints', '30', {}, size=30_000_000)
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  clock = iter(range(10_000))
  monkeypatch.setattr('time.monotonic', lambda: float(next(clock)))
  assert main(['checkpoint', 'verify', str(run), '30']) == 0
  shown = capsys.readouterr().err.split('\r')
  assert 'step 30: 30 MB' in capsys.readouterr().out + ''.join(shown)


def test_rm_removes_what_was_named_alone(run, capsys):
  assert main(['checkpoint', 'rm', str(run), '5', 'damaged-15', '--yes']) == 0
  said = capsys.readouterr().out
  assert '10, 20 stays' in said and 'deleted 5' in said and 'deleted damaged-15' in said
  listed = sorted(os.listdir(run / 'checkpoints'))
  assert [name for name in listed if name[0].isdigit() or name.startswith('damaged')] == ['10', '20']
  assert not [name for name in os.listdir(run / 'checkpoints/trash') if not name.startswith('writer-')]


def test_rm_renames_before_it_deletes(run, monkeypatch):
  monkeypatch.setattr('llamax.core.storage.remove_tree', lambda folder: None)  # Killed here.
  assert main(['checkpoint', 'rm', str(run), '10', '--yes']) == 0
  (gone,) = [name for name in os.listdir(run / 'checkpoints/trash') if name.startswith('10-')]
  assert (run / 'checkpoints/trash' / gone / 'state/d/0').exists() and not (run / 'checkpoints/10').exists()


@pytest.mark.parametrize(('answer', 'stays'), [('y', False), ('yes', False), ('', True), ('n', True)])
def test_rm_asks(run, monkeypatch, answer, stays):
  monkeypatch.setattr('builtins.input', lambda question: answer)
  assert main(['checkpoint', 'rm', str(run), '5']) == 0
  assert (run / 'checkpoints/5').exists() == stays


def test_rm_refuses_while_a_run_is_there(run, capsys):
  with acquire(run, 60):
    assert main(['checkpoint', 'rm', str(run), '5', '--yes']) == 2
  assert f'process {os.getpid()}' in capsys.readouterr().err and (run / 'checkpoints/5').exists()


def test_rm_holds_the_lease_while_it_asks(run, monkeypatch, capsys):
  def ask(question):
    assert main(['checkpoint', 'rm', str(run), '10', '--yes']) == 2
    return 'y'

  monkeypatch.setattr('builtins.input', ask)
  assert main(['checkpoint', 'rm', str(run), '5']) == 0
  assert (run / 'checkpoints/10').exists() and not (run / 'checkpoints/5').exists()


@pytest.mark.parametrize(
  ('words', 'told'),
  [
    (('ls', '7'), "no checkpoint '7'; it has 5, 10, 20, damaged-15"),
    (('verify', 'writer-3'), "no checkpoint 'writer-3'"),
    (('rm', 'trash', '--yes'), "no checkpoint 'trash'"),
    (('rm', '../run', '--yes'), "no checkpoint '../run'"),
    (('rm', '--yes'), 'which ones?'),
    (('rm', '5'), 'give --yes'),
  ],
)
def test_mistakes(run, capsys, monkeypatch, words, told):
  monkeypatch.setattr(sys, 'stdin', io.StringIO())
  assert main(['checkpoint', words[0], str(run), *words[1:]]) == 2
  assert told in capsys.readouterr().err
  assert sorted(os.listdir(run / 'checkpoints'))[:3] == ['10', '20', '5']


def test_a_folder_that_is_no_run(tmp_path, capsys):
  assert main(['checkpoint', 'ls', str(tmp_path)]) == 2
  assert 'is not the folder of a run' in capsys.readouterr().err
  (tmp_path / 'checkpoints').mkdir()
  for action in ('ls', 'verify'):
    assert main(['checkpoint', action, str(tmp_path)]) == 0
    assert 'has no checkpoints' in capsys.readouterr().out
  assert main(['checkpoint', 'ls', str(tmp_path), '--config']) == 2


def test_it_needs_no_device(run):
  code = (
    'import sys\nfrom llamax.cli.main import main\n'
    f'for action in ("ls", "verify"): assert main(["checkpoint", action, {str(run)!r}]) == 0\n'
    f'assert main(["checkpoint", "rm", {str(run)!r}, "5", "--yes"]) == 0\n'
    'assert not [m for m in ("jax", "orbax", "numpy") if m in sys.modules]'
  )
  subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)


def test_sizes():
  assert [size_of(n) for n in (0, 999, 1000, 999_499, 999_500, 4_200_000_000)] == [
    '0 B', '999 B', '1 kB', '999 kB', '1 MB', '4.2 GB'
  ]  # fmt: skip


def test_verify_beside_a_training_forgives_what_retention_removes(run, capsys, monkeypatch):
  verify = digests.verify

  def remove_then_verify(path, **how):
    if path.name == '10':
      os.rename(path, path.parent / 'trash/10-1')
    return verify(path, **how)

  monkeypatch.setattr(digests, 'verify', remove_then_verify)
  assert main(['checkpoint', 'verify', str(run)]) == 0
  said = capsys.readouterr().out
  assert 'step 10: removed meanwhile' in said and 'DAMAGED' not in said and 'step 20: whole' in said
