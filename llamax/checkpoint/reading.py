"""Reads committed checkpoints of a folder, changing nothing in it."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from llamax.checkpoint import digests, leaves, quiet
from llamax.checkpoint.steps import ARRAY, META_FILE, STATE_ITEM, meta, steps
from llamax.core.errors import UserError
from llamax.core.types import PyTree

_LISTED = 5  # damaged files that one message names

quiet.silence_orbax()


class DamagedCheckpoint(UserError):
  """A committed step whose files cannot be read back."""


def read_meta(directory: str | Path, step: int | None = None) -> dict[str, Any]:
  """What `Checkpoints.save` stored beside the arrays of `step` (None: of the newest step that can tell).

  Raises:
    UserError: no such step. DamagedCheckpoint: the file is missing or is not JSON.
  """
  failures: list[str] = []
  for candidate in _candidates(directory, step):
    folder = Path(directory).resolve() / str(candidate)
    try:
      return meta(folder)
    except (OSError, ValueError) as error:
      failures.append(str(damaged(folder, error, META_FILE)))
  raise DamagedCheckpoint('\n'.join(failures))


def restore(directory: str | Path, target: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
  """The train state like `target`, with its meta data.

  Args:
    directory: the folder of steps.
    target: pytree of jax.ShapeDtypeStruct, each with the sharding that its array is to have: any mesh of any
      number of devices, whatever mesh it was saved from.
    step: the step to read. None: the newest one that can be read; newer ones are named on stderr.
      `meta['step']` says which step it is.

  Raises:
    UserError: no such step; a leaf of `target` that is missing, or has another shape or dtype; a leaf too many.
    DamagedCheckpoint: the step (or, when None, each of them) cannot be read.
  """
  return _newest_readable(directory, target, step, '')


def restore_params(
  directory: str | Path, target: PyTree, step: int | None = None
) -> tuple[PyTree, dict[str, Any]]:
  """As `restore`, but reads the `params` of the state alone: no optimizer state is read from disk."""
  return _newest_readable(directory, target, step, 'params/')


def one_line(error: BaseException) -> str:
  """The reason of a failure, short enough for a message: its kind, its innermost cause."""
  text = _innermost(error).split(' [tensorstore_spec')[0]  # Pages of JSON follow.
  return text if len(text) <= 240 else f'{text[:60]} ... {text[-180:]}'


def _innermost(error: BaseException) -> str:
  while error.__cause__ is not None:
    error = error.__cause__
  return ' '.join(str(error).split()) or type(error).__name__


def _candidates(directory: str | Path, step: int | None) -> list[int]:
  present = steps(directory)
  if not present:
    raise UserError(f'{directory} has no checkpoint; a run writes them there as it trains')
  if step is None:
    return present[::-1]
  if step not in present:
    raise UserError(f'{directory} has no checkpoint of step {step}; it has {", ".join(map(str, present))}')
  return [step]


def _newest_readable(
  directory: str | Path, target: PyTree, step: int | None, prefix: str
) -> tuple[PyTree, dict[str, Any]]:
  failures: list[str] = []
  for candidate in _candidates(directory, step):
    try:
      require_whole(Path(directory), candidate)
      state, found = read_step(Path(directory), target, candidate, prefix)
    except DamagedCheckpoint as error:
      failures.append(str(error))
      continue
    for failure in failures:
      print(f'WARNING: {failure}', file=sys.stderr, flush=True)
    if failures:
      print(f'WARNING: going back to the checkpoint of step {candidate}', file=sys.stderr, flush=True)
    return state, found
  raise DamagedCheckpoint('\n'.join(failures))


def require_whole(directory: Path, step: int, sizes_only: bool = False) -> None:
  """DamagedCheckpoint, naming the files, unless each file of the step has the digest it was written with.

  sizes_only: unless it has the size.
  """
  folder = directory.resolve() / str(step)
  if damages := digests.verify(folder, sizes_only):
    listed = '; '.join(map(str, damages[:_LISTED])) + ('; ...' if len(damages) > _LISTED else '')
    raise DamagedCheckpoint(f'checkpoint {folder} is damaged: {listed}')


def read_step(directory: Path, target: PyTree, step: int, prefix: str = '') -> tuple[PyTree, dict[str, Any]]:
  """The state of a step that is known to be whole, as `restore` gives it. All processes call this."""
  folder = directory.resolve() / str(step)
  found_meta = read_meta(directory, step)
  wanted = {prefix + name: leaf for name, leaf in leaves.named_leaves(target).items()}
  found = {name: kind for name, kind in found_meta['leaves'].items() if name.startswith(prefix)}
  leaves.require_same_leaves(found, leaves.leaf_table(wanted), f'the checkpoint {folder}')
  assert all(leaf.sharding is not None for leaf in wanted.values()), 'a leaf without a sharding'
  args = {
    name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    for name, leaf in wanted.items()
  }
  request = ocp.args.PyTreeRestore(leaves.nest(wanted), leaves.nest(args), partial_restore=True)
  quiet.silence_leftovers()
  try:
    with ocp.PyTreeCheckpointer() as reader:
      restored = leaves.named_leaves(reader.restore(folder / STATE_ITEM, args=request))
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # The devices' trouble, not the file's.
  except Exception as error:  # Orbax raises bare Exception, ValueError, KeyError, ... for a torn file.
    raise damaged(folder, error, STATE_ITEM) from None
  return jax.tree.unflatten(jax.tree.structure(target), [restored[name] for name in wanted]), found_meta


def damaged(folder: Path, error: Exception, file: str) -> DamagedCheckpoint:
  """Names the file: the longest path that the error speaks of, else what is plainly wrong, else `file`."""
  paths = re.findall(re.escape(str(folder)) + r'/([^\s"\'\[\],:\\]+)', _innermost(error))
  files = [path for path in paths if not (folder / path).is_dir()]
  named = max(files, key=len) if files else _plainly_wrong(folder) or file
  return DamagedCheckpoint(f'checkpoint {folder} is damaged: {named} cannot be read ({one_line(error)})')


def _plainly_wrong(folder: Path) -> str | None:
  """Orbax's errors of JSON, of a lost manifest, name no file."""
  state = folder / STATE_ITEM
  streamed = any(state.glob(f'*/{ARRAY}'))
  if not streamed and not (state / 'manifest.ocdbt').exists():
    return f'{STATE_ITEM}/manifest.ocdbt'
  for path in (state / '_METADATA', *sorted((state / 'array_metadatas').glob('*'))):
    try:
      json.loads(path.read_text())
    except (OSError, ValueError):
      return str(path.relative_to(folder))
  return None
