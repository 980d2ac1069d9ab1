"""A tokenizer in the files of each format."""

import json
import tempfile
from pathlib import Path
from typing import Any

from llamax.core.errors import UserError, pick
from llamax.data.format import TOKENIZER
from llamax.data.tokenizer import Tokenizer, open_tokenizer, tokenizer_of_gguf
from llamax.data.tokenizers import llama2c, ranks, spelled
from llamax.data.tokenizers.gguf_values import to_values
from llamax.data.tokenizers.huggingface import CONFIG, MAIN, SPECIAL, JsonTokenizer, config_file
from llamax.data.tokenizers.probe import difference
from llamax.data.tokenizers.sentencepiece_file import SentencePieceTokenizer


def as_files(tokenizer: Tokenizer, kind: str, vocab_size: int | None = None) -> dict[str, Any]:
  """File name -> content; for 'gguf' key -> value.

  Args:
    kind: 'hf', 'meta', 'gguf', 'llama2c', 'llamax'.
    vocab_size: embeddings of the model, where it has more of them than the tokenizer has ids.

  Raises:
    UserError: a tokenizer of that kind cannot give these ids.
  """
  size = tokenizer.vocab_size if vocab_size is None else vocab_size
  if size < tokenizer.vocab_size:
    raise UserError(
      f'{tokenizer.path} has {tokenizer.vocab_size} ids, the model {size}: it is not the one of it'
    )
  return pick(_KINDS, kind, 'format of a tokenizer')(tokenizer, size)


def probe(source: Tokenizer, target: Tokenizer) -> UserError | None:
  """What is wrong when the two spell some text by other ids, or give another text back; None: nothing."""
  if problem := difference(source, target):
    return UserError(f'the tokenizers {source.path} and {target.path} differ: {problem}')
  return None


def require_travels(tokenizer: Tokenizer, format_name: str, vocab_size: int) -> None:
  """UserError unless what a format keeps of a tokenizer gives every probe text the same ids.

  Asked before any weight is written: the files are made in a folder of their own, then opened.
  """
  files = as_files(tokenizer, _KIND_OF.get(format_name, format_name), vocab_size)
  if format_name == 'gguf':
    kept = tokenizer_of_gguf(files)
    problem = probe(tokenizer, kept)
  else:
    with tempfile.TemporaryDirectory() as folder:
      for name, content in files.items():
        Path(folder, name).write_bytes(content)
      kept = open_tokenizer(Path(folder, *files) if len(files) == 1 else folder)
      problem = probe(tokenizer, kept)
  if problem:
    raise UserError(
      f'the format {format_name} does not hold this tokenizer: {problem}; give another one, or --tokenizer=none'
    )


def _hf(tokenizer: Tokenizer, size: int) -> dict[str, bytes]:
  if MAIN in tokenizer.files:
    files = dict(tokenizer.files)
    config = json.loads(files[CONFIG])
  elif isinstance(tokenizer, JsonTokenizer):
    config = tokenizer.config | {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
    }
    files = {MAIN: _json(tokenizer.document), CONFIG: config_file(config)}
  else:
    assert isinstance(tokenizer, SentencePieceTokenizer), tokenizer
    names = {'bos_token': tokenizer.bos_id, 'eos_token': tokenizer.eos_id, 'unk_token': tokenizer.unk_id}
    config = {name: tokenizer.piece(token) for name, token in names.items()}
    config |= {
      'add_bos_token': True,
      'add_eos_token': False,
      'clean_up_tokenization_spaces': False,
      # Loads tokenizer.json as it is; other classes build their own rules.
      'tokenizer_class': 'PreTrainedTokenizerFast',
    }
    files = {
      MAIN: _json(spelled.document_of(tokenizer)),
      CONFIG: config_file(config),
      TOKENIZER: tokenizer.model,
    }
  special = {n: config[n] for n in ('bos_token', 'eos_token', 'unk_token', 'pad_token') if config.get(n)}
  return {**files, SPECIAL: config_file(special)}


def _json(document: dict[str, Any]) -> bytes:
  return (json.dumps(document, indent=2, ensure_ascii=False) + '\n').encode()


def _sentencepiece(tokenizer: Tokenizer) -> bytes:
  return (
    tokenizer.model if isinstance(tokenizer, SentencePieceTokenizer) else spelled.model_of(_of_json(tokenizer))
  )


def _of_json(tokenizer: Tokenizer) -> JsonTokenizer:
  assert isinstance(tokenizer, JsonTokenizer), tokenizer
  return tokenizer


def _meta(tokenizer: Tokenizer, size: int) -> dict[str, bytes]:
  if isinstance(tokenizer, JsonTokenizer) and tokenizer.vocabulary.style == 'bytes':
    return {TOKENIZER: ranks.as_ranks(tokenizer)}
  return {TOKENIZER: _sentencepiece(tokenizer)}


def _llama2c(tokenizer: Tokenizer, size: int) -> dict[str, bytes]:
  model = SentencePieceTokenizer(tokenizer.path, _sentencepiece(tokenizer))
  if (model.unk_id, model.bos_id, model.eos_id) != (0, 1, 2):
    raise UserError(
      f'{tokenizer.path} has <unk> {model.unk_id}, bos {model.bos_id}, eos {model.eos_id}; llama2.c has 0, 1, 2'
    )
  return {llama2c.NAME: llama2c.write(spelled.pieces_of(model).pieces, size)}


_KINDS = {
  'hf': _hf,
  'meta': _meta,
  'gguf': to_values,
  'llama2c': _llama2c,
  'llamax': lambda tokenizer, size: dict(tokenizer.files),
}
_KIND_OF = {'easylm': 'llamax'}  # which keeps no tokenizer of its own
