"""Which Python, llamax, libraries are here, whether they fit each other."""

import hashlib
import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution
from pathlib import Path

import llamax
from llamax.launch.checkup.finding import FAIL, OK, WARN, Finding

TESTED = ((3, 11), (3, 12), (3, 13))
NEEDED = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorflow-datasets', 'numpy')
# Shown, compared between workers when they are there.
BESIDE = (
  'libtpu',
  'jax-cuda12-plugin',
  'jax-cuda12-pjrt',
  'jax-cuda13-plugin',
  'jax-cuda13-pjrt',
  'array-record',
  'ml-dtypes',
  'sentencepiece',
  'tensorstore',
  'tokenizers',
)
# What comes with an extra has to fit as that extra says: a libtpu of another jax is installed without a word.
EXTRAS = {'libtpu': 'tpu', 'jax-cuda12-plugin': 'cuda12', 'jax-cuda13-plugin': 'cuda13'}


def installed(path: Sequence[str] | None = None) -> dict[str, Distribution]:
  """Name -> what is installed under it; the first of two on the way, which is the one that Python imports."""
  found: dict[str, Distribution] = {}
  for distribution in importlib.metadata.distributions(path=list(sys.path if path is None else path)):
    name = distribution.metadata['Name']
    if name:  # None: the leftovers of a broken removal.
      found.setdefault(_plain(name), distribution)
  return found


def examine(found: Mapping[str, Distribution], constraints: Path | None) -> list[Finding]:
  """Findings on Python, llamax, the libraries. constraints: name==version of those tested together."""
  versions = {name: found[name].version for name in (*NEEDED, *BESIDE) if name in found}
  shown = ', '.join(f'{name} {version}' for name, version in versions.items())
  findings = [python(sys.version_info[:3]), source(), Finding('packages', OK, shown or 'none', value=versions)]
  missing = [name for name in NEEDED if name not in found]
  if missing:
    findings.append(
      Finding(
        'packages', FAIL, f'{", ".join(missing)}: not installed', f'{sys.executable} -m pip install llamax'
      )
    )
  return findings + fit(found) + tested(found, constraints)


def python(version: tuple[int, int, int]) -> Finding:
  text = '.'.join(map(str, version)) + f' ({sys.executable})'
  value = list(version[:2])
  if version[:2] in TESTED:
    return Finding('python', OK, text, value=value)
  verdict, verb = (FAIL, 'needs') if version[:2] < TESTED[0] else (WARN, 'was tested with')
  return Finding('python', verdict, text, f'llamax {verb} Python 3.11, 3.12, 3.13: make a venv of one', value)


def source() -> Finding:
  """llamax itself: its version with a digest of its sources, which tells two checkouts of one version apart."""
  folder = Path(llamax.__file__).parent
  digest = digest_of(folder)
  text = f'{llamax.__version__}, sources {digest[:12]} ({folder})'
  return Finding('llamax', OK, text, value=[llamax.__version__, digest])


def digest_of(folder: Path) -> str:
  """SHA-256 over the names, bytes of all Python files under `folder`."""
  total = hashlib.sha256()
  for file in sorted(folder.rglob('*.py')):
    name = file.relative_to(folder).as_posix()
    if name.startswith('configs/'):  # A wheel has them inside, a checkout beside.
      continue
    total.update(f'{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n'.encode())
  return total.hexdigest()


def fit(found: Mapping[str, Distribution]) -> list[Finding]:
  """Whether what each library asks of the others is what is here: pip check for those that make a run."""
  try:
    from packaging.markers import UndefinedEnvironmentName
    from packaging.requirements import InvalidRequirement, Requirement
  except ImportError:
    return [Finding('fit', WARN, 'not looked at: packaging is not installed', 'pip install packaging')]
  watched = {name for name in (*NEEDED, *BESIDE) if name in found}
  problems: dict[str, None] = {}
  extras = ['', *{extra for name, extra in EXTRAS.items() if name in found}]
  for name in sorted(watched):
    for line in found[name].requires or []:
      try:
        want = Requirement(line)
        applies = [extra for extra in extras if want.marker is None or want.marker.evaluate({'extra': extra})]
      except (InvalidRequirement, UndefinedEnvironmentName):
        continue
      other = _plain(want.name)
      if not applies or other not in watched:
        continue
      if not want.specifier.contains(found[other].version, prereleases=True):
        needs = f'{name} {found[name].version} wants {want.name}{want.specifier}'
        problems[f'{other} {found[other].version} is here, {needs}'] = None
  if problems:
    todo = 'pip install -c constraints/pyXYZ.txt llamax (with [tpu] or [cuda]) in a new venv'
    return [Finding('fit', FAIL, problem, todo) for problem in problems]
  return [Finding('fit', OK, 'the libraries ask for no other versions of each other')]


def tested(found: Mapping[str, Distribution], constraints: Path | None) -> list[Finding]:
  """How the versions differ from those that were tested together."""
  if constraints is None:
    return []
  try:
    text = constraints.read_text()
  except (OSError, UnicodeDecodeError) as error:
    return [Finding('constraints', FAIL, f'{constraints}: {error}', 'give the file that came with llamax')]
  wanted = {_plain(name): version for name, version in re.findall(r'(?m)^([\w.-]+)==([^\s;#]+)', text)}
  other = [
    f'{name} {found[name].version} (tested: {wanted[name]})'
    for name in (*NEEDED, *BESIDE)
    if name in found and name in wanted and found[name].version != wanted[name]
  ]
  if other:
    todo = f'works, or does not: nobody has tried; pip install -c {constraints} llamax takes those tested'
    return [Finding('constraints', WARN, ', '.join(other), todo)]
  return [Finding('constraints', OK, f'the versions of {constraints}')]


def constraints_of_checkout() -> Path | None:
  """The file of this Python in the checkout that llamax is run from; None where it was installed."""
  file = Path(llamax.__file__).parents[1] / 'constraints' / 'py{}{}.txt'.format(*sys.version_info[:2])
  return file if file.is_file() else None


def _plain(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name).lower()
