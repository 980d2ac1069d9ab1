"""The report says what was made, what was dropped, what is missing."""

from llamax.data.report import render


def manifest(splits, **changes):
  rows = {
    name: {'documents': d, 'bytes': b, 'tokens': t, 'unknown': 0, 'files': [{}]}
    for name, (d, b, t) in splits.items()
  }
  values = {
    'splits': rows,
    'types': {'.txt': {'documents': 1, 'bytes': 2, 'tokens': 1}},
    'dropped': {},
    'vocab_size': 300,
    'tokenizer': {'sha256': 'abcdef0123456789'},
    'seconds': {'scan': 0.5, 'tokens': 1.25},
  }
  return values | changes


def test_table_and_time():
  text = render('d', manifest({'train': (1200, 9000, 3000), 'validation': (3, 100, 40)}), False, 2.0)
  lines = [line.split() for line in text.splitlines()]
  assert lines[1] == ['train', '1,200', '9,000', '3,000', '3.000', '1']
  assert lines[2] == ['validation', '3', '100', '40', '2.500', '1']
  assert 'dropped: nothing' in text and 'd is ready (2.0 s: scan 0.5 s, tokens 1.2 s)' in text
  assert 'no validation' not in text and '<unk>' not in text and 'by type' not in text


def test_types_drops_unknown():
  types = {f'.{i}': {'documents': 1, 'bytes': 2, 'tokens': 1} for i in range(14)}
  made = manifest({'train': (2, 9, 3)}, types=types, dropped={'empty': 2, 'binary': 1})
  made['splits']['train']['unknown'] = 5
  text = render('d', made, True, 0.1)
  assert 'dropped: 2 empty, 1 binary' in text
  assert '... 2 more types' in text and '.11' in text and '.12' not in text
  assert '5 tokens are <unk>' in text
  assert 'd is complete: nothing to do' in text


def test_missing_validation_says_why():
  assert 'there is one document' in render('d', manifest({'train': (1, 9, 3)}), False, 1.0)
  assert 'validation_fraction is 0' in render('d', manifest({'train': (2, 9, 3)}), False, 1.0)
