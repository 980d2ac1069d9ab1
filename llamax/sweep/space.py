"""The words that a config's get_sweep(s) builds its runs from."""

import dataclasses
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from llamax.core.errors import UserError, nearest
from llamax.sweep.draws import Choice, Distribution, IntUniform, Uniform

Values = Mapping[str, Any]
Condition = Mapping[str, Any] | Callable[[Values], bool]

LONGEST_NAME = 80
_NAME = re.compile(rf'[A-Za-z0-9][A-Za-z0-9._=+,-]{{0,{LONGEST_NAME - 1}}}')


@dataclasses.dataclass(frozen=True)
class Point:
  """One run: what it changes of the config.

  values: dotted key -> value, as the sweep wrote them. name: given by `named`, else None. quiet: keys that
  `named` or `fixed` set, which the run's name need not repeat.
  """

  values: Values
  name: str | None = None
  quiet: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Space:
  """Runs in the order in which they start. Immutable: each word below makes a new one."""

  points: tuple[Point, ...]

  def __len__(self) -> int:
    return len(self.points)

  def __iter__(self) -> Iterator[Point]:
    return iter(self.points)

  def when(self, condition: Condition, inner: 'Space') -> 'Space':
    """`product` with `inner` for the points that meet `condition`; the others stay as they are.

    Args:
      condition: {key: value}, all of which a point must have (a value that is a set: any of it), or a function
        of a point's values.

    Raises:
      UserError: no point has such a key, or none meets the condition: it would be a slip of the pen.
    """
    meets = self._meeting(condition)
    return _merged(itertools.chain.from_iterable(_times([p], inner) if meets(p) else [p] for p in self.points))

  def only(self, condition: Condition) -> 'Space':
    """The points that meet `condition` (as in `when`)."""
    return Space(tuple(filter(self._meeting(condition), self.points)))

  def _meeting(self, condition: Condition) -> Callable[[Point], bool]:
    if callable(condition):
      test = condition
      found = {id(p): bool(test(p.values)) for p in self.points}
    else:
      known = {key for p in self.points for key in p.values}
      for key in condition:
        if key not in known:
          raise UserError(f'a condition on {key!r}: no point has that key.{nearest(key, known)}')
      wanted = {k: v if isinstance(v, set | frozenset) else {_plain(k, v)} for k, v in condition.items()}
      found = {id(p): all(k in p.values and p.values[k] in v for k, v in wanted.items()) for p in self.points}
    if not any(found.values()):
      raise UserError(f'no point of {len(self)} meets the condition {condition}')
    return lambda p: found[id(p)]


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs that are chosen one after the other, by what the ones before have given (llamax/sweep/search.py).

  trials: how many. base: what all of them set beside their draws. objective: a name in metrics.jsonl
  ('eval/loss': of the first held-out split), taken when a trial ends, read on the way by the pruner.
  """

  trials: int
  draws: Mapping[str, Distribution]
  base: Values
  sampler: str
  pruner: str
  seed: int
  objective: str
  direction: str


def grid(key: str, values: Iterable[Any]) -> Space:
  """One point per value of one key."""
  if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
    raise UserError(f'grid({key!r}, {values!r}): want a list of values')
  found = [_plain(key, value) for value in values]
  if not found:
    raise UserError(f'grid({key!r}) has no values')
  for index, value in enumerate(found):
    if any(_same(value, other) for other in found[:index]):
      raise UserError(f'grid({key!r}) has {value!r} twice')
  return Space(tuple(Point({_key(key): value}) for value in found))


def fixed(values: Values) -> Space:
  """One point that sets some keys, of which names say nothing: for `product` with what varies."""
  return Space((Point({_key(k): _plain(k, v) for k, v in values.items()}, quiet=frozenset(values)),))


def named(name: str, values: Values) -> Space:
  """`fixed`, with a name for what it sets."""
  if not isinstance(name, str) or not _NAME.fullmatch(name):
    raise UserError(
      f'named({name!r}): want a letter or digit, then letters, digits, . _ = + , - ({LONGEST_NAME} at most): '
      'it becomes the name of a folder'
    )
  return Space((dataclasses.replace(fixed(values).points[0], name=name),))


def product(*spaces: Space) -> Space:
  """Each point of the first with each of the second, and so on; the last varies fastest.

  Raises:
    UserError: two of them set one key to different values.
  """
  points: list[Point] = [Point({})]
  for space in spaces:
    points = _times(points, space)
  return _merged(points)


def zip(*spaces: Space) -> Space:
  """The first points of all together, the second ones together, and so on.

  Raises:
    UserError: they differ in length, or set one key to different values.
  """
  lengths = [len(space) for space in spaces]
  if len(set(lengths)) > 1:
    raise UserError(f'zip of {" and ".join(map(str, lengths))} points: want equal lengths')
  return _merged(_joined(points) for points in itertools.zip_longest(*spaces))


def chain(*spaces: Space) -> Space:
  """The points of the first, then those of the second, and so on. A point that comes again is left out."""
  return _merged(itertools.chain.from_iterable(spaces))


def sample(count: int, draws: Mapping[str, Distribution], *, seed: int = 0) -> Space:
  """`count` random points. Point k depends on `seed` and k alone: more of them leave the first as they are.

  A point that is drawn again (of choices, of few whole numbers) is left out.
  """
  if isinstance(count, bool) or not isinstance(count, int) or count < 1:
    raise UserError(f'sample({count!r}, ...): want how many points, at least 1')
  _check_draws('sample', draws)

  def draw(index: int, key: str, distribution: Distribution) -> Any:
    # A text as seed goes through SHA-512: the same numbers on every machine; no key disturbs another.
    return distribution.at(random.Random(f'{seed}/{index}/{key}').random())

  points = [Point({_key(k): draw(i, k, d) for k, d in draws.items()}) for i in range(count)]
  return _merged(points)


def study(
  trials: int,
  draws: Mapping[str, Distribution],
  *,
  base: Values | None = None,
  sampler: str = 'tpe',
  pruner: str = 'none',
  seed: int = 0,
  objective: str = 'eval/loss',
  direction: str = 'minimize',
) -> Study:
  """A search by Optuna: `trials` runs, each chosen by the results of those before; see `Study`.

  Args:
    sampler: tpe, random, qmc. pruner: none, median, halving, hyperband. direction: minimize, maximize.
  """
  if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
    raise UserError(f'study({trials!r}, ...): want how many trials, at least 1')
  if not isinstance(objective, str) or not objective:
    raise UserError(f"study: objective={objective!r}; want a name in metrics.jsonl, such as 'eval/loss'")
  _check_draws('study', draws)
  fix = fixed(base or {}).points[0].values
  for key in draws:
    if key in fix:
      raise UserError(f'study: {key!r} is both drawn and in base')
  return Study(trials, dict(draws), fix, sampler, pruner, seed, objective, direction)


def uniform(low: float, high: float) -> Uniform:
  """Floats between `low` and `high`."""
  return Uniform(low, high, log=False)


def log_uniform(low: float, high: float) -> Uniform:
  """Floats between `low` and `high`, as many in each factor of ten."""
  return Uniform(low, high, log=True)


def int_uniform(low: int, high: int, *, log: bool = False) -> IntUniform:
  """Whole numbers from `low` to `high`, both included."""
  return IntUniform(low, high, log)


def choice(values: Iterable[Any]) -> Choice:
  """One of `values`."""
  return Choice(tuple(_plain('choice', value) for value in values))


def _times(points: Iterable[Point], space: Space) -> list[Point]:
  return [_joined(pair) for pair in itertools.product(points, space)]


def _joined(points: Iterable[Point]) -> Point:
  """One point with what all of them set."""
  values: dict[str, Any] = {}
  names, quiet = [], set[str]()
  for point in points:
    for key, value in point.values.items():
      if key in values and not _same(values[key], value):
        raise UserError(f'one run would have {key}={values[key]!r} and {key}={value!r}')
      values[key] = value
    names += [point.name] if point.name else []
    quiet |= point.quiet
  return Point(values, ','.join(names) or None, frozenset(quiet))


def _merged(points: Iterable[Point]) -> Space:
  """Without those that set the same as an earlier one; of two names for the same none can be chosen.

  Which keys a name leaves out stays as the earlier one has it, unless it takes a name over.
  """
  kept: dict[Any, Point] = {}
  for point in points:
    identity = tuple(sorted((key, repr(value)) for key, value in point.values.items()))
    first = kept.setdefault(identity, point)
    if first.name is None and point.name is not None:
      kept[identity] = dataclasses.replace(first, name=point.name, quiet=first.quiet | point.quiet)
    elif point.name not in (None, first.name):
      raise UserError(f'{first.name!r} and {point.name!r} set the same: {dict(point.values)}')
  return Space(tuple(kept.values()))


def _same(one: Any, other: Any) -> bool:
  return type(one) is type(other) and one == other


def _key(key: Any) -> str:
  if not isinstance(key, str) or not re.fullmatch(r'\w+(\.\w+)*', key):
    raise UserError(f'{key!r} is no key of a config: want one such as optim.learning_rate')
  return key


def _plain(key: str, value: Any) -> Any:
  """`value` as Python's own immutable kind: lists become tuples, numpy's numbers Python's."""
  if hasattr(value, 'item') and getattr(value, 'ndim', None) == 0:
    value = value.item()
  if isinstance(value, list | tuple):
    return tuple(_plain(key, item) for item in value)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise UserError(
    f'{key}={value!r} is {type(value).__name__}; want a number, text, true or false, None, a list'
  )


def _check_draws(word: str, draws: Any) -> None:
  if not isinstance(draws, Mapping) or not draws:
    raise UserError(f'{word}(count, {draws!r}): want {{key: distribution}}')
  for key, distribution in draws.items():
    _key(key)
    if not isinstance(distribution, Distribution):
      raise UserError(
        f'{word}: {key}={distribution!r} is no distribution: want s.log_uniform, s.uniform, s.int_uniform or '
        's.choice'
      )
