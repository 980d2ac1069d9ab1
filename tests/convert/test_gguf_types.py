"""Every type of block gives ggml's numbers bit for bit, a few rows at a time too."""

import warnings

import numpy as np
import pytest

from llamax.convert.gguf_types import BY_NAME, KINDS, OF_DTYPE, entry, pack_q8_0, unpack
from llamax.convert.source import File
from llamax.core.errors import UserError

ROWS, COLUMNS = 5, 512
QUANTISED = [kind.name for kind in KINDS.values() if kind.quantised]


def blocks(kind, rows=ROWS, columns=COLUMNS, seed=0):
  """Any bytes are blocks."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (rows, kind.num_bytes(columns)), dtype=np.uint8)


def test_sizes_are_those_of_ggml():
  gguf = pytest.importorskip('gguf')
  for kind in KINDS.values():
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert (kind.code, kind.count, kind.size) == (theirs.value, *gguf.GGML_QUANT_SIZES[theirs])


def test_a_dtype_has_its_type():
  assert {name: kind.name for name, kind in OF_DTYPE.items()} == {
    'float32': 'F32',
    'float16': 'F16',
    'bfloat16': 'BF16',
  }


@pytest.mark.parametrize('name', QUANTISED)
def test_rows_are_those_of_the_whole(tmp_path, name):
  kind = BY_NAME[name]
  packed = blocks(kind)
  path = tmp_path / 'tensor'
  path.write_bytes(b'before' + packed.tobytes() + b'after')
  found = entry(File(path), 6, kind, (ROWS, COLUMNS), 'w')
  assert (found.dtype, found.shape) == (np.float32, (ROWS, COLUMNS))
  whole = unpack(packed, kind)
  for start, stop in ((0, ROWS), (0, 1), (2, 4), (4, 5)):
    np.testing.assert_array_equal(found.read(start, stop).view(np.uint32), whole[start:stop].view(np.uint32))


def ggml_q4_k(block):
  """ggml-quants.c, dequantize_row_q4_K, one number at a time."""
  d, dmin = (float(x) for x in block[:4].view(np.float16))
  scales, qs, out = block[4:16], block[16:], []

  def scale_min(j):
    if j < 4:
      return scales[j] & 63, scales[j + 4] & 63
    return (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4, (scales[j + 4] >> 4) | (scales[j] >> 6) << 4

  for pair in range(4):
    part = qs[32 * pair : 32 * pair + 32]
    for half in range(2):
      scale, least = scale_min(2 * pair + half)
      nibbles = part & 15 if half == 0 else part >> 4
      out += [np.float32(d * int(scale)) * int(q) - np.float32(dmin * int(least)) for q in nibbles]
  return np.array(out, np.float32)


def test_q4_k_against_its_definition():
  kind = BY_NAME['Q4_K']
  packed = blocks(kind, 7, 256)
  packed[:, :4] = np.array([0.013, 0.07], np.float16).view(np.uint8)
  wanted = np.stack([ggml_q4_k(block) for block in packed])
  np.testing.assert_array_equal(unpack(packed, kind), wanted)


def test_q8_0_against_its_definition():
  rng = np.random.default_rng(0)
  numbers = rng.standard_normal((6, 96)).astype(np.float32) * 10.0 ** rng.integers(-3, 3, (6, 1)).astype(
    np.float32
  )
  numbers[0, :32] = 0
  packed = pack_q8_0(numbers, 'w')
  assert packed.shape == (6, 3 * 34)
  for row, found in zip(numbers, packed, strict=True):
    for block, bytes_ in zip(row.reshape(-1, 32), found.reshape(-1, 34), strict=True):
      d = np.abs(block).max() / np.float32(127)
      inverse = np.float32(1) / d if d else np.float32(0)
      assert bytes_[:2].view(np.float16)[0] == np.float16(d)
      scaled = block * inverse
      # C's roundf: halves away from zero.
      np.testing.assert_array_equal(bytes_[2:].view(np.int8), np.trunc(scaled + np.copysign(0.5, scaled)))
  again = unpack(packed, BY_NAME['Q8_0'])
  assert np.abs(again - numbers).max() <= np.abs(numbers).max() / 127


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e9])
def test_q8_0_refuses_what_it_cannot_say(bad):
  numbers = np.ones((1, 32), np.float32)
  numbers[0, 3] = bad
  with pytest.raises(UserError, match=r'blk\.0.*Q8_0'):
    pack_q8_0(numbers, 'blk.0')


def test_tiny_numbers_are_packed_in_silence():
  numbers = np.full((1, 32), 1e-42, np.float32)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert not unpack(pack_q8_0(numbers, 'w'), BY_NAME['Q8_0']).any()
