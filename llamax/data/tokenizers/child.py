"""Loads a tokenizer in a process that may crash, hang or run out of memory: a program of its own.

argv: 'json' or 'sentencepiece', seconds of processor time, bytes of memory, sys.path as JSON. stdin: the file.
stdout: 'good', or the reason against it.
"""

import contextlib
import json
import resource
import sys

TEXTS = (
  '',
  ' ',
  'a',
  ' a  b\n\n\tc 1234567890',
  'naïve 中文 😀 \u2581 <s></s>\0\x7f',
  'word ' * 400,
  'x' * 2000,
  '\n' * 999,
)


def load(kind: str, content: bytes) -> None:
  if kind == 'json':
    import tokenizers

    json.loads(content)
    model = tokenizers.Tokenizer.from_str(content.decode())
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    for text in TEXTS:
      ids = model.encode(text, add_special_tokens=False).ids
      model.decode(ids)
      model.encode(text)
      # Far more ids than bytes: what comes of a large file would not fit into memory.
      if len(ids) > 16 * len(text.encode()) + 16:
        raise ValueError(f'makes {len(ids)} ids of {len(text)} characters')
    model.get_vocab(with_added_tokens=True)
  else:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    for text in TEXTS:
      processor.decode(processor.encode(text))


def main() -> None:
  kind, seconds, memory, paths = sys.argv[1:]
  for what, limit in ((resource.RLIMIT_CPU, int(seconds)), (resource.RLIMIT_AS, int(memory))):
    with contextlib.suppress(OSError, ValueError):  # not on every system
      resource.setrlimit(what, (limit, limit))
  sys.path[:] = json.loads(paths)
  try:
    load(kind, sys.stdin.buffer.read())
  except BaseException as error:  # a panic of Rust is no Exception
    print(f'{type(error).__name__}: {error}')
  else:
    print('good')


main()
