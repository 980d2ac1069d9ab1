"""Damaged tokenizer files: each is refused with a UserError or used, in bounded time; this process lives on."""

import json
import random
import time

import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer, tokenizer_of_gguf
from llamax.data.tokenizers import gguf_values, llama2c, spelled
from llamax.data.tokenizers.probe import TEXTS
from tests.data.tokenizers import made

SECONDS = 60  # of a busy machine, for the child's five of processor time
_EXTREMES = (
  b'\0',
  b'\xff',
  b'\xff\xff\xff\x7f',
  b'\0\0\0\x80',
  b'"',
  b'}',
  b'[',
  b'-1',
  b'1e999',
  b'4294967296',
  b'\n',
)


def mutants(content, count, seed=0):
  rng = random.Random(seed)
  for _ in range(count):
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
      # Lengths, types, rules stand at both ends of these files.
      at = rng.choice((rng.randrange(len(changed)), rng.randrange(200), len(changed) - 1 - rng.randrange(200)))
      kind = rng.randrange(6)
      if kind == 0:
        changed[at] ^= 1 << rng.randrange(8)
      elif kind == 1:
        new = rng.choice(_EXTREMES)
        changed[at : at + len(new)] = new
      elif kind == 2:
        del changed[at : at + rng.choice((1, 2, 8, 1 << 20))]
      elif kind == 3:
        other = rng.randrange(len(changed))
        changed[at:at] = changed[other : other + rng.choice((1, 5, 64))]
      elif kind == 4:
        changed[at : at + 4] = rng.randbytes(4)
      else:
        changed[at] = rng.randrange(48, 58)
      changed = changed if len(changed) > 250 else changed + bytes(250)
    yield bytes(changed)


def json_mutants(document, count, seed=0):
  """Valid JSON with a value replaced, left out or said twice somewhere."""
  rng = random.Random(seed)
  values = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**32,
    1e308,
    '',
    'a',
    '▁',
    '\0',
    '(?:x+x+)+[yz]',
    '(',
    [],
    {},
    [[]],
    'Sequence',
  )
  for _ in range(count):
    changed = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 2))):
      where = changed
      while True:
        keys = list(where) if isinstance(where, dict) else range(len(where))
        key = rng.choice(keys)
        if isinstance(where[key], dict | list) and where[key] and rng.random() < 0.8:
          where = where[key]
          continue
        if rng.random() < 0.2:
          del where[key]
        elif rng.random() < 0.3 and isinstance(where, list):
          where.append(where[key])
        else:
          where[key] = rng.choice(values)
        break
      if not changed:
        break
    yield json.dumps(changed).encode()


def small_json():
  return made.byte_bpe('llama-bpe', [('<s>', True), ('</s>', True)], vocab_size=290)


# Name -> (tokenizers of each kind, how many) -> damaged files.
CASES = {
  'model': lambda opened, n: mutants(opened['llama'].model, n),
  'bytes of tokenizer.json': lambda opened, n: mutants(json.dumps(small_json()).encode(), n),
  'values of tokenizer.json': lambda opened, n: json_mutants(small_json(), n),
  'values of one with spaces': lambda opened, n: json_mutants(spelled.document_of(opened['llama']), n),
  'tokenizer.bin': lambda opened, n: mutants(llama2c.write(spelled.pieces_of(opened['llama']).pieces, 0), n),
  'ranks': lambda opened, n: mutants(made.llama3_ranks(vocab_size=290), n),
}


@pytest.fixture
def count(request):
  return {'quick': 100, 'ci': 2000, 'soak': 100_000}[request.config.getoption('--scale')]


def outcome(call):
  """1 when it could be used; one that is used does all that is asked of a tokenizer."""
  begun = time.monotonic()
  try:
    tok = call()
    for text in TEXTS:
      assert len(tok.decode(tok.encode(text))) < 1 << 20
    return 1
  except UserError as error:
    assert len(str(error)) < 2000 and '\0' not in str(error)
    return 0
  finally:
    assert time.monotonic() - begun < SECONDS


@pytest.mark.parametrize('name', CASES)
@pytest.mark.timeout(0)
def test_bytes(name, count, tmp_path, opened):
  used, path = 0, tmp_path / 'file'
  for content in CASES[name](opened, count):
    path.write_bytes(content)
    used += outcome(lambda: open_tokenizer(path))
  assert used < count


@pytest.mark.parametrize('name', ['llama', 'qwen'])
@pytest.mark.timeout(0)
def test_values_of_gguf(name, count, opened):
  values = gguf_values.to_values(opened[name], opened[name].vocab_size)
  for content in json_mutants(values, count):
    outcome(lambda content=content: tokenizer_of_gguf(json.loads(content)))


def test_mutants_are_many(opened):
  for name, make in CASES.items():
    assert len(set(make(opened, 20))) > 15, name
