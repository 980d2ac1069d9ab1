"""A tokenizer file is loaded by its library in another process first: a panic, crash or hang stays there."""

import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from llamax.core.errors import UserError
from llamax.data.verify import CACHE

_MEMORY = 2 << 30
_CPU_SECONDS = 5  # and one more for each megabyte
_WAIT_FACTOR = 20  # a busy machine gives a process little of its time
_LIBRARIES = {'json': 'tokenizers', 'sentencepiece': 'sentencepiece'}
_WANTED = {
  'json': 'is no tokenizer.json that the library tokenizers takes',
  'sentencepiece': 'is not a SentencePiece model, nor a tokenizer.json, the ranks of Llama 3, a '
  'tokenizer.bin of llama2.c',
}
_QUIET = {
  'TOKENIZERS_PARALLELISM': 'false',
  'RAYON_NUM_THREADS': '1',
  'MALLOC_ARENA_MAX': '1',
  'RUST_BACKTRACE': '0',
}


def require_harmless(content: bytes, kind: str, path: str) -> None:
  """Returns when the library loads, uses `content` without harm; what did so once is remembered.

  Args:
    kind: 'json' (of the library tokenizers) or 'sentencepiece'.
    path: for the message.

  Raises:
    UserError: it does not.
  """
  key = f'{hashlib.sha256(content).hexdigest()}-{_LIBRARIES[kind]}-{_version(kind)}'
  memory = Path(os.environ.get(CACHE, '~/.cache/llamax'), 'tokenizers', key).expanduser()
  if memory.exists():
    return
  verdict = _ask(content, kind)
  if verdict != 'good':
    raise UserError(f'tokenizer {path!r} {_WANTED[kind]} ({verdict})')
  try:
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.touch()
  except OSError:
    pass  # A home folder that cannot be written costs this check again the next time, no more.


@functools.cache
def _version(kind: str) -> str:
  return importlib.metadata.version(_LIBRARIES[kind])


def _ask(content: bytes, kind: str) -> str:
  seconds = _CPU_SECONDS + (len(content) >> 20)
  program = str(Path(__file__).with_name('child.py'))
  command = [sys.executable, '-I', program, kind, str(seconds), str(_MEMORY), json.dumps(sys.path)]
  try:
    done = subprocess.run(
      command,
      input=content,
      capture_output=True,
      timeout=_WAIT_FACTOR * seconds,
      env=os.environ | _QUIET,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return f'nothing for {_WAIT_FACTOR * seconds} s'
  except OSError as error:
    raise UserError(f'no process can be started to load a tokenizer in: {error}') from None
  said = done.stdout.decode(errors='replace').strip()
  if done.returncode == 0 and said:
    return ''.join(c if c.isprintable() else ' ' for c in said[:300])
  return f'its process ended with {done.returncode} (crash, over {seconds} s, or over {_MEMORY >> 30} GB)'
