"""CRCs of pieces, joined, are zlib's of the whole."""

import itertools
import random
import zlib

from llamax.convert.crc32 import Pieces, joined

CONTENT = random.Random(0).randbytes(5003)


def test_any_cut_gives_the_same():
  rng = random.Random(1)
  for _ in range(20):
    cuts = sorted({0, len(CONTENT), *rng.choices(range(len(CONTENT)), k=rng.randrange(5))})
    parts = [CONTENT[a:b] for a, b in itertools.pairwise(cuts)]
    assert joined((len(part), zlib.crc32(part)) for part in parts) == zlib.crc32(CONTENT)


def test_lengths_beyond_32_bits():
  """Zeros behind a content: 2^33 of them are 2 times 2^32, whatever a CRC is."""
  first, zeros = (3, zlib.crc32(b'abc')), (1 << 20, zlib.crc32(bytes(1 << 20)))
  many = (1 << 33, joined([zeros] * (1 << 13)))
  half = (1 << 32, joined([zeros] * (1 << 12)))
  assert joined([first, many]) == joined([first, half, half])


def test_pieces_come_in_any_order_again_too():
  pieces = Pieces()
  for a, b in ((3000, 5003), (0, 1000), (1000, 3000), (0, 1000)):
    pieces.add('x', a, b - a, zlib.crc32(CONTENT[a:b]))
  assert pieces.whole('x', 5003) == zlib.crc32(CONTENT)


def test_a_gap_or_an_overlap_is_no_whole():
  pieces = Pieces()
  pieces.add('x', 0, 10, 1)
  assert pieces.whole('x', 20) is None
  pieces.add('x', 5, 15, 1)
  assert pieces.whole('x', 20) is None
  assert pieces.whole('y', 20) is None
