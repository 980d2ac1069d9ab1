"""Stop strings, half characters, reasons to end."""

import itertools

import pytest

from llamax.data.tokenizer import StreamDecoder
from llamax.generate.text import Continuation

EOS = 0


class ByteTokenizer:
  """Id n + 1 is byte n; 0 ends a text."""

  vocab_size = 257
  eos_id = EOS

  def stream(self):
    return StreamDecoder([b'', *(bytes([n]) for n in range(256))])


def ids_of(text):
  return [byte + 1 for byte in text.encode()]


def grow(ids, stop=(), most=1000):
  """(text pushed out with each id, the continuation)."""
  text = Continuation(ByteTokenizer(), stop, most)
  return [text.push(token, -float(i)) for i, token in enumerate(ids)], text


def test_text_comes_with_its_token():
  pieces, text = grow([*ids_of('abc'), EOS])
  assert pieces == ['a', 'b', 'c', '']
  done = text.completion()
  assert (done.text, done.finish) == ('abc', 'eos')
  assert done.ids == (98, 99, 100, EOS)
  assert done.logprobs == (0.0, -1.0, -2.0, -3.0)


def test_characters_come_whole():
  pieces, _ = grow(ids_of('aé→'))
  assert pieces == ['a', '', 'é', '', '', '→']


def test_half_a_character_at_the_end_is_replaced():
  pieces, text = grow([*ids_of('é')[:1], EOS])
  assert pieces == ['', '�']
  assert text.completion().text == '�'


def test_ends_before_the_stop_string():
  pieces, text = grow(ids_of('one\n\ntwo'), stop=['\n\n'])
  assert pieces == ['o', 'n', 'e', '', '', '', '', '']  # The first newline may begin the stop string.
  done = text.completion()
  assert (done.text, done.finish) == ('one', 'stop')
  assert done.ids == tuple(ids_of('one\n\n'))


def test_what_was_held_back_comes_when_it_is_no_stop_string():
  pieces, text = grow([*ids_of('aab!aa'), EOS], stop=['aac'])
  assert pieces == ['', '', 'aab', '!', '', '', 'aa']
  assert text.completion().finish == 'eos'


def test_the_first_of_several_stop_strings_counts():
  # 'cd' is complete with the d, 'bcde' would be with the e.
  assert grow(ids_of('abcdef'), stop=['bcde', 'cd'])[1].completion().text == 'ab'


@pytest.mark.parametrize('stop', [''.join(s) for n in (1, 2, 3) for s in itertools.product('ab', repeat=n)])
def test_any_stop_string_cuts_where_find_does(stop):
  for letters in itertools.product('ab', repeat=6):
    word = ''.join(letters)
    pieces, text = grow([*ids_of(word), EOS], stop=[stop])
    wanted = word.split(stop)[0]
    done = text.completion()
    assert (done.text, done.finish) == (wanted, 'stop' if stop in word else 'eos')
    assert ''.join(pieces) == wanted


def test_length():
  pieces, text = grow(ids_of('abcdef'), stop=['cx'], most=3)
  assert pieces == ['a', 'b', 'c', '', '', '']
  assert text.completion().finish == 'length'
  assert len(text.completion().ids) == 3


def test_end_of_text_as_the_last_token_is_eos():
  assert grow([*ids_of('ab'), EOS], most=3)[1].completion().finish == 'eos'
