"""JSON of a stranger."""

import pytest

from llamax.convert.errors import FormatError
from llamax.convert.json_file import Fields, read_json


@pytest.mark.parametrize(
  ('content', 'word'),
  [
    (b'[1]', 'want an object'),
    (b'{"a": 1, "a": 2}', 'twice'),
    (b'{"a": ', 'not JSON'),
    (b'\xff{}', 'not UTF-8'),
    (b'{"a": ' + b'[' * 100_000, 'nested too deeply'),
    (b'{"a": ' + b'[' * 80 + b']' * 80 + b'}', 'nested too deeply'),
    (b'x' * 2000, 'want at most'),
  ],
)
def test_refused(tmp_path, content, word):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(FormatError, match=word) as error:
    read_json(tmp_path / 'config.json', 1000 if len(content) == 2000 else 1 << 20)
  assert 'config.json' in str(error.value)


def test_a_number_of_a_million_digits_costs_nothing(tmp_path):
  (tmp_path / 'c.json').write_bytes(b'{"vocab_size": ' + b'9' * 1_000_000 + b'}')
  with pytest.raises(FormatError, match='vocab_size'):
    Fields('c.json', read_json(tmp_path / 'c.json')).count('vocab_size')


@pytest.mark.parametrize('value', [True, 0, -1, 1.5, '7', None, 1 << 40, [], float('nan')])
def test_what_is_no_count(value):
  with pytest.raises(FormatError, match=r'c\.json: n'):
    Fields('c.json', {'n': value}).count('n')


def test_a_pipe_is_not_waited_for(tmp_path):
  import os

  os.mkfifo(tmp_path / 'config.json')
  with pytest.raises(FormatError, match='no regular file'):
    read_json(tmp_path / 'config.json')
