"""SentencePiece models: LLaMA 1 and 2, Mistral, what `llamax prepare` trains."""

from collections.abc import Mapping

import sentencepiece as spm

from llamax.core.errors import UserError
from llamax.data.format import TOKENIZER
from llamax.data.tokenizer import SPACE, Tokenizer


class SentencePieceTokenizer(Tokenizer):
  kind = 'sentencepiece'

  def __init__(
    self, path: str, model: bytes, beside: Mapping[str, bytes] | None = None, notes: tuple[str, ...] = ()
  ):
    """
    Args:
      model: the bytes of a .model file.
      beside: other files that travel with it.

    Raises:
      UserError: `model` is no SentencePiece model, or lacks <s> or </s>.
    """
    try:
      if not model:
        raise RuntimeError('the file is empty')
      self._sp = spm.SentencePieceProcessor(model_proto=model)
      size = self._sp.vocab_size()
    except (RuntimeError, OSError):
      raise UserError(
        f'tokenizer {path!r} is not a SentencePiece model; want a .model file as llamax prepare or '
        'sentencepiece writes it'
      ) from None
    bos_id, eos_id = self._sp.bos_id(), self._sp.eos_id()
    if min(bos_id, eos_id) < 0:
      raise UserError(
        f'tokenizer {path!r} has bos id {bos_id}, eos id {eos_id}: documents are cut by both; '
        'want a model trained with bos_id, eos_id of 0 or more'
      )
    try:
      pieces = [self._bytes_of(i) for i in range(size)]
    except ValueError as error:  # a name that is not UTF-8, a byte that is none
      raise UserError(f'tokenizer {path!r} is damaged: the name of a piece is wrong ({error})') from None
    super().__init__(
      path,
      {TOKENIZER: model, **(beside or {})},
      pieces,
      bos_id=bos_id,
      eos_id=eos_id,
      unk_id=self._sp.unk_id(),
      # A pad id only fills places without loss, so any id will do for a model that has none.
      pad_id=max(self._sp.pad_id(), 0),
      # LLaMA's own models put a space before every text; decoding takes it off again.
      adds_space=b''.join(pieces[i] for i in self._sp.encode('a')) == b' a',
      notes=notes,
    )
    space_ids = [self._sp.piece_to_id(f'<0x{byte:02X}>') for byte in SPACE.encode()]
    if not self.adds_space and self.unk_id not in space_ids:
      # SentencePiece would read the character that it uses for spaces as a space: spell it in bytes instead.
      self._space_ids = space_ids

  @property
  def model(self) -> bytes:
    """The .model file."""
    return self.files[TOKENIZER]

  def piece(self, token: int) -> str:
    return self._sp.id_to_piece(token)

  def _bytes_of(self, token: int) -> bytes:
    if self._sp.is_control(token):
      return b''
    if self._sp.is_unknown(token):
      return '\ufffd'.encode()
    piece = self._sp.id_to_piece(token)
    if self._sp.is_byte(token):
      return bytes([int(piece[3:-1], 16)])
    return piece.replace(SPACE, ' ').encode()

  def _encode(self, text: str) -> list[int]:
    return self._sp.encode(text.encode())
