"""Reads the values in a pickle without running anything: an interpreter of its own for a short list of opcodes.

Python's pickle module is not used. A name in the pickle is looked up nowhere: it stays a `Name`, a call of it
stays a `Call`; whoever asked decides which ones have a meaning. The opcodes are those that protocols 2 to 5
write for dicts of tensors (Lib/pickletools.py says what each does).
"""

import dataclasses
import os
import struct
from collections.abc import Callable
from typing import Any

from llamax.convert.errors import FormatError, printable

MAX_BYTES = 1 << 20  # a tensor takes about 200; every byte may become an object of up to 64 bytes
_FIELD = 'data.pkl'


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
  """What pickle would import."""

  module: str
  name: str

  def __str__(self) -> str:
    return printable(f'{self.module}.{self.name}')


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Reference:
  """A persistent id: what is kept outside of the pickle."""

  value: Any


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Call:
  """What pickle would call. Never called here."""

  name: Name
  args: tuple


class Mapping(dict):
  """A dict of the pickle; `ordered` where it was an OrderedDict."""

  __slots__ = ('ordered',)

  def __init__(self, ordered: bool):
    super().__init__()
    self.ordered = ordered


class _Mark:
  pass


_MARK = _Mark()
_NUMBERS = {kind: struct.Struct('<' + kind) for kind in 'BHIiQ'}
_ORDERED = Name('collections', 'OrderedDict')


def load(raw: bytes, path: os.PathLike, allowed: Callable[[Name], bool]) -> Any:
  """The value that `raw` describes: None, bool, int, float, str, tuple, list, Mapping, Name, Call, Reference.

  Values may be shared, may contain themselves: walk them with a bound.

  Args:
    path: for messages.
    allowed: whether a name may appear at all.

  Raises:
    FormatError: an opcode or a name outside of the list, or a damaged pickle.
  """
  if len(raw) > MAX_BYTES:
    raise FormatError(path, _FIELD, f'has {len(raw):,} bytes; at most {MAX_BYTES:,} are read')
  machine = _Machine(raw, path, allowed)
  try:
    return machine.run()
  except (IndexError, struct.error):
    raise machine.error('it is cut off, or takes more than it has put there') from None


class _Machine:
  """stack: values and marks. memo: number -> value, for values that are used again."""

  def __init__(self, raw: bytes, path: os.PathLike, allowed: Callable[[Name], bool]):
    self.raw, self.path, self.allowed = raw, path, allowed
    self.at = 0
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}

  def error(self, problem: str) -> FormatError:
    return FormatError(self.path, _FIELD, f'{problem} (byte {self.at})')

  def run(self) -> Any:
    if self.raw[:1] != b'\x80' or self.raw[1:2] not in (b'\2', b'\3', b'\4', b'\5'):
      raise self.error('begins with no pickle protocol from 2 to 5')
    self.at = 2
    while True:
      opcode = self.raw[self.at]
      self.at += 1
      if opcode == 0x2E:  # STOP
        break
      act = _ACTIONS.get(opcode)
      if act is None:
        known = _REFUSED.get(opcode, f'{opcode:#04x}')
        raise self.error(f'has the opcode {known}, which no file of tensors needs; nothing of it was run')
      act(self)
    if len(self.stack) != 1 or self.at != len(self.raw):
      raise self.error('has something left at its end')
    return self.pop()

  def pop(self) -> Any:
    value = self.stack.pop()
    if value is _MARK:
      raise self.error('takes a mark for a value')
    return value

  def number(self, kind: str) -> Any:
    form = _NUMBERS[kind]
    (value,) = form.unpack_from(self.raw, self.at)
    self.at += form.size
    return value

  def text(self, size: int) -> str:
    if self.at + size > len(self.raw):
      raise self.error(f'a text of {size} bytes is cut off')
    part = self.raw[self.at : self.at + size]
    self.at += size
    try:
      return part.decode()
    except UnicodeDecodeError:
      raise self.error('a text is no UTF-8') from None

  def line(self) -> str:
    end = self.raw.find(b'\n', self.at)
    if end < 0:
      raise self.error('a name is cut off')
    text = self.text(end - self.at)
    self.at = end + 1
    return text

  def since_mark(self) -> list[Any]:
    """Everything above the topmost mark, taken off with it."""
    values: list[Any] = []
    while (value := self.stack.pop()) is not _MARK:
      values.append(value)
    return values[::-1]

  def long(self) -> None:
    size = self.number('B')
    if size > 8 or self.at + size > len(self.raw):
      raise self.error(f'an integer of {size} bytes: more than any size in a file')
    self.stack.append(int.from_bytes(self.raw[self.at : self.at + size], 'little', signed=True))
    self.at += size

  def take(self, count: int) -> None:
    values = [self.pop() for _ in range(count)]
    self.stack.append(tuple(values[::-1]))

  def put(self, index: int) -> None:
    value = self.stack[-1]
    if value is _MARK:
      raise self.error('remembers a mark')
    self.memo[index] = value

  def get(self, index: int) -> None:
    if index not in self.memo:
      raise self.error(f'uses value {index}, which it never put there')
    self.stack.append(self.memo[index])

  def name(self, module: Any, name: Any) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
      raise self.error('a name that is no text')
    found = Name(module, name)
    if not self.allowed(found):
      raise self.error(f'names {found}, which plain tensors do not need; it was neither imported nor run')
    self.stack.append(found)

  def stack_name(self) -> None:
    name, module = self.pop(), self.pop()
    self.name(module, name)

  def reduce(self) -> None:
    args, function = self.pop(), self.pop()
    # By type first: comparing values of a pickle could take for ever.
    if not isinstance(function, Name) or not isinstance(args, tuple):
      raise self.error('calls what is no name')
    if function == _ORDERED:
      if args:
        raise self.error('an OrderedDict made of something')
      self.stack.append(Mapping(ordered=True))
    else:
      self.stack.append(Call(function, args))

  def build(self) -> None:
    """nn.Module.state_dict() hangs the versions of its modules on the dict: nothing that a tensor needs."""
    state, target = self.pop(), self.stack[-1]
    if not (isinstance(target, Mapping) and target.ordered and isinstance(state, Mapping)):
      raise self.error('sets the attributes of an object')
    if list(state) != ['_metadata']:
      raise self.error('sets attributes of a dict that are not _metadata')

  def set_items(self, flat: list[Any]) -> None:
    target = self.stack[-1]
    if not isinstance(target, Mapping) or len(flat) % 2:
      raise self.error('puts items into what is no dict')
    for key, value in zip(flat[::2], flat[1::2], strict=True):
      # Any other key would be hashed, which a nest of shared tuples makes endless.
      if not isinstance(key, str | int):
        raise self.error('a key that is neither text nor integer')
      if key in target:
        raise self.error(f'the key {printable(key)!r} is there twice')
      target[key] = value

  def set_item(self) -> None:
    value, key = self.pop(), self.pop()
    self.set_items([key, value])

  def extend(self, values: list[Any]) -> None:
    if type(self.stack[-1]) is not list:
      raise self.error('appends to what is no list')
    self.stack[-1].extend(values)


