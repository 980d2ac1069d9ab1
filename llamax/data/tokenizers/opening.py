"""Which kind of tokenizer a file is, told by its content."""

import os
import re
import stat
from pathlib import Path

from llamax.core.errors import UserError
from llamax.data.format import TOKENIZER
from llamax.data.tokenizer import Tokenizer, tokenizer_path
from llamax.data.tokenizers import llama2c, ranks
from llamax.data.tokenizers.huggingface import CONFIG, MAIN, SPECIAL, JsonTokenizer
from llamax.data.tokenizers.isolated import require_harmless
from llamax.data.tokenizers.json_file import wrong
from llamax.data.tokenizers.probe import difference
from llamax.data.tokenizers.sentencepiece_file import SentencePieceTokenizer

# Llama 4 has 27 MB.
_MAX_BYTES = 48 << 20
_MAX_BESIDE = 1 << 22
# Travel with a tokenizer.json. Nothing in them is run.
_BESIDE = (CONFIG, SPECIAL, 'chat_template.jinja')


def open_tokenizer(path: Path) -> Tokenizer:
  if not os.path.isdir(path):
    return _open_file(path, path.parent)
  both = [path / TOKENIZER, path / MAIN]
  if all(map(os.path.exists, both)):
    return _open_both(*both)
  return _open_file(Path(tokenizer_path(path)), path)


def _open_file(path: Path, folder: Path) -> Tokenizer:
  name, content = str(path), _read(path, _MAX_BYTES)
  if content.lstrip()[:1] == b'{':
    require_harmless(content, 'json', name)
    return JsonTokenizer(name, content, _beside(folder))
  if llama2c.looks_like(content):
    return open_llama2c(name, content)
  if ranks.LINE.fullmatch(re.split(rb'[\r\n]', content[:1024], maxsplit=1)[0]):
    return ranks.open_ranks(name, content)
  if content:
    require_harmless(content, 'sentencepiece', name)
  return SentencePieceTokenizer(name, content)


def open_llama2c(path: str, content: bytes) -> Tokenizer:
  """Of the bytes of a tokenizer.bin; saved as the SentencePiece model that gives the same ids."""
  model = llama2c.as_model(content, path)
  require_harmless(model, 'sentencepiece', path)
  return SentencePieceTokenizer(path, model)


def _open_both(model: Path, main: Path) -> Tokenizer:
  """Hugging Face's folders often hold a tokenizer twice; where both agree, the .model says which one it is."""
  first, second = _open_file(model, model.parent), _open_file(main, main.parent)
  if not isinstance(first, SentencePieceTokenizer) or not isinstance(second, JsonTokenizer):
    return second
  if (problem := difference(first, second)) is None and (first.bos_id, first.eos_id) == (
    second.bos_id,
    second.eos_id,
  ):
    return SentencePieceTokenizer(first.path, first.model, second.files, notes=second.notes)
  second.notes += (f'{TOKENIZER}: left out, {MAIN} says otherwise ({problem or "another bos or eos"})',)
  return second


def _beside(folder: Path) -> dict[str, bytes]:
  return {name: _read(folder / name, _MAX_BESIDE) for name in _BESIDE if os.path.exists(folder / name)}


def _read(path: Path, limit: int) -> bytes:
  """A regular file of at most `limit` bytes: a pipe would never end."""
  try:
    with open(path, 'rb', opener=_without_waiting) as f:
      about = os.fstat(f.fileno())
      if not stat.S_ISREG(about.st_mode):
        raise wrong(str(path), 'file', 'is no regular file')
      if about.st_size > limit:
        raise wrong(str(path), 'file', f'has {about.st_size:,} bytes; want at most {limit:,}')
      return f.read(limit + 1)
  except (OSError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f'tokenizer {str(path)!r} cannot be read: {getattr(error, "strerror", None) or error}'
    ) from None


def _without_waiting(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
