"""What every tokenizer can do, whatever kind of file it comes from."""

import abc
import codecs
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamax.core.errors import UserError
from llamax.data.format import TOKENIZER, write_bytes

# Many kinds write a space inside a piece as this character.
SPACE = '\u2581'
# The file that a folder's tokenizer is opened from, the first that is there.
NAMES = (TOKENIZER, 'tokenizer.json', 'tokenizer.bin')
# Longer texts are encoded in blocks: the time and memory of one call grow faster than its text.
_BLOCK_CHARS = 1 << 20


class Tokenizer(abc.ABC):
  """Text <-> ids of one vocabulary; `open_tokenizer` gives the one of a file.

  A text is text: what looks like a special token in it is spelled as any other letters are.

  kind: 'sentencepiece', 'json' (Hugging Face), 'ranks' (Llama 3). path: where it was read. notes: what was seen
  there and is not used. files: name -> content of all that `save` writes, the one to open first.
  fingerprint: hex; equal ones give equal ids for every document. vocab_size: ids 0 to vocab_size - 1.
  bos_id, eos_id: what a document begins, ends with. unk_id: -1 where there is none. pad_id: fills places
  without loss. adds_bos: whether prompts begin with bos_id. adds_space: a space is put before every text, taken
  off by `decode`. byte_lengths: np.int32 [V], UTF-8 bytes that each id stands for, 0 for special ids. Where
  every byte has an id, as in a model made by `llamax prepare`, the sum over a text's ids is exactly
  len(text.encode()).
  """

  kind: str

  def __init__(
    self,
    path: str,
    files: Mapping[str, bytes],
    piece_bytes: Sequence[bytes],
    *,
    bos_id: int,
    eos_id: int,
    unk_id: int = -1,
    pad_id: int = 0,
    adds_bos: bool = True,
    adds_space: bool = False,
    fingerprint: str | None = None,
    notes: Sequence[str] = (),
  ):
    self.path, self.files, self.notes = path, dict(files), tuple(notes)
    self.vocab_size = len(piece_bytes)
    self.bos_id, self.eos_id, self.unk_id, self.pad_id = bos_id, eos_id, unk_id, pad_id
    self.adds_bos, self.adds_space = adds_bos, adds_space
    self.fingerprint = fingerprint or hashlib.sha256(next(iter(files.values()))).hexdigest()
    self._piece_bytes = list(piece_bytes)
    self.byte_lengths = np.array([len(b) for b in piece_bytes], np.int32)
    if unk_id >= 0:
      self.byte_lengths[unk_id] = 0
    # The ids of SPACE spelled in bytes, for a tokenizer that reads it as a space; None for one that does not.
    self._space_ids: list[int] | None = None

  @abc.abstractmethod
  def piece(self, token: int) -> str:
    """The name that the file gives to an id."""

  @abc.abstractmethod
  def _encode(self, text: str) -> list[int]:
    """The ids of a text that UTF-8 can spell."""

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
    if self._space_ids is None or SPACE not in text:
      return self._encode(text)
    ids: list[int] = []
    for index, part in enumerate(text.split(SPACE)):
      ids += (self._space_ids if index else []) + self._encode(part)
    return ids

  def encode_prompt(self, text: str) -> list[int]:
    """The ids to go on from, one at least: bos_id first where `adds_bos`, or where nothing else is."""
    return self.encode(text, bos=self.adds_bos) or [self.bos_id]

  def save(self, folder: str | os.PathLike) -> None:
    """Writes `files` there, each whole or not at all, the one to open last. Raises OSError."""
    for name, content in reversed(self.files.items()):
      write_bytes(os.path.join(folder, name), content)

  def token_bytes(self, token: int) -> bytes:
    """The UTF-8 bytes that an id stands for; a character may be spread over several ids."""
    return self._piece_bytes[token]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; special ids give nothing, bytes that are not UTF-8 give U+FFFD."""
    text = b''.join(self._piece_bytes[int(i)] for i in ids).decode('utf-8', errors='replace')
    return text[1:] if self.adds_space and text.startswith(' ') else text

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


def open_tokenizer(path: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a file, told by its content, or of a folder that holds one.

  Raises:
    UserError: nothing there, no tokenizer, a damaged or hostile one, one without ids to begin, end a text.
  """
  from llamax.data.tokenizers import opening

  return opening.open_tokenizer(Path(path).expanduser())


def tokenizer_of_gguf(values: Mapping[str, Any], path: str = 'GGUF') -> Tokenizer:
  """The tokenizer of the keys tokenizer.* of a GGUF file. Raises UserError: as `open_tokenizer`."""
  from llamax.data.tokenizers import gguf_values

  return gguf_values.from_values(values, path)


def tokenizer_path(folder: str | os.PathLike) -> str:
  """The file that the tokenizer of a folder is opened from; where it would be when there is none."""
  paths = [os.path.join(folder, name) for name in NAMES]
  return next((path for path in paths if os.path.lexists(path)), paths[0])


def _blocks(text: str) -> Iterator[str]:
  """`text` in pieces of at most _BLOCK_CHARS, each but the last ended by a newline where there is one."""
  start = 0
  while len(text) - start > _BLOCK_CHARS:
    newline = text.rfind('\n', start, start + _BLOCK_CHARS)
    end = newline + 1 if newline >= start else start + _BLOCK_CHARS
    yield text[start:end]
    start = end
  if start < len(text):
    yield text[start:]
