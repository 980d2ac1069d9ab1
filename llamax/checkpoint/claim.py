"""The folder of a run: whether this config may go on in it."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llamax.checkpoint import steps as folder_of_steps
from llamax.checkpoint.integrity import (
  BY_FINGERPRINT,
  RESUMABLE,
  Difference,
  allowed,
  compare_configs,
  keys_of,
  refuse_useless,
)
from llamax.core.errors import UserError
from llamax.core.storage import needed, write_json
from llamax.observe.ledger import events

CONFIG_FILE = 'config.json'
CHANGED = 'changed'  # event in the ledger: {key, saved, now}
CONVERTED = 'converted'  # in the meta data of a checkpoint that holds weights alone, made by llamax convert
_CHECKPOINTS = 'checkpoints'
# What is known only once the data, the devices are.
_FACT = re.compile(r'tokenizer_fingerprint|compute_dtype_used|dataset_fingerprints\[\d+\]')


def check_workdir(
  workdir: str | Path, config: Mapping[str, Any], allow: Collection[str] = ()
) -> list[Difference]:
  """How `config` differs from the run found in `workdir`; changes nothing, needs neither jax nor the data.

  What counts is the newest checkpoint that can tell; config.json only where none can. Before the first
  checkpoint there is nothing that another config could spoil. Fingerprints are not known yet: `require_same`
  judges them, so `data.sources`, `data.tokenizer` may differ here.

  Raises:
    UserError: a key differs that a run may not change; a key of `allow` is unknown, or has not changed.
  """
  folder = Path(workdir)
  if '://' in str(workdir):
    raise UserError(
      f'workdir {str(workdir)!r} is an address; want a folder (mount the bucket, with gcsfuse for instance, '
      'then give the path of the mount)'
    )
  try:
    meta = _newest_meta(folder)
    if meta is not None and CONVERTED in meta:
      raise UserError(
        f'{folder} holds weights alone, made by llamax convert: no run to go on with. To train from them: '
        f'--config.train.init_from={folder} with another --workdir'
      )
    saved, changes = _newest_config(folder), recorded_changes(folder)
  except OSError as error:
    raise UserError(
      f'workdir {str(folder)!r} cannot be read ({error.strerror or error}); want a folder of yours'
    ) from None
  if saved is None:
    if allow:
      raise UserError(f'--allow_change={sorted(allow)[0]}: {folder} has no checkpoint, so nothing has changed')
    return []
  differences = compare_configs(saved, config, RESUMABLE + BY_FINGERPRINT)
  later = [key for key in allow if _FACT.fullmatch(key)]
  refuse_useless(
    [key for key in allow if key not in later], {d.key for d in differences}, changes, keys_of(config)
  )
  return allowed(differences, f'the run in {folder}', allow, changes)


def claim_workdir(
  workdir: str | Path, config: Mapping[str, Any], allow: Collection[str] = ()
) -> list[Difference]:
  """`check_workdir`; a folder without checkpoints becomes that of this run. Comes before anything costly.

  The config.json beside checkpoints stays as it is until the newest one is restored: see `write_config`.

  Raises:
    UserError: as `check_workdir`; the folder cannot be written; it holds a config.json that is not of a run.
      Then nothing was written.
  """
  folder = Path(workdir)
  differences = check_workdir(workdir, config, allow)
  try:
    if not folder_of_steps.steps(folder / _CHECKPOINTS):
      _require_ours(folder)
      folder.mkdir(parents=True, exist_ok=True)
      write_json(folder / CONFIG_FILE, config)
  except OSError as error:
    raise UserError(
      f'workdir {str(folder)!r} cannot be written ({error.strerror or error}); give a folder that you may '
      'write to, on a disk with room'
    ) from None
  return differences


def write_config(workdir: str | Path, config: Mapping[str, Any]) -> None:
  """config.json as the run is from here on; Stop, UserError when it is another one that cannot be written."""
  path = Path(workdir, CONFIG_FILE)
  with needed(path):
    if not path.exists() or path.read_bytes() != (json.dumps(config, indent=2) + '\n').encode():
      write_json(path, config)


def recorded_changes(workdir: str | Path) -> dict[str, Any]:
  """{key: value} of the changes that --allow_change let in before, by the ledger, by the newest checkpoint."""
  folder = Path(workdir)
  found = events(folder, CHANGED, {'key': str, 'now': object})
  meta = _newest_meta(folder) or {}
  return dict(meta.get('changed', {})) | {change['key']: change['now'] for change in found}


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


def _newest_meta(folder: Path) -> dict[str, Any] | None:
  """Of the newest checkpoint that can be read, without orbax."""
  directory = folder / _CHECKPOINTS
  for step in reversed(folder_of_steps.steps(directory)):
    try:
      meta = folder_of_steps.meta(directory / str(step))
    except (OSError, ValueError):
      continue  # Damaged: whoever restores says so.
    if isinstance(meta.get('config'), dict):
      return meta
  return None


def _newest_config(folder: Path) -> dict[str, Any] | None:
  """Of the newest checkpoint; of config.json where none can tell; None where there is no checkpoint."""
  if not folder_of_steps.steps(folder / _CHECKPOINTS):
    return None
  meta = _newest_meta(folder)
  if meta is not None:
    return meta['config']
  return read_config(folder) if (folder / CONFIG_FILE).exists() else None


def _require_ours(folder: Path) -> None:
  """UserError when there is a config.json that no run of llamax has written: that of a model, say."""
  path = folder / CONFIG_FILE
  if path.exists() and not all(isinstance(section, dict) for section in read_config(folder).values()):
    raise UserError(f'{path} is not of a run of llamax; nothing there is touched: take another workdir')
