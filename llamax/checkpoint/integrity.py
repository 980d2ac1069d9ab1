"""Whether a run may go on in a folder: its config, tokenizer, datasets against those found there."""

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llamax.core.config import flatten
from llamax.core.errors import UserError
from llamax.core.storage import write_json

CONFIG_FILE = 'config.json'

# Keys that a run may change when it goes on: none of them changes what is learnt from which tokens, in exact
# arithmetic. All others are refused, also those that "only" act from here on (optim.*): half a run at another
# learning rate is a run that no config describes.
RESUMABLE = (
  'train.num_steps',  # a longer or shorter run; decaying schedules take the new end
  'train.grad_accum',  # the same batch in other pieces
  'eval.*',
  'sample.*',
  'checkpoint.*',
  'log.*',
  'guard.*',  # what it did is in the ledger
  'watchdog.*',
  'mesh.*',  # with `compute.*`: other rounding, the same function
  'compute.attention',
  'compute.remat',
  'compute.scan_layers',
  'compute.loss_chunks',
  'compute.splash_block',
  'compute.compilation_cache',
  'data.read_threads',
  'data.prefetch_rows',
  'data.verify_digests',
  'data.cache_dir',
  'data.tfds_data_dir',
)
# Paths: what lies there is compared by fingerprint, so it may move.
BY_FINGERPRINT = ('data.sources', 'data.tokenizer')

_ABSENT = '(not recorded)'


class Difference(NamedTuple):
  key: str
  saved: Any
  current: Any
  resumable: bool

  def __str__(self) -> str:
    return f'{self.key}: saved {_shown(self.saved)}, now {_shown(self.current)}'


def compare_configs(
  saved: Mapping[str, Any], current: Mapping[str, Any], resumable: Iterable[str]
) -> list[Difference]:
  """Each dotted key whose value differs.

  Args:
    saved, current: nested config mappings; tuples equal lists, as JSON knows no tuples.
    resumable: patterns (`eval.*`) of keys that may differ.
  """
  before, now = flatten(_as_json(saved)), flatten(_as_json(current))
  patterns = tuple(resumable)
  return [
    Difference(
      key, before.get(key, _ABSENT), now.get(key, _ABSENT), any(fnmatch.fnmatchcase(key, p) for p in patterns)
    )
    for key in [*now, *(key for key in before if key not in now)]
    if before.get(key, _ABSENT) != now.get(key, _ABSENT)
  ]


def require_same(saved: Mapping[str, Any], current: Mapping[str, Any], where: str) -> list[Difference]:
  """The differences that resuming allows; raises UserError that lists the others.

  Args:
    saved: the meta data of a checkpoint. current: what this run would store. Both hold `config` (nested
      mapping), `tokenizer_fingerprint` (any JSON value), `dataset_fingerprints` (list, in the order of
      `data.sources`). Where the fingerprints are equal, `data.sources`, `data.tokenizer` may differ.
    where: the checkpoint's path, for the message.
  """
  differences = compare_configs(saved['config'], current['config'], RESUMABLE + BY_FINGERPRINT)
  differences += _compare_fingerprints(saved, current)
  return _allowed(differences, f'the checkpoint {where}')


def claim_workdir(workdir: str | Path, config: Mapping[str, Any], started: bool = True) -> list[Difference]:
  """Makes the run directory ready; returns how the config differs from the one found there, if any.

  Creates the folder, proves that it can be written, compares `config` with its `config.json`, then writes the
  config there. Comes before anything costly. Fingerprints are not known yet: `data.sources`, `data.tokenizer`
  may differ here; `require_same` judges them.

  Args:
    started: the folder has a checkpoint. Before the first one there is nothing that another config could spoil:
      what an attempt that failed left there is written over.

  Raises:
    UserError: the folder cannot be written; its config.json is unreadable; a key differs that a run may not
      change. Then nothing was written.
  """
  folder = Path(workdir)
  if '://' in str(workdir):
    raise UserError(
      f'workdir {str(workdir)!r} is an address; want a folder (mount the bucket, with gcsfuse for instance, '
      'then give the path of the mount)'
    )
  differences: list[Difference] = []
  try:
    if started and (folder / CONFIG_FILE).exists():
      found = compare_configs(read_config(folder), config, RESUMABLE + BY_FINGERPRINT)
      differences = _allowed(found, f'the run in {folder}')
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, config)
  except OSError as error:
    raise UserError(
      f'workdir {str(folder)!r} cannot be written ({error.strerror or error}); give a folder that you may '
      'write to, on a disk with room'
    ) from None
  return differences


def read_config(workdir: str | Path) -> dict[str, Any]:
  """The resolved config of the run in `workdir`, a plain mapping; UserError when there is none to read."""
  path = Path(workdir) / CONFIG_FILE
  try:
    config = json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f'{workdir} is not the folder of a run: it has no {CONFIG_FILE}') from None
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read ({error}); restore it, or take another workdir') from None
  if not isinstance(config, dict):
    raise UserError(f'{path} holds {type(config).__name__}; want a mapping of sections')
  return config


def _compare_fingerprints(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Difference]:
  tokenizer = saved.get('tokenizer_fingerprint', _ABSENT)
  pairs = [('tokenizer_fingerprint', tokenizer, current['tokenizer_fingerprint'])]
  before, now = saved.get('dataset_fingerprints', ()), current['dataset_fingerprints']
  sources = current['config']['data']['sources']
  for i in range(max(len(before), len(now))):
    name = f'dataset_fingerprints[{i}]' + (f' of {sources[i]}' if i < len(sources) else '')
    pairs.append((name, _at(before, i), _at(now, i)))
  return [Difference(key, a, b, False) for key, a, b in pairs if _as_json(a) != _as_json(b)]


def _at(values: Sequence[Any], i: int) -> Any:
  return values[i] if i < len(values) else _ABSENT


def _allowed(differences: list[Difference], what: str) -> list[Difference]:
  refused = [d for d in differences if not d.resumable]
  if refused:
    listed = '\n'.join(f'  {d}' for d in refused)
    raise UserError(
      f'{what} was made with other values; going on with these would make another run of it:\n{listed}\n'
      'Restore the saved values, or start a new run in another workdir. (These may change on the way: '
      f'{", ".join(RESUMABLE)}, a path to the same data.)'
    )
  return differences


def _shown(value: Any) -> str:
  text = value if value == _ABSENT else json.dumps(value)
  return text if len(text) <= 120 else text[:120] + ' ...'


def _as_json(value: Any) -> Any:
  return json.loads(json.dumps(value))