_ACTIONS: dict[int, Callable[[_Machine], Any]] = {
  ord('('): lambda m: m.stack.append(_MARK),
  ord('N'): lambda m: m.stack.append(None),
  0x88: lambda m: m.stack.append(True),
  0x89: lambda m: m.stack.append(False),
  ord('J'): lambda m: m.stack.append(m.number('i')),
  ord('K'): lambda m: m.stack.append(m.number('B')),
  ord('M'): lambda m: m.stack.append(m.number('H')),
  0x8A: lambda m: m.long(),
  ord('G'): lambda m: m.stack.append(_big_endian(m)),
  ord('X'): lambda m: m.stack.append(m.text(m.number('I'))),
  0x8C: lambda m: m.stack.append(m.text(m.number('B'))),
  ord(')'): lambda m: m.stack.append(()),
  ord('t'): lambda m: m.stack.append(tuple(m.since_mark())),
  0x85: lambda m: m.take(1),
  0x86: lambda m: m.take(2),
  0x87: lambda m: m.take(3),
  ord(']'): lambda m: m.stack.append([]),
  ord('a'): lambda m: m.extend([m.pop()]),
  ord('e'): lambda m: m.extend(m.since_mark()),
  ord('}'): lambda m: m.stack.append(Mapping(ordered=False)),
  ord('s'): lambda m: m.set_item(),
  ord('u'): lambda m: m.set_items(m.since_mark()),
  ord('q'): lambda m: m.put(m.number('B')),
  ord('r'): lambda m: m.put(m.number('I')),
  0x94: lambda m: m.put(len(m.memo)),
  ord('h'): lambda m: m.get(m.number('B')),
  ord('j'): lambda m: m.get(m.number('I')),
  ord('c'): lambda m: m.name(m.line(), m.line()),
  0x93: lambda m: m.stack_name(),
  ord('R'): lambda m: m.reduce(),
  ord('b'): lambda m: m.build(),
  ord('Q'): lambda m: m.stack.append(Reference(m.pop())),
  # A frame's size only helps reading ahead.
  0x95: lambda m: m.number('Q'),
}

# Those that would run something, for messages.
_REFUSED = {
  ord('i'): 'INST',
  ord('o'): 'OBJ',
  0x81: 'NEWOBJ',
  0x92: 'NEWOBJ_EX',
  0x82: 'EXT1',
  0x83: 'EXT2',
  0x84: 'EXT4',
  ord('P'): 'PERSID',
  0x97: 'NEXT_BUFFER',
  0x98: 'READONLY_BUFFER',
}


def _big_endian(machine: _Machine) -> float:
  (value,) = struct.unpack_from('>d', machine.raw, machine.at)
  machine.at += 8
  return value
