"""Hugging Face's tokenizer.json, loaded by their library."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from llamax.core.errors import UserError
from llamax.data.tokenizer import SPACE, Tokenizer
from llamax.data.tokenizers import byte_level
from llamax.data.tokenizers.json_file import Vocabulary, parse_document, read_vocabulary, shown, wrong

MAIN, CONFIG, SPECIAL = 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'
# Where neither the configuration nor special_tokens_map.json names them.
_BOS = ('<s>', '<|begin_of_text|>')
_EOS = ('</s>', '<|end_of_text|>', '<|endoftext|>', '<|eot_id|>', '<|im_end|>')
# Begins a document in families without a bos token: Qwen's generation_config.json has it so.
_BETWEEN = '<|endoftext|>'


class JsonTokenizer(Tokenizer):
  """document: the parsed tokenizer.json. vocabulary: its pieces. config: the parsed tokenizer_config.json."""

  kind = 'json'

  def __init__(
    self,
    path: str,
    content: bytes,
    beside: Mapping[str, bytes] | None = None,
    *,
    kind: str = 'json',
    files: Mapping[str, bytes] | None = None,
    fingerprint: str | None = None,
    special: Mapping[str, Any] | None = None,
  ):
    """
    Args:
      content: of a tokenizer.json that the library has been seen to survive.
      beside: tokenizer_config.json, special_tokens_map.json, others that travel with it.
      kind, files, fingerprint: of the file of another kind that `content` was made from.
      special: bos_token, eos_token, pad_token, add_bos_token, before what `beside` says of them.

    Raises:
      UserError: something in it is not as it has to be; the message names the file, the field.
    """
    beside = dict(beside or {})
    self.kind, self.path = kind, path
    self.document = parse_document(content, path)
    self.vocabulary = read_vocabulary(self.document, path)
    self.config, notes = _config(beside, special or {}, path)
    self._lib = _load(content, self.vocabulary, path)
    ids = _special_ids(self.vocabulary, self.config, path)
    pieces = _pieces(self.vocabulary)
    first = _guarded(lambda: self._lib.encode('a').ids, path)
    adds_bos = self.config.get('add_bos_token')
    if not isinstance(adds_bos, bool):
      adds_bos = ids['named_bos'] and first[:1] == [ids['bos_token']]
    if fingerprint is None:
      identity = [hashlib.sha256(content).hexdigest(), ids['bos_token'], ids['eos_token']]
      fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    super().__init__(
      path,
      files or {MAIN: content, **beside, CONFIG: self._config_bytes(beside)},
      pieces,
      bos_id=ids['bos_token'],
      eos_id=ids['eos_token'],
      unk_id=self.vocabulary.unk_id,
      pad_id=ids['pad_token'],
      adds_bos=adds_bos,
      fingerprint=fingerprint,
      notes=notes,
    )
    self.has_bos = ids['named_bos']
    spaces = self.vocabulary.style == 'spaces'
    self.adds_space = spaces and b''.join(pieces[i] for i in self._encode('a')) == b' a'
    space_ids = [self._lib.token_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()]
    if spaces and not self.adds_space and None not in space_ids:
      self._space_ids = space_ids

  def _config_bytes(self, beside: Mapping[str, bytes]) -> bytes:
    if CONFIG in beside and parse_document(beside[CONFIG], self.path) == self.config:
      return beside[CONFIG]
    return config_file(self.config)

  def piece(self, token: int) -> str:
    return self.vocabulary.pieces[token]

  def _encode(self, text: str) -> list[int]:
    text.encode()  # The library names neither the character nor its place.
    return _guarded(lambda: self._lib.encode(text, add_special_tokens=False).ids, self.path)


def config_file(config: Mapping[str, Any]) -> bytes:
  return (json.dumps(config, indent=2, sort_keys=True) + '\n').encode()


def _guarded(call: Callable[[], Any], path: str) -> Any:
  try:
    return call()
  except BaseException as error:
    # A panic of Rust is no Exception.
    if isinstance(error, Exception) or type(error).__name__ == 'PanicException':
      raise UserError(f'tokenizer {path!r} cannot be used: tokenizers says of it: {shown(error)}') from None
    raise


def _load(content: bytes, vocabulary: Vocabulary, path: str) -> Any:
  from tokenizers import Tokenizer as Library

  lib = _guarded(lambda: Library.from_str(content.decode()), path)
  # What was set for someone's batches would cut, fill our texts.
  lib.no_truncation()
  lib.no_padding()
  lib.encode_special_tokens = True
  size = lib.get_vocab_size(with_added_tokens=True)
  if size != len(vocabulary.pieces):
    raise wrong(path, 'model.vocab', f'has {len(vocabulary.pieces)} ids, tokenizers makes {size} of them')
  for token in vocabulary.added:
    content_of = vocabulary.pieces[token]
    if (found := lib.token_to_id(content_of)) != token:
      raise wrong(path, 'added_tokens', f'{shown(content_of)} has id {token}, to tokenizers {found}')
  return lib


def _config(
  beside: dict[str, bytes], special: Mapping[str, Any], path: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
  config = parse_document(beside[CONFIG], f'{CONFIG} of {path}') if CONFIG in beside else {}
  table = parse_document(beside.pop(SPECIAL), f'{SPECIAL} of {path}') if SPECIAL in beside else {}
  notes: tuple[str, ...] = ()
  if config.pop('auto_map', None) is not None:
    notes = (f'{CONFIG}: auto_map names code to run; it is left out',)
  for name in ('bos_token', 'eos_token', 'pad_token', 'unk_token'):
    if name not in config and table.get(name) is not None:
      config[name] = table[name]
  return {**config, **special}, notes


def _special_ids(vocabulary: Vocabulary, config: dict[str, Any], path: str) -> dict[str, Any]:
  """bos_token, eos_token, pad_token -> id; named_bos: whether the tokenizer has a bos token of its own."""
  ids = {name: token for token, name in enumerate(vocabulary.pieces)}

  def find(name: str, known: tuple[str, ...]) -> int | None:
    token = config.get(name)
    content = token.get('content') if isinstance(token, Mapping) else token
    if content is None and name not in config:
      content = next((k for k in known if vocabulary.added.get(ids.get(k, -1))), None)
      if content is not None:
        config[name] = content
    if content is not None and (not isinstance(content, str) or content not in ids):
      raise wrong(path, name, f'{shown(content)} is not in the vocabulary')
    return None if content is None else ids[content]

  eos = find('eos_token', _EOS)
  if eos is None:
    raise wrong(path, 'eos_token', f'is not named, nor is one of {", ".join(_EOS)} there; name it in {CONFIG}')
  bos, pad = find('bos_token', _BOS), find('pad_token', ())
  between = ids.get(_BETWEEN, eos)
  return {
    'bos_token': between if bos is None else bos,
    'eos_token': eos,
    # Any id will do for a vocabulary that has none: it only fills places without loss.
    'pad_token': pad or 0,
    'named_bos': bos is not None,
  }


def _pieces(vocabulary: Vocabulary) -> list[bytes]:
  def one(token: int, piece: str) -> bytes:
    if token == vocabulary.unk_id and vocabulary.style == 'spaces':
      return '\ufffd'.encode()
    if token in vocabulary.added:
      return b'' if vocabulary.added[token] else piece.encode()
    if vocabulary.style == 'bytes':
      return byte_level.bytes_of(piece)
    if len(piece) == 6 and piece.startswith('<0x') and piece.endswith('>'):
      try:
        return bytes.fromhex(piece[3:5])
      except ValueError:
        pass
    return piece.replace(SPACE, ' ').encode()

  return [one(token, piece) for token, piece in enumerate(vocabulary.pieces)]
