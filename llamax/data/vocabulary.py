"""Training of a SentencePiece BPE model on a bounded sample of text."""

import collections
import io
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece as spm

from llamax.core.errors import UserError

_SPACE = '\u2581'
_CHUNK_CHARS = 4096
# Newlines with the indentation after them, or tabs: BPE never joins them by itself, because it cuts words at
# spaces, nor can it learn a tab. The most frequent ones become pieces beforehand: 9 % fewer tokens on Python.
_RUN = re.compile(r'\n+[ \t]*|\t+')


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> bytes:
  """The bytes of a model of exactly `vocab_size` pieces, ids 0 <unk>, 1 <s>, 2 </s> as LLaMA has them.

  The same texts give the same bytes. UserError when the texts cannot fill so large a vocabulary, or the
  vocabulary cannot hold the bytes with the characters of the texts.
  """
  model = io.BytesIO()
  try:
    spm.SentencePieceTrainer.train(
      sentence_iterator=_chunks(texts),
      model_writer=model,
      model_type='bpe',
      vocab_size=vocab_size,
      unk_id=0,
      bos_id=1,
      eos_id=2,
      pad_id=-1,
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      character_coverage=0.9995,
      user_defined_symbols=_frequent_runs(texts, vocab_size),
      max_sentence_length=1 << 20,
      input_sentence_size=0,
      shuffle_input_sentence=False,
      # Part of the model file, so it may not follow the machine's number of cores.
      num_threads=4,
      minloglevel=2,
    )
  except (RuntimeError, OSError) as error:
    raise _explain(str(error), vocab_size) from None
  return model.getvalue()


def _frequent_runs(texts: Sequence[str], vocab_size: int) -> list[str]:
  counts: collections.Counter[str] = collections.Counter()
  for text in texts:
    counts.update(_RUN.findall(text))
  # A run of one character saves nothing over its byte piece; a longer one saves more the longer it is used.
  saved = sorted((-count * (len(run) - 1), run) for run, count in counts.items() if 1 < len(run) <= 64)
  runs = [run for _, run in saved[: min(32, vocab_size // 64)]]
  return [run.replace(' ', _SPACE) for run in ['\n', '\t', *runs]]


def _chunks(texts: Iterable[str]) -> Iterator[str]:
  """Pieces of at most _CHUNK_CHARS, cut before a newline where there is one."""
  for text in texts:
    start = 0
    while start < len(text):
      end = start + _CHUNK_CHARS
      if end < len(text):
        newline = text.rfind('\n', start + 1, end)
        end = newline if newline > start else end
      yield text[start:end]
      start = end


def _explain(message: str, vocab_size: int) -> UserError:
  if limit := re.search(r'too high.*<= (\d+)', message):
    return UserError(
      f'vocab_size={vocab_size} is more than this corpus can fill; give it more text, or --vocab_size of at '
      f'most {limit[1]}'
    )
  if needed := re.search(r'smaller than required_chars\. \d+ vs (\d+)', message):
    return UserError(
      f'vocab_size={vocab_size} cannot hold 256 bytes, the special ids with the characters of this corpus; '
      f'want --vocab_size of at least {needed[1]}'
    )
  return UserError(f'vocab_size={vocab_size}: SentencePiece could not train a tokenizer: {message}')
