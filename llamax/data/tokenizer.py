"""A SentencePiece tokenizer that gives every byte of a text back."""

import codecs
import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece as spm

from llamax.core.errors import UserError
from llamax.data.format import write_whole

# SentencePiece writes a space inside a piece as this character.
_SPACE = '\u2581'
# Longer texts are encoded in blocks: the time and memory of one call grow faster than its text.
_BLOCK_CHARS = 1 << 20


class Tokenizer:
  """Text <-> ids of one SentencePiece model.

  byte_lengths: np.int32 [V], UTF-8 bytes that each id stands for; control ids 0, byte pieces 1. For a model
  made by `llamax prepare` (no dummy prefix, identity normalisation, byte fallback) the sum over a text's ids
  is exactly len(text.encode()).
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the model file; UserError when it is missing, is no SentencePiece model, or lacks <s> or </s>."""
    self.path = os.path.expanduser(os.fspath(path))
    try:
      with open(self.path, 'rb') as f:
        self._model = f.read()
    except OSError as error:
      raise UserError(f'tokenizer {self.path!r} cannot be read: {error.strerror}') from None
    try:
      if not self._model:
        raise RuntimeError('the file is empty')
      self._sp = spm.SentencePieceProcessor(model_proto=self._model)
      self.vocab_size: int = self._sp.vocab_size()
    except (RuntimeError, OSError):
      raise UserError(
        f'tokenizer {self.path!r} is not a SentencePiece model; want a .model file as llamax prepare or '
        'sentencepiece writes it'
      ) from None
    self.unk_id: int = self._sp.unk_id()
    self.bos_id: int = self._sp.bos_id()
    self.eos_id: int = self._sp.eos_id()
    if min(self.bos_id, self.eos_id) < 0:
      raise UserError(
        f'tokenizer {self.path!r} has bos id {self.bos_id}, eos id {self.eos_id}: documents are cut by both; '
        'want a model trained with bos_id, eos_id of 0 or more'
      )
    # A pad id only fills places without loss, so any id will do for a model that has none.
    self.pad_id: int = max(self._sp.pad_id(), 0)
    self.fingerprint: str = hashlib.sha256(self._model).hexdigest()
    self._piece_bytes = [self._bytes_of(i) for i in range(self.vocab_size)]
    self.byte_lengths = np.array([len(b) for b in self._piece_bytes], np.int32)
    self.byte_lengths[self.unk_id] = 0
    self._space_ids = [self._sp.piece_to_id(f'<0x{byte:02X}>') for byte in _SPACE.encode()]
    self._has_bytes = self.unk_id not in self._space_ids
    # LLaMA's own models put a space before every text; decoding takes it off again.
    self._adds_space = b''.join(self._piece_bytes[i] for i in self._sp.encode('a')) == b' a'

  def _bytes_of(self, token: int) -> bytes:
    if self._sp.is_control(token):
      return b''
    if self._sp.is_unknown(token):
      return '\ufffd'.encode()
    piece = self._sp.id_to_piece(token)
    if self._sp.is_byte(token):
      return bytes([int(piece[3:-1], 16)])
    return piece.replace(_SPACE, ' ').encode()

  def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
    """The ids of `text`; UserError when it holds half of a surrogate pair, which no UTF-8 can spell."""
    ids = [self.bos_id] if bos else []
    try:
      for block in _blocks(text):
        ids += self._encode_block(block)
    except UnicodeEncodeError as error:
      raise UserError(f'text cannot be written as UTF-8: {error.reason} at character {error.start}') from None
    if eos:
      ids.append(self.eos_id)
    return ids

  def _encode_block(self, text: str) -> list[int]:
    if not self._has_bytes or self._adds_space or _SPACE not in text:
      return self._sp.encode(text.encode())
    # SentencePiece would read the character that it uses for spaces as a space: spell it in bytes instead.
    ids: list[int] = []
    for index, part in enumerate(text.split(_SPACE)):
      ids += (self._space_ids if index else []) + self._sp.encode(part.encode())
    return ids

  def save(self, path: str | os.PathLike) -> None:
    """Writes the very bytes of the model, whole or not at all."""
    write_whole(os.fspath(path), lambda f: f.write(self._model))

  def token_bytes(self, token: int) -> bytes:
    """The UTF-8 bytes that an id stands for; a character may be spread over several ids."""
    return self._piece_bytes[token]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; control ids give nothing, bytes that are not UTF-8 give U+FFFD."""
    text = b''.join(self._piece_bytes[int(i)] for i in ids).decode('utf-8', errors='replace')
    return text[1:] if self._adds_space and text.startswith(' ') else text

  def stream(self) -> 'StreamDecoder':
    """A decoder for ids that arrive one by one."""
    return StreamDecoder(self._piece_bytes)


class StreamDecoder:
  """Turns ids into text as they come, holding back a character until all its bytes are there."""

  def __init__(self, piece_bytes: Sequence[bytes]):
    self._piece_bytes = piece_bytes
    self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')

  def push(self, token: int) -> str:
    """The text that `token` completes; '' while a character is unfinished."""
    return self._decoder.decode(self._piece_bytes[int(token)])

  def flush(self) -> str:
    """What is left at the end: U+FFFD for an unfinished character."""
    return self._decoder.decode(b'', final=True)


def _blocks(text: str) -> Iterable[str]:
  """`text` in pieces of at most _BLOCK_CHARS, each but the last ended by a newline where there is one."""
  start = 0
  while len(text) - start > _BLOCK_CHARS:
    newline = text.rfind('\n', start, start + _BLOCK_CHARS)
    end = newline + 1 if newline >= start else start + _BLOCK_CHARS
    yield text[start:end]
    start = end
  if start < len(text):
    yield text[start:]
