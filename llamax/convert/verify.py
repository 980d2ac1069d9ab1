"""Proof that a written checkpoint computes what its original does: logits of both on a probe batch.

The original is computed by the float64 reference, in its own format's order of numbers; the copy by the program
that is going to run it where that is here, else by the reference in the order of the copy's format. Neither
side goes through the tables that the copy was made by.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from llamax.convert import conventions, forwards, reference
from llamax.convert.hf_config import same_function
from llamax.convert.source import Source
from llamax.core import exits
from llamax.core.errors import UserError

_LENGTH = 64  # tokens of a row of the probe
_TEXT = """The river rose all night. At dawn 1,024 people stood on the bridge -- "how long?", they asked.
def area(radius: float) -> float:
  return 3.14159 * radius**2  # Übung macht den Meister; 学而时习之
"""
# Largest difference, in spreads of the logits, that rounding makes of the same numbers.
_FLOAT64 = 1e-9
_FLOAT32_PER_LAYER = 3e-5
_QUANTISED = 0.3  # of 8 bits a weight; a wrong layout is 10 times as far
_WIDTHS = {'float16': 2, 'bfloat16': 2, 'float32': 4}


@dataclasses.dataclass(frozen=True)
class Check:
  """One thing that was compared. passed: None where there was nothing to compare."""

  name: str
  passed: bool | None
  text: str


@dataclasses.dataclass(frozen=True)
class Report:
  """What was compared. difference: the largest one between two logits; NaN where there are none to compare."""

  checks: tuple[Check, ...]
  difference: float

  @property
  def exit_code(self) -> int:
    """0, or FAILED_CHECK where a check failed."""
    return exits.FAILED_CHECK if any(check.passed is False for check in self.checks) else exits.DONE

  def lines(self) -> list[str]:
    """One line for each check, then the verdict."""
    words = {True: 'ok', False: 'FAILED', None: '-'}
    shown = [f'verify {check.name:9} {words[check.passed]:6} {check.text}' for check in self.checks]
    if self.exit_code:
      return [*shown, 'These two are not the same model: do not use the copy.']
    return shown


def compare(source: Source, target: Source) -> Report:
  """Compares two checkpoints of one model.

  Args:
    source: the original. target: the copy, opened from the disk.

  Raises:
    UserError: the original cannot be computed.
  """
  tokens_BT, what = probe_batch(source)
  checks = [_configs(source, target), _tokenizers(source, target)]
  rounding, dtypes = _rounding(source, target)
  wanted_BTV = _reference(source, tokens_BT, rounding)
  if not np.isfinite(wanted_BTV).all():
    checks.append(Check('logits', False, 'those of the original are not finite: nothing can be compared'))
    return Report(tuple(checks), float('nan'))
  try:
    found_BTV, by, tolerance = _target_logits(target, tokens_BT)
  except UserError as error:
    return Report((*checks, Check('logits', False, str(error))), float('nan'))
  if found_BTV.shape != wanted_BTV.shape:
    text = f'are for {found_BTV.shape[-1]:,} ids; want {wanted_BTV.shape[-1]:,}'
    return Report((*checks, Check('logits', False, text)), float('nan'))
  check, difference = _logits(wanted_BTV, found_BTV, tolerance)
  checks.append(dataclasses.replace(check, text=f'{check.text}; {what}; by the reference and by {by}'))
  if dtypes:
    moved = _distance(_reference(source, tokens_BT), wanted_BTV) / wanted_BTV.std()
    checks.append(Check('cast', None, f'{dtypes} moved the logits by up to {moved:.1e} of their spread'))
  return Report(tuple(checks), difference)


def probe_batch(source: Source) -> tuple[np.ndarray, str]:
  """([2, T] ids, what they are): a text where there is a tokenizer, ids from all over the vocabulary."""
  length, vocab = min(_LENGTH, source.cfg.max_seq_len), source.cfg.vocab_size
  rows = np.random.default_rng(0).integers(vocab, size=(2, length))
  rows[1, 0], rows[1, -1] = 0, vocab - 1
  if source.tokenizer is None:
    return rows, f'2 x {length} seeded ids'
  ids = source.tokenizer.encode(_TEXT, bos=True, eos=False)[:length]
  rows[0, : len(ids)] = np.minimum(ids, vocab - 1)
  return rows, f'{len(ids)} ids of a text, {rows.size - len(ids)} seeded ones'


def _configs(source: Source, target: Source) -> Check:
  names = same_function(source.cfg, target.cfg)
  apart = [f'{name} is {getattr(target.cfg, name)!r}, was {getattr(source.cfg, name)!r}' for name in names]
  return Check('config', not apart, ', '.join(apart) or f'the same function, as {target.format} says it')


def _tokenizers(source: Source, target: Source) -> Check:
  if source.tokenizer is None or target.tokenizer is None:
    sides = {'the original': source, 'the copy': target}
    lacks = [name for name, side in sides.items() if side.tokenizer is None]
    return Check('tokenizer', None, f'none in {" and ".join(lacks)}')
  from llamax.convert.vocabulary import probe

  problem = probe(source.tokenizer, target.tokenizer)
  if problem:
    return Check('tokenizer', False, str(problem))
  return Check('tokenizer', True, 'the same ids for the probe texts, the same texts back')


def _reference(
  side: Source,
  tokens_BT: np.ndarray,
  rounding: Callable[[str, int], np.dtype | None] = lambda part, layer: None,
) -> np.ndarray:
  convention = conventions.convention(side.format, side.family)
  return reference.logits(side.entries, convention, side.cfg, tokens_BT, rounding)


def _rounding(source: Source, target: Source) -> tuple[Callable[[str, int], np.dtype | None], str]:
  """(what a tensor of the source is rounded to before it is compared, in words what that is).

  Rounded by numpy, so that what is left between the two logits is what the copy did wrong, not the cast.
  """
  here, there = (conventions.convention(side.format, side.family) for side in (source, target))
  casts: set[str] = set()

  def rounding(part: str, layer: int) -> np.dtype | None:
    if part not in there.names:
      return None
    mine, copied = source.entries.get(here.name(part, layer)), target.entries.get(there.name(part, layer))
    if mine is None or copied is None or mine.dtype == copied.dtype:
      return None
    return copied.dtype

  for part, name in here.names.items():
    for layer in range(source.cfg.num_layers if '*' in name else 1):
      if (dtype := rounding(part, layer)) is not None:
        was = source.entries[here.name(part, layer)].dtype
        # What has more bits of both kinds holds every number: nothing is rounded.
        if _WIDTHS[dtype.name] < _WIDTHS[was.name] or {dtype.name, was.name} == {'float16', 'bfloat16'}:
          casts.add(f'{was.name} -> {dtype.name}')
  return rounding, ', '.join(sorted(casts))


def _target_logits(target: Source, tokens_BT: np.ndarray) -> tuple[np.ndarray, str, float]:
  """(logits, who computed them, how far they may be off in spreads of the logits)."""
  single = _FLOAT32_PER_LAYER * (2 + target.cfg.num_layers)
  if target.format == 'llamax':
    return forwards.by_llamax(target, tokens_BT), 'llamax', single
  why = forwards.why_not_transformers(target) if target.format == 'hf' else None
  if target.format == 'hf' and why is None:
    return forwards.by_transformers(target, tokens_BT), 'transformers', single
  by = f'the reference in the order of {target.format}{f" ({why})" if why else ""}'
  packed = any(getattr(getattr(entry, 'kind', None), 'quantised', False) for entry in target.entries.values())
  return _reference(target, tokens_BT), by, _QUANTISED if packed else _FLOAT64


def _logits(wanted_BTV: np.ndarray, found_BTV: np.ndarray, tolerance: float) -> tuple[Check, float]:
  largest = _distance(wanted_BTV, found_BTV)
  relative = largest / max(float(wanted_BTV.std()), 1e-30)
  text = f'largest difference {largest:.2e}, {relative:.1e} of their spread (at most {tolerance:.0e})'
  return Check('logits', bool(relative <= tolerance), text), largest


def _distance(first: np.ndarray, second: np.ndarray) -> float:
  """Not finite where one of them is not."""
  return float(np.abs(first - second).max())
