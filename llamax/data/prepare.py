"""Text of any kind -> a tokenised dataset in one folder: the story of `llamax prepare`."""

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from llamax.core.errors import UserError
from llamax.data.assemble import assemble
from llamax.data.corpus import STDLIB, Walk, make_tasks, walk
from llamax.data.files import Unit
from llamax.data.format import FORMAT, TOKENIZER, write_bytes
from llamax.data.place import existing, locked, publish
from llamax.data.plan import Plan, make_plan
from llamax.data.pool import WorkerDied, cores, progress, run_in_order
from llamax.data.report import render
from llamax.data.shards import Scan, Work, load_scan, read_sample, scan, write_part
from llamax.data.tokenizer import open_tokenizer
from llamax.data.vocabulary import train_tokenizer

# A tokenizer learns little from more, while its training time grows.
_SAMPLE_BYTES = 16 << 20
# Starting a process costs about as much as this much work.
_BYTES_PER_SCANNER = 64 << 20
_BYTES_PER_TOKENISER = 1 << 20


@dataclasses.dataclass(frozen=True)
class Settings:
  """What `llamax prepare` is told. The same inputs with the same settings give the same dataset."""

  out: str
  inputs: tuple[str, ...] = (STDLIB,)
  vocab_size: int = 4096
  tokenizer: str | None = (
    None  # a file or folder that holds one; None: train one of vocab_size on the train documents
  )
  validation_fraction: float = 0.02
  shards: int | None = None  # at most so many; None: as fits the size
  text_key: str = 'text'  # JSON key, parquet column, tfds feature
  tfds_data_dir: str | None = None
  max_documents: int | None = None
  workers: int | None = None  # processes; None: one per core. No part of the result.
  overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
  """manifest: what prepare.json holds. complete_before: nothing had to be done."""

  folder: str
  manifest: dict[str, Any]
  complete_before: bool
  seconds: float

  def __str__(self) -> str:
    return render(self.folder, self.manifest, self.complete_before, self.seconds)


def prepare(settings: Settings, say: Callable[[str], None] = print) -> Report:
  """Makes `settings.out`, whole or not at all; goes on where a killed run stopped; says what it does.

  UserError: bad settings, missing inputs, nothing to train on, a folder that holds something else.
  """
  start = time.monotonic()
  _check(settings)
  folder = os.path.expanduser(settings.out)  # A shell leaves the ~ of --out=~/data as it is.
  out = os.path.abspath(folder)
  walked = walk(settings.inputs, out, settings.tfds_data_dir)
  decisive = _decisive(settings)
  fingerprint = walked.fingerprint(decisive)
  about = {
    'inputs': list(settings.inputs),
    'settings': decisive,
    'inputs_fingerprint': fingerprint,
    'input_bytes': walked.size,
  }

  def found() -> dict[str, Any] | None:
    return existing(out, settings.overwrite, about)

  try:
    manifest, before = found(), True
    if manifest is None:
      with locked(f'{out}.partial-{fingerprint[:12]}', say) as partial:
        manifest = found()  # made by the process that held the lock
        if manifest is None:
          manifest, before = _make(settings, walked, partial, about, say), False
          publish(os.path.join(partial, 'whole'), out)
        shutil.rmtree(partial)
  except OSError as error:
    raise UserError(f'cannot write {settings.out!r}: {error}; the same command goes on from here') from error
  except KeyboardInterrupt:
    say('interrupted; the same command goes on from here')
    raise
  return Report(folder, manifest, before, time.monotonic() - start)


def _check(settings: Settings) -> None:
  if not 0 <= settings.validation_fraction < 1:
    raise UserError(f'validation_fraction={settings.validation_fraction}: want at least 0 and below 1')
  for name in ('shards', 'workers', 'max_documents', 'vocab_size'):
    value = getattr(settings, name)
    if value is not None and value < 1:
      raise UserError(f'{name}={value}: want at least 1')
  if not settings.inputs:
    raise UserError('no input: want folders, files, tfds:NAME or the word stdlib')


def _decisive(settings: Settings) -> dict[str, Any]:
  """The settings that the dataset follows from, as they go into prepare.json."""
  chosen = {
    key: getattr(settings, key) for key in ('validation_fraction', 'shards', 'text_key', 'max_documents')
  }
  if settings.tokenizer is None:
    trained: dict[str, Any] = {'vocab_size': settings.vocab_size}
  else:
    trained = {'tokenizer_sha256': open_tokenizer(settings.tokenizer).fingerprint}
  return {'format': FORMAT, **trained, **chosen}


