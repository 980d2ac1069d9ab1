"""Versions that do not fit each other are found in the words of the libraries themselves."""

import sys
from pathlib import Path

import pytest

from llamax.launch.checkup import versions
from llamax.launch.checkup.finding import FAIL, OK, WARN

JAX = (
  'jaxlib<=0.10.2,>=0.10.1',
  'libtpu==0.0.42.*; extra == "tpu"',
  'jax-cuda12-plugin<=0.10.2; extra == "cuda12"',
)


@pytest.fixture
def site(tmp_path):
  """({name: (version, requirements)}) -> what is installed there."""

  def make(**packages):
    for name, (version, needs) in packages.items():
      folder = tmp_path / f'{name}-{version}.dist-info'
      folder.mkdir()
      lines = [f'Name: {name}', f'Version: {version}', *(f'Requires-Dist: {need}' for need in needs)]
      (folder / 'METADATA').write_text('Metadata-Version: 2.1\n' + '\n'.join(lines) + '\n')
    return versions.installed([str(tmp_path)])

  return make


@pytest.mark.parametrize(
  ('packages', 'problem'),
  [
    ({'jaxlib': ('0.10.2', ())}, None),
    ({'jaxlib': ('0.9.0', ())}, 'jaxlib 0.9.0 is here, jax 0.10.2 wants jaxlib<=0.10.2,>=0.10.1'),
    ({'libtpu': ('0.0.42.1', ())}, None),
    ({'libtpu': ('0.0.50', ())}, 'libtpu 0.0.50 is here, jax 0.10.2 wants libtpu==0.0.42.*'),
    ({'jax_cuda12_plugin': ('0.11.0', ())}, 'jax-cuda12-plugin 0.11.0 is here'),
    ({'flax': ('0.12.8', ('jax>=0.11',))}, 'jax 0.10.2 is here, flax 0.12.8 wants jax>=0.11'),
    ({'flax': ('0.12.8', ('nonsense >< 1', 'elsewhere>=9', 'jax>=9; python_version < "3"'))}, None),
  ],
)
def test_fit(site, packages, problem):
  found = versions.fit(site(jax=('0.10.2', JAX), **packages))
  assert [f.verdict for f in found] == [FAIL if problem else OK]
  assert problem is None or problem in found[0].text


def test_here_all_fits():
  found = versions.installed()
  assert [f.verdict for f in versions.fit(found)] == [OK]
  assert {'jax', 'jaxlib', 'flax'} <= set(versions.examine(found, None)[2].value)


def test_what_is_missing(site):
  found = versions.examine(site(jax=('0.10.2', ())), None)
  assert any(f.verdict == FAIL and 'jaxlib, flax' in f.text for f in found)


def test_constraints(site, tmp_path):
  file = tmp_path / 'py311.txt'
  file.write_text('# tested\njax==0.10.2\nflax==0.12.8\norbax_checkpoint==1.0\n')
  (same,) = versions.tested(site(jax=('0.10.2', ())), file)
  assert same.verdict == OK
  (other,) = versions.tested(site(flax=('0.13.0', ())), file)
  assert other.verdict == WARN and 'flax 0.13.0 (tested: 0.12.8)' in other.text
  assert versions.tested({}, tmp_path / 'absent')[0].verdict == FAIL


def test_python():
  assert [versions.python(v).verdict for v in ((3, 10, 1), (3, 11, 0), (3, 13, 2), (3, 14, 0))] == [
    FAIL,
    OK,
    OK,
    WARN,
  ]


def test_a_changed_source_changes_the_digest(tmp_path):
  (tmp_path / 'a.py').write_text('a = 1\n')
  first = versions.digest_of(tmp_path)
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/b.py').write_text('')  # in a wheel alone
  assert versions.digest_of(tmp_path) == first
  (tmp_path / 'a.py').write_text('a = 2\n')
  assert versions.digest_of(tmp_path) != first


def test_constraints_of_this_checkout():
  name = 'py{}{}.txt'.format(*sys.version_info[:2])
  file = Path(__file__).parents[3] / 'constraints' / name
  assert versions.constraints_of_checkout() == (file if file.is_file() else None)
