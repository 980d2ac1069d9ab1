"""A pickle's values are what Python's own pickle would give; whatever would run something is refused."""

import collections
import pickle
import pickletools

import pytest

from llamax.convert import pickled
from llamax.convert.errors import FormatError
from llamax.convert.pickled import Call, Mapping, Name, Reference

PLAIN = {
  'a': [1, 255, 256, 65535, 65536, -1, 2**31, 2**40, -(2**40), True, False, None, 1.5],
  'ü' * 300: ('x', (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
  'again': ['x', 'x', ['x']],
  7: {'deep': collections.OrderedDict(z=1, y=2)},
}


def load(raw, allowed=lambda name: True):
  return pickled.load(raw, 'some.pth', allowed)


def refused(raw, words, allowed=lambda name: True):
  with pytest.raises(FormatError, match=words) as error:
    load(raw, allowed)
  assert error.value.field == 'data.pkl' and error.value.file == 'some.pth'


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_the_same_values_as_pickle(protocol):
  raw = pickle.dumps(PLAIN, protocol)
  assert load(raw) == PLAIN
  assert load(pickletools.optimize(raw)) == PLAIN


def test_what_is_shared_stays_one_object():
  inner = [1]
  first, second = load(pickle.dumps([inner, inner], 2))
  assert first is second


@pytest.mark.parametrize('protocol', [2, 4])
def test_names_and_calls_stay_what_they_are(protocol):
  value = load(pickle.dumps(collections.Counter, protocol))
  assert value == Name('collections', 'Counter')
  call = load(pickle.dumps(slice(1, 2), protocol))
  assert isinstance(call, Call) and call.name.name == 'slice' and call.args == (1, 2, None)


def test_an_ordered_dict_with_its_metadata():
  """As nn.Module.state_dict() leaves it."""
  ordered = collections.OrderedDict(a=1)
  ordered._metadata = {'': {'version': 1}}
  value = load(pickle.dumps(ordered, 2))
  assert value == {'a': 1} and value.ordered
  ordered.other = 3
  refused(pickle.dumps(ordered, 2), 'not _metadata')


def test_a_reference():
  value = load(b'\x80\x02K\x01K\x02\x86Q.')
  assert isinstance(value, Reference) and value.value == (1, 2)


def test_only_allowed_names():
  raw = pickle.dumps(collections.Counter, 2)
  assert load(raw, lambda name: name == Name('collections', 'Counter'))
  refused(raw, r'names collections.Counter, .*neither imported nor run', lambda name: False)


RUNS = {
  'INST': b'(ios\nsystem\n.',
  'OBJ': b'(cos\nsystem\no.',
  'NEWOBJ': b'cos\nsystem\n)\x81.',
  'NEWOBJ_EX': b'cos\nsystem\n)}\x92.',
  'EXT1': b'\x82\x01.',
  'EXT2': b'\x83\x01\x00.',
  'EXT4': b'\x84\x01\x00\x00\x00.',
  'PERSID': b'Pos\n.',
  'NEXT_BUFFER': b'\x97.',
}


@pytest.mark.parametrize('opcode', RUNS)
def test_opcodes_that_run_something(opcode):
  refused(b'\x80\x02' + RUNS[opcode], f'opcode {opcode}, ')


BROKEN = {
  'nothing': (b'', 'no pickle protocol'),
  'protocol 0': (pickle.dumps([1], 0), 'no pickle protocol'),
  'protocol 6': (b'\x80\x06N.', 'no pickle protocol'),
  'no end': (b'\x80\x02N', 'cut off'),
  'empty stack': (b'\x80\x02.', 'something left'),
  'two values': (b'\x80\x02NN.', 'something left'),
  'bytes behind': (b'\x80\x02N.N', 'something left'),
  'a mark as value': (b'\x80\x02(.', 'mark'),
  'a mark remembered': (b'\x80\x02(q\x00.', 'mark'),
  'a mark in a tuple': (b'\x80\x02(\x85.', 'mark'),
  'no mark': (b'\x80\x02Nt.', 'cut off'),
  'unknown memo': (b'\x80\x02h\x07.', 'never put'),
  'a text that is cut off': (b'\x80\x02X\xff\xff\xff\x7fabc.', 'cut off'),
  'a text that is no UTF-8': (b'\x80\x02X\x01\x00\x00\x00\xff.', 'UTF-8'),
  'a name that is cut off': (b'\x80\x02cos', 'cut off'),
  'a number that is cut off': (b'\x80\x02J\x00', 'cut off'),
  'a long integer': (b'\x80\x02\x8a\xff' + b'1' * 255 + b'.', 'integer of 255 bytes'),
  'a name of numbers': (b'\x80\x02K\x01K\x02\x93.', 'no text'),
  'a call of a text': (b'\x80\x02X\x01\x00\x00\x00a)R.', 'no name'),
  'a call with no tuple': (b'\x80\x02cos\nx\n]R.', 'no name'),
  'a call with a name for arguments': (b'\x80\x02cos\nx\ncos\nx\nR.', 'no name'),
  'an OrderedDict of something': (b'\x80\x02ccollections\nOrderedDict\n]\x85R.', 'OrderedDict made of'),
  'BUILD of a dict': (b'\x80\x02}}b.', 'attributes of an object'),
  'BUILD of a call': (b'\x80\x02cos\nx\n)R}b.', 'attributes of an object'),
  'items into a list': (b'\x80\x02]K\x01K\x02s.', 'no dict'),
  'half an item': (b'\x80\x02}(K\x01u.', 'no dict'),
  'a tuple as key': (b'\x80\x02})K\x01s.', 'neither text nor integer'),
  'a key twice': (b'\x80\x02}(K\x01NK\x01Nu.', 'twice'),
  'append to a tuple': (b'\x80\x02)Na.', 'no list'),
  'raw bytes': (b'\x80\x03C\x01a.', 'opcode 0x43'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_damaged_pickle(case):
  refused(*BROKEN[case])


def test_a_pickle_that_is_too_large():
  refused(b'\x80\x02' + b'N' * pickled.MAX_BYTES, 'at most')


def test_values_that_grow_without_end_take_no_time():
  """Each tuple holds the one before twice: 2^200 values to whoever walks, prints, compares or hashes them."""
  grow = b'\x80\x02)' + b'q\x00h\x00\x86' * 200
  assert isinstance(load(grow + b'.'), tuple)
  refused(grow + b'q\x00}h\x00Ns.', 'neither text nor integer')
  refused(grow + b'q\x00h\x00\x93.', 'no text')
  refused(grow + b'q\x00h\x00R.', 'no name')
  refused(b'\x80\x02}q\x00' + grow[2:] + b's.', 'cut off')


def test_a_value_in_itself():
  value = load(b'\x80\x02}q\x00K\x01h\x00s.')
  assert isinstance(value, Mapping) and value[1] is value