def _make(
  settings: Settings, walked: Walk, partial: str, about: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
  """`PARTIAL/whole` from the files; leaves nothing when another try needs other settings or inputs."""
  try:
    return _stages(settings, walked, partial, about, say)
  except WorkerDied:
    raise
  except UserError:
    shutil.rmtree(partial)
    raise


def _stages(
  settings: Settings, walked: Walk, partial: str, about: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
  """Scan, plan, train a tokenizer, write tokens, assemble; what an earlier run finished is not done again."""
  clock = time.monotonic()
  seconds: dict[str, float] = {}

  def lap(stage: str) -> None:
    nonlocal clock
    seconds[stage], clock = round(time.monotonic() - clock, 2), time.monotonic()

  tasks = make_tasks(walked.files, settings.shards)
  work = Work(partial, settings.text_key, settings.tfds_data_dir)
  workers = settings.workers or cores()
  say(f'{len(walked.files)} files, {walked.size / 1e6:.1f} MB, in {len(tasks)} tasks for {workers} processes')
  scans = _scan_all(tasks, work, workers, settings.max_documents, walked.size, say)
  tasks = tasks[: len(scans)]
  plan = make_plan(tasks, scans, settings.validation_fraction, settings.max_documents, walked.dropped)
  lap('scan')
  place = os.path.join(partial, 'tokenizer')
  if not os.path.isdir(place):
    _write_folder(place, _tokenizer_files(settings, tasks, plan, scans, work, workers, say))
  tokenizer = open_tokenizer(place)
  lap('tokenizer')
  parts = _write_parts(tasks, plan, place, work, workers, say)
  lap('tokens')
  facts = {
    **about,
    'fingerprint': plan.fingerprint(scans, tokenizer.fingerprint),
    'tokenizer_fingerprint': tokenizer.fingerprint,
    'vocab_size': tokenizer.vocab_size,
    'dropped': dict(plan.dropped.most_common()),
    'seconds': seconds,
  }
  files = [os.path.join(place, name) for name in tokenizer.files]
  return assemble(os.path.join(partial, 'whole'), parts, plan.splits, files, facts)


def _scan_all(
  tasks: Sequence[Sequence[Unit]],
  work: Work,
  workers: int,
  max_documents: int | None,
  size: int,
  say: Callable[[str], None],
) -> list[Scan]:
  """Scans of the tasks in order, of as many as hold `max_documents` different documents."""
  scans: list[Scan] = []
  seen: set[bytes] = set()
  calls = [(i, task, work) for i, task in enumerate(tasks)]
  finished = run_in_order(scan, calls, min(workers, 1 + size // _BYTES_PER_SCANNER))
  with contextlib.closing(finished), progress('reading', size, say) as advance:
    for i, _ in enumerate(finished):
      scans.append(load_scan(i, work))
      advance(sum(u.size for u in tasks[i]))
      if max_documents is not None:
        seen.update(row.tobytes() for row in scans[-1].digests)
        if len(seen) >= max_documents:
          break
  return scans


def _tokenizer_files(
  settings: Settings,
  tasks: Sequence[Sequence[Unit]],
  plan: Plan,
  scans: Sequence[Scan],
  work: Work,
  workers: int,
  say: Callable[[str], None],
) -> dict[str, bytes]:
  """The tokenizer given, or one trained on a sample of the train documents."""
  if settings.tokenizer is not None:
    return open_tokenizer(settings.tokenizer).files
  positions, most = plan.sample(scans, _SAMPLE_BYTES)
  calls = [(tasks[i], p, most, work) for i, p in enumerate(positions) if len(p)]
  size = sum(u.size for units, *_ in calls for u in units)
  texts: list[str] = []
  finished = run_in_order(read_sample, calls, min(workers, 1 + size // _BYTES_PER_SCANNER))
  with contextlib.closing(finished):
    for found in finished:
      texts += found
  read = sum(len(text.encode()) for text in texts)
  say(f'training a tokenizer of {settings.vocab_size} pieces on {len(texts)} documents, {read / 1e6:.1f} MB')
  return {TOKENIZER: train_tokenizer(texts, settings.vocab_size)}


def _write_folder(folder: str, files: dict[str, bytes]) -> None:
  """A folder that is there with all its files or not at all."""
  unfinished = f'{folder}.unfinished'
  shutil.rmtree(unfinished, ignore_errors=True)
  os.mkdir(unfinished)
  for name, content in files.items():
    write_bytes(os.path.join(unfinished, name), content)
  os.rename(unfinished, folder)


def _write_parts(
  tasks: Sequence[Sequence[Unit]],
  plan: Plan,
  tokenizer: str,
  work: Work,
  workers: int,
  say: Callable[[str], None],
) -> list[tuple[str, dict[str, Any]]]:
  todo = [i for i, codes in enumerate(plan.codes) if (codes >= 0).any()]
  calls = [(i, tasks[i], plan.codes[i], plan.splits, tokenizer, work) for i in todo]
  if before := sum(os.path.exists(work.path('part', i, '.json')) for i in todo):
    say(f'going on: {before} of {len(todo)} tasks were finished by an earlier run')
  size = sum(u.size for i in todo for u in tasks[i])
  finished = run_in_order(write_part, calls, min(workers, 1 + size // _BYTES_PER_TOKENISER))
  parts = []
  with contextlib.closing(finished), progress('tokenising', size, say) as advance:
    for i, facts in zip(todo, finished, strict=True):
      parts.append((work.path('part', i, ''), facts))
      advance(sum(u.size for u in tasks[i]))
  return parts
