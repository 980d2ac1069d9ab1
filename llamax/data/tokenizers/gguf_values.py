"""The vocabulary in a GGUF file: values of the keys tokenizer.ggml.*, as llama.cpp names them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llamax.core.errors import UserError
from llamax.data.tokenizer import SPACE, Tokenizer
from llamax.data.tokenizers import byte_level
from llamax.data.tokenizers.huggingface import CONFIG, JsonTokenizer
from llamax.data.tokenizers.isolated import require_harmless
from llamax.data.tokenizers.json_file import parse_document, shown, wrong
from llamax.data.tokenizers.llama2c import padding
from llamax.data.tokenizers.model_proto import (
  BYTE,
  CONTROL,
  NORMAL,
  UNKNOWN,
  UNUSED,
  USER_DEFINED,
  ModelProto,
  Piece,
  write_proto,
)
from llamax.data.tokenizers.sentencepiece_file import SentencePieceTokenizer
from llamax.data.tokenizers.spelled import model_of, pieces_of

_PREFIX = 'tokenizer.ggml.'
_TEMPLATE = 'tokenizer.chat_template'
_IDS = ('bos', 'eos', 'unknown', 'padding')


def from_values(values: Mapping[str, Any], path: str) -> Tokenizer:
  """The tokenizer of a GGUF file at `path`.

  Args:
    values: tokens as a list of texts, scores, token_type as lists or arrays of numbers, merges as a list of
      'left right'.

  Raises:
    UserError: a value is missing, is of another length than the tokens; a model or pre that is not known here.
  """
  tokens = _texts(values, 'tokens', path)
  types = _numbers(values, 'token_type', len(tokens), path, [NORMAL] * len(tokens))
  while tokens and types[len(tokens) - 1] == UNUSED and tokens[-1] == padding(len(tokens) - 1):
    tokens.pop()
  ids = {name: _id(values, name, len(tokens), path) for name in _IDS}
  kind = values.get(f'{_PREFIX}model')
  if kind == 'llama':
    return _from_scores(values, tokens, [int(t) for t in types], ids, path)
  if kind == 'gpt2':
    return _from_merges(values, tokens, [int(t) for t in types], ids, path)
  raise wrong(path, f'{_PREFIX}model', f'is {shown(kind)}; want llama (SentencePiece) or gpt2 (byte-level BPE)')


def _from_scores(
  values: Mapping[str, Any], tokens: list[str], types: list[int], ids: dict[str, int], path: str
) -> Tokenizer:
  scores = _numbers(values, 'scores', len(tokens), path, None)
  unknown = (
    ids['unknown'] if ids['unknown'] >= 0 else next((i for i, t in enumerate(types) if t == UNKNOWN), -1)
  )
  for name, token in (('unknown', unknown), ('bos', ids['bos']), ('eos', ids['eos'])):
    if token < 0:
      raise wrong(path, f'{_PREFIX}{name}_token_id', 'is missing')
  pieces = []
  for i, text in enumerate(tokens):
    kind = types[i] if NORMAL <= types[i] <= BYTE else NORMAL
    if i == unknown:
      kind = UNKNOWN
    elif i in (ids['bos'], ids['eos'], ids['padding']) or kind == UNKNOWN:
      kind = CONTROL
    pieces.append(Piece(text.replace(' ', SPACE) if kind == USER_DEFINED else text, float(scores[i]), kind))
  model = ModelProto(
    tuple(pieces),
    add_dummy_prefix=bool(values.get(f'{_PREFIX}add_space_prefix', True)),
    remove_extra_whitespaces=bool(values.get(f'{_PREFIX}remove_extra_whitespaces', False)),
  )
  content = write_proto(model, unk_id=unknown, bos_id=ids['bos'], eos_id=ids['eos'], pad_id=ids['padding'])
  require_harmless(content, 'sentencepiece', path)
  return SentencePieceTokenizer(path, content)


def _from_merges(
  values: Mapping[str, Any], tokens: list[str], types: list[int], ids: dict[str, int], path: str
) -> Tokenizer:
  cut = values.get(f'{_PREFIX}pre', 'gpt-2')
  if not isinstance(cut, str) or cut not in byte_level.CUTS:
    raise wrong(path, f'{_PREFIX}pre', f'is {shown(cut)}; known: {", ".join(byte_level.CUTS)}')
  merges = []
  for number, merge in enumerate(_texts(values, 'merges', path)):
    pair = merge.split(' ')
    if len(pair) != 2:
      raise wrong(path, f'{_PREFIX}merges', f'{number} is {shown(merge)}; want two pieces')
    merges.append((pair[0], pair[1]))
  added = [
    (i, tokens[i], types[i] == CONTROL) for i in range(len(tokens)) if types[i] in (CONTROL, USER_DEFINED)
  ]
  known = {i for i, *_ in added}
  vocabulary = {text: i for i, text in enumerate(tokens) if i not in known}
  bos = (
    (ids['bos'], tokens[ids['bos']])
    if ids['bos'] >= 0 and values.get(f'{_PREFIX}add_bos_token', True)
    else None
  )
  content = json.dumps(byte_level.make_document(vocabulary, merges, added, cut, bos)).encode()
  require_harmless(content, 'json', path)
  special: dict[str, Any] = {
    f'{short}_token': tokens[ids[name]] if ids[name] >= 0 else None
    for short, name in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'))
  }
  special['add_bos_token'] = bos is not None
  special['tokenizer_class'] = 'PreTrainedTokenizerFast'
  if isinstance(values.get(_TEMPLATE), str):
    special['chat_template'] = values[_TEMPLATE]
  return JsonTokenizer(path, content, special=special)


def to_values(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
  """The values for a model of `vocab_size` embeddings: texts, numbers, truths, lists of texts or of numbers.

  Raises:
    UserError: llama.cpp has no such tokenizer.
  """
  if isinstance(tokenizer, JsonTokenizer) and tokenizer.vocabulary.style == 'bytes':
    values = _of_merges(tokenizer)
  else:
    values = _of_scores(tokenizer)
  tokens, types = values[f'{_PREFIX}tokens'], values[f'{_PREFIX}token_type']
  missing = range(len(tokens), vocab_size)
  values[f'{_PREFIX}tokens'] = [*tokens, *(padding(i) for i in missing)]
  values[f'{_PREFIX}token_type'] = [*types, *(UNUSED for _ in missing)]
  if f'{_PREFIX}scores' in values:
    values[f'{_PREFIX}scores'] = [*values[f'{_PREFIX}scores'], *(-1000.0 for _ in missing)]
  values[f'{_PREFIX}eos_token_id'] = tokenizer.eos_id
  if not isinstance(tokenizer, JsonTokenizer) or tokenizer.has_bos:
    values[f'{_PREFIX}bos_token_id'] = tokenizer.bos_id
  if tokenizer.unk_id >= 0:
    values[f'{_PREFIX}unknown_token_id'] = tokenizer.unk_id
  values[f'{_PREFIX}add_bos_token'] = tokenizer.adds_bos
  values[f'{_PREFIX}add_eos_token'] = False
  template = _config_of(tokenizer).get('chat_template')
  return values | ({_TEMPLATE: template} if isinstance(template, str) else {})


def _config_of(tokenizer: Tokenizer) -> dict[str, Any]:
  if isinstance(tokenizer, JsonTokenizer):
    return tokenizer.config
  return parse_document(tokenizer.files[CONFIG], CONFIG) if CONFIG in tokenizer.files else {}


def _of_scores(tokenizer: Tokenizer) -> dict[str, Any]:
  if isinstance(tokenizer, JsonTokenizer):
    tokenizer = SentencePieceTokenizer(tokenizer.path, model_of(tokenizer))
  assert isinstance(tokenizer, SentencePieceTokenizer), tokenizer
  model = pieces_of(tokenizer)
  return {
    f'{_PREFIX}model': 'llama',
    f'{_PREFIX}pre': 'default',
    # llama.cpp looks for a user-defined piece in the text as it is, before it writes spaces as SPACE.
    f'{_PREFIX}tokens': [
      piece.text.replace(SPACE, ' ') if piece.type == USER_DEFINED else piece.text for piece in model.pieces
    ],
    f'{_PREFIX}scores': [piece.score for piece in model.pieces],
    f'{_PREFIX}token_type': [piece.type for piece in model.pieces],
    f'{_PREFIX}add_space_prefix': model.add_dummy_prefix,
  }


def _of_merges(tokenizer: JsonTokenizer) -> dict[str, Any]:
  cut = byte_level.cut_of(tokenizer.document)
  if cut is None:
    raise UserError(
      f'{tokenizer.path}: pre_tokenizer: GGUF has no name for it that is known here; known: '
      f'{", ".join(byte_level.CUTS)}'
    )
  vocabulary = tokenizer.vocabulary
  types = [NORMAL] * tokenizer.vocab_size
  for token, special in vocabulary.added.items():
    types[token] = CONTROL if special else USER_DEFINED
  merges = tokenizer.document['model'].get('merges') or []
  return {
    f'{_PREFIX}model': 'gpt2',
    f'{_PREFIX}pre': cut,
    f'{_PREFIX}tokens': list(vocabulary.pieces),
    f'{_PREFIX}token_type': types,
    f'{_PREFIX}merges': [merge if isinstance(merge, str) else ' '.join(merge) for merge in merges],
  }


def _texts(values: Mapping[str, Any], name: str, path: str) -> list[str]:
  found = values.get(f'{_PREFIX}{name}')
  if not isinstance(found, Sequence) or isinstance(found, str) or not all(isinstance(t, str) for t in found):
    raise wrong(path, f'{_PREFIX}{name}', 'is no list of texts')
  try:
    ''.join(found).encode()
  except UnicodeEncodeError:
    raise wrong(path, f'{_PREFIX}{name}', 'has a text that UTF-8 cannot spell') from None
  return list(found)


def _numbers(
  values: Mapping[str, Any], name: str, count: int, path: str, default: Sequence[float] | None
) -> Sequence[float]:
  found = values.get(f'{_PREFIX}{name}', default)
  try:
    numbers = np.asarray(found)
  except (TypeError, ValueError):
    numbers = np.empty(0, object)
  if numbers.ndim != 1 or numbers.dtype.kind not in 'iuf' or len(numbers) < count:
    raise wrong(path, f'{_PREFIX}{name}', f'wants a number for each of {count} tokens')
  with np.errstate(over='ignore'):
    finite = np.isfinite(numbers.astype(np.float32)).all()
  if not finite:
    raise wrong(path, f'{_PREFIX}{name}', 'has a value that is no 32-bit number')
  return numbers.tolist()


def _id(values: Mapping[str, Any], name: str, count: int, path: str) -> int:
  field = f'{_PREFIX}{name}_token_id'
  found = values.get(field)
  if found is None:
    return -1
  if isinstance(found, bool) or not isinstance(found, int | np.integer) or not 0 <= found < count:
    raise wrong(path, field, f'is {shown(found)}; want 0 to {count - 1}')
  return int(found)
