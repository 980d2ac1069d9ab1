"""Whether a run is the one that a checkpoint is of: config, tokenizer, datasets, dtype, field by field."""

import fnmatch
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llamax.core.config import flatten, later_fields
from llamax.core.errors import UserError, nearest

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
_NAMED = 4  # flags that one message spells out


class Difference(NamedTuple):
  key: str
  saved: Any
  current: Any
  resumable: bool
  about: str = ''

  def __str__(self) -> str:
    return f'{self.key}{self.about}: saved {_shown(self.saved)}, now {_shown(self.current)}'


def compare_configs(
  saved: Mapping[str, Any], current: Mapping[str, Any], resumable: Iterable[str]
) -> list[Difference]:
  """Each dotted key whose value differs.

  Args:
    saved, current: nested config mappings; tuples equal lists, as JSON knows no tuples.
    resumable: patterns (`eval.*`) of keys that may differ.
  """
  before, now = (later_fields() | flatten(_as_json(config)) for config in (saved, current))
  patterns = tuple(resumable)
  return [
    Difference(
      key, before.get(key, _ABSENT), now.get(key, _ABSENT), any(fnmatch.fnmatchcase(key, p) for p in patterns)
    )
    for key in [*now, *(key for key in before if key not in now)]
    if before.get(key, _ABSENT) != now.get(key, _ABSENT)
  ]


def require_same(
  saved: Mapping[str, Any],
  current: Mapping[str, Any],
  where: str,
  allow: Collection[str] = (),
  recorded: Mapping[str, Any] | None = None,
) -> list[Difference]:
  """The differences that resuming allows; raises UserError that lists the others.

  Args:
    saved: the meta data of a checkpoint. current: what this run would store. Both hold `config` (nested
      mapping), `tokenizer_fingerprint`, `compute_dtype_used` (any JSON value), `dataset_fingerprints` (list, in
      the order of `data.sources`). With equal fingerprints, `data.sources`, `data.tokenizer` may differ.
    where: the checkpoint's path, for the message.
    allow: keys that may differ this time (--allow_change).
    recorded: {key: value} of changes that were allowed before.
  """
  differences = compare_configs(saved['config'], current['config'], RESUMABLE + BY_FINGERPRINT)
  differences += _compare_facts(saved, current)
  changes = dict(recorded or {})
  refuse_useless(allow, {d.key for d in differences}, changes, [*keys_of(current['config']), *_facts(current)])
  return allowed(differences, f'the checkpoint {where}', allow, changes)


def forced(differences: Iterable[Difference], recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Those that are not resumable, nor recorded yet, as {key, saved, now}: for the ledger, for checkpoints."""
  return [
    {'key': d.key, 'saved': d.saved, 'now': d.current}
    for d in differences
    if not d.resumable and recorded.get(d.key, _ABSENT) != d.current
  ]


def keys_of(config: Mapping[str, Any]) -> list[str]:
  """Dotted keys of a nested config."""
  return list(flatten(config))


def _facts(current: Mapping[str, Any]) -> list[str]:
  """Keys beside those of the config."""
  count = len(current.get('dataset_fingerprints', ()))
  return ['tokenizer_fingerprint', 'compute_dtype_used', *(f'dataset_fingerprints[{i}]' for i in range(count))]


def refuse_useless(
  allow: Iterable[str], changed: Collection[str], recorded: Mapping[str, Any], known: Sequence[str]
) -> None:
  """UserError for --allow_change of a key that does not exist, or is as it was: a slip, or a wrong workdir.

  A change that is recorded already is none: the same command, started again, goes on.
  """
  for key in allow:
    if key in changed or key in recorded:
      continue
    if key not in known:
      raise UserError(f'--allow_change={key}: there is no such field.{nearest(key, known, 2)}')
    raise UserError(f'--allow_change={key}: that field has not changed; leave the flag out')


def _compare_facts(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Difference]:
  tokenizer = saved.get('tokenizer_fingerprint', _ABSENT)
  pairs = [('tokenizer_fingerprint', tokenizer, current['tokenizer_fingerprint'])]
  if 'compute_dtype_used' in saved:  # What compute.compute_dtype=auto came to.
    used = current.get('compute_dtype_used', _ABSENT)
    pairs.append(('compute_dtype_used', saved['compute_dtype_used'], used))
  before, now = saved.get('dataset_fingerprints', ()), current['dataset_fingerprints']
  for i in range(max(len(before), len(now))):
    pairs.append((f'dataset_fingerprints[{i}]', _at(before, i), _at(now, i)))
  sources = current['config']['data']['sources']
  about = {f'dataset_fingerprints[{i}]': f' of {source}' for i, source in enumerate(sources)}
  return [Difference(key, a, b, False, about.get(key, '')) for key, a, b in pairs if _as_json(a) != _as_json(b)]


def _at(values: Sequence[Any], i: int) -> Any:
  return values[i] if i < len(values) else _ABSENT


def allowed(
  differences: list[Difference], what: str, allow: Collection[str], recorded: Mapping[str, Any]
) -> list[Difference]:
  """The differences; UserError that lists those that may not be."""
  refused = [
    d
    for d in differences
    if not (d.resumable or d.key in allow or (d.key in recorded and recorded[d.key] == d.current))
  ]
  if refused:
    listed = '\n'.join(f'  {d}' for d in refused)
    flags = ' '.join(f'--allow_change={d.key}' for d in refused[:_NAMED])
    raise UserError(
      f'{what} was made with other values; going on with these would make another run of it:\n{listed}\n'
      'Restore the saved values, or start a new run in another workdir. (These may change on the way: '
      f'{", ".join(RESUMABLE)}, a path to the same data.)\nIf it is meant, `llamax train ... {flags}` lets it '
      "through, writes it into the run's ledger, its checkpoints."
    )
  return differences


def _shown(value: Any) -> str:
  text = value if value == _ABSENT else json.dumps(value)
  return text if len(text) <= 120 else text[:120] + ' ...'


def _as_json(value: Any) -> Any:
  return json.loads(json.dumps(value))
