"""A tokenizer library that panics, hangs or eats the memory does so in another process."""

import json
import time
from pathlib import Path

import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from llamax.data.tokenizers import isolated
from tests.data.tokenizers import made


def spoilt(**fields):
  document = made.byte_bpe('gpt-2', [('<|endoftext|>', True)])
  for name, value in fields.items():
    (document if name in document else document['model'])[name] = value
  return document


# Each of these makes tokenizers 0.23 panic, which is no Exception.
PANICS = {
  'precompiled': {'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}},
  'prefix': {'continuing_subword_prefix': 'aaaaaaa'},
  'backtracking': {
    'pre_tokenizer': {
      'type': 'Split',
      'pattern': {'Regex': '(?:x+x+)+[yz]'},
      'behavior': 'Isolated',
      'invert': False,
    },
    'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True},
  },
}


@pytest.mark.parametrize('name', PANICS)
def test_a_panic(tmp_path, name):
  (tmp_path / 'tokenizer.json').write_text(json.dumps(spoilt(**PANICS[name])))
  with pytest.raises(
    UserError, match=r'is no tokenizer\.json that the library tokenizers takes \(PanicException: '
  ):
    open_tokenizer(tmp_path)


@pytest.mark.parametrize(
  'content',
  [b'{"a": [' + b'[],' * 4_000_000 + b'[]]}', b'{"model": ' + b'{"a":' * 2_000_000],
)
def test_a_bomb(tmp_path, monkeypatch, content):
  monkeypatch.setattr(isolated, '_MEMORY', 250 << 20)
  (tmp_path / 'tokenizer.json').write_bytes(content)
  begun = time.monotonic()
  with pytest.raises(UserError):
    open_tokenizer(tmp_path)
  assert time.monotonic() - begun < 60


def test_what_was_good_once_is_remembered(monkeypatch, opened):
  content = opened['llama'].model
  asked = []
  monkeypatch.setattr(isolated, '_ask', lambda *args: asked.append(args) or 'good')
  isolated.require_harmless(content, 'sentencepiece', 'x')
  assert not asked
  isolated.require_harmless(content + b' ', 'sentencepiece', 'x')
  isolated.require_harmless(content + b' ', 'sentencepiece', 'x')
  assert len(asked) == 1


def test_what_was_bad_is_not(monkeypatch):
  monkeypatch.setattr(isolated, '_ask', lambda *args: 'bad\n\x1b[31m')
  for _ in range(2):
    with pytest.raises(UserError, match="tokenizer 'x' is not a SentencePiece model"):
      isolated.require_harmless(b'never seen', 'sentencepiece', 'x')


def test_memory_that_cannot_be_written_is_no_fault(monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('LLAMAX_CACHE', str(tmp_path / 'file'))
  monkeypatch.setattr(isolated, '_ask', lambda *args: 'good')
  isolated.require_harmless(b'new', 'json', 'x')


@pytest.mark.parametrize(
  ('program', 'message'),
  [
    ('os.kill(os.getpid(), signal.SIGSEGV)', 'its process ended with -11'),
    ('time.sleep(99)', 'nothing for 1 s'),
    ('pass', 'its process ended with 0'),
  ],
)
def test_a_process_that_says_nothing(monkeypatch, tmp_path, program, message):
  (tmp_path / 'child.py').write_text(f'import os, signal, time\n{program}')
  monkeypatch.setattr(isolated, '__file__', str(tmp_path / 'isolated.py'))
  monkeypatch.setattr(isolated, '_CPU_SECONDS', 1)
  monkeypatch.setattr(isolated, '_WAIT_FACTOR', 1)
  with pytest.raises(UserError, match=message):
    isolated.require_harmless(b'another', 'json', 'x')


def test_the_processor_is_lent_for_a_time(monkeypatch, tmp_path):
  child = tmp_path / 'child.py'
  source = Path(isolated.__file__).with_name('child.py').read_text()
  child.write_text(source.replace('import tokenizers\n', 'while True: pass\n'))
  monkeypatch.setattr(isolated, '__file__', str(tmp_path / 'isolated.py'))
  monkeypatch.setattr(isolated, '_CPU_SECONDS', 1)
  with pytest.raises(UserError, match=r'its process ended with -\d+ \(crash, over 1 s'):
    isolated.require_harmless(b'yet another', 'json', 'x')
