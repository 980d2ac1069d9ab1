"""A SentencePiece model that is damaged inside is refused; what travels with it is kept."""

import pytest

from llamax.core.errors import UserError
from llamax.data.tokenizer import open_tokenizer
from llamax.data.tokenizers import model_proto
from llamax.data.tokenizers.model_proto import BYTE, CONTROL, UNKNOWN, ModelProto, Piece
from llamax.data.tokenizers.sentencepiece_file import SentencePieceTokenizer

HEAD = (Piece('<unk>', 0, UNKNOWN), Piece('<s>', 0, CONTROL), Piece('</s>', 0, CONTROL))


def model(*pieces):
  return model_proto.write_proto(ModelProto((*HEAD, *pieces)), unk_id=0, bos_id=1, eos_id=2)


@pytest.mark.parametrize(
  'content',
  [
    model(Piece('<0xZZ>', 0, BYTE)),
    model(Piece('abc', 0, BYTE)),
    model(Piece('abc', 0)).replace(b'abc', b'a\x99c'),
    model(Piece('a', 0), Piece('a', 0)),
    model(Piece('', 0)),
  ],
)
def test_names_that_cannot_be(tmp_path, content):
  (tmp_path / 'tokenizer.model').write_bytes(content)
  with pytest.raises(UserError, match=r'is damaged: the name of a piece|is not a SentencePiece model'):
    open_tokenizer(tmp_path)
  with pytest.raises(UserError):
    SentencePieceTokenizer('x', content)


def test_names_are_those_of_the_file(opened):
  tok = opened['plain']
  assert [tok.piece(i) for i in (0, 1, 2)] == ['<unk>', '<s>', '</s>']
  assert tok.unk_id == 0 and tok.byte_lengths[0] == 0 and tok.decode([0]) == '\ufffd'


def test_what_is_beside_travels(opened):
  found = SentencePieceTokenizer('x', opened['llama'].model, {'chat_template.jinja': b'a'}, notes=('b',))
  assert found.files == {'tokenizer.model': opened['llama'].model, 'chat_template.jinja': b'a'}
  assert found.notes == ('b',) and found.fingerprint == opened['llama'].fingerprint
