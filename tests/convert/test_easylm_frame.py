"""The bytes around an array are those of flax with msgpack."""

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest

from llamax.convert import easylm_frame
from llamax.core.errors import UserError


def theirs(key, array):
  """What EasyLM's save_train_state_to_file writes for one tensor."""
  return msgpack.Packer().pack((tuple(key.split('/')), flax.serialization.to_bytes(array)))


def ours(key, array):
  frame = easylm_frame.frame(key, array.dtype, array.shape)
  out, numbers = bytearray(frame.size), array.tobytes()
  for at, content in frame.headers:
    out[at : at + len(content)] = content
  first = 0
  for at, size in frame.pieces:
    out[at : at + size] = numbers[first : first + size]
    first += size
  assert first == len(numbers)
  return bytes(out)


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shape', [(1,), (2,), (5, 3), (127,), (128,), (300, 7), (2, 3, 4), (70_000,)])
def test_an_array_is_framed_as_by_flax(dtype, shape):
  array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
  key = 'transformer/h/11/attention/wq/kernel'
  assert ours(key, array) == theirs(key, array)


def test_all_lengths_of_headers(monkeypatch):
  """Extensions of 1 to 16 bytes have headers of their own; so have 2^8, 2^16 bytes."""
  for size in [*range(1, 40), *range(225, 260), *range(65_500, 65_540)]:
    array = np.zeros(size, np.dtype('u1'))
    assert ours('a/b', array) == theirs('a/b', array), size


@pytest.mark.parametrize('shape', [(9, 5), (4, 8, 3), (101,), (40, 13)])
def test_a_large_array_is_cut_as_by_flax(monkeypatch, shape):
  monkeypatch.setattr(flax.serialization, 'MAX_CHUNK_SIZE', 64)
  monkeypatch.setattr(easylm_frame, 'CHUNK_BYTES', 64)
  for dtype in (np.float32, ml_dtypes.bfloat16):
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    assert ours('lm_head/kernel', array) == theirs('lm_head/kernel', array)


def test_a_tensor_beyond_four_bytes_of_length_is_refused():
  frame = easylm_frame.frame('lm_head/kernel', np.dtype(np.float32), (8192, 128_256))  # the largest of 3.1 70B
  assert [size for _, size in frame.pieces] == [1 << 30] * 3 + [4 * 8192 * 128_256 - 3 * (1 << 30)]
  with pytest.raises(UserError, match=r'4,303,355,904 bytes.*--dtype'):
    easylm_frame.frame('lm_head/kernel', np.dtype(np.float32), (8192, 131_328))
