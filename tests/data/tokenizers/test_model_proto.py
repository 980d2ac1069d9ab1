"""What is read, written as protocol buffer is what protobuf, sentencepiece read."""

import io

import pytest
import sentencepiece as spm

from llamax.data.tokenizers import model_proto
from llamax.data.tokenizers.model_proto import BYTE, CONTROL, UNKNOWN, USER_DEFINED, ModelProto, Piece
from tests.data.tokenizers import made

PIECES = (
  Piece('<unk>', 0.0, UNKNOWN),
  Piece('<a>', -0.5, CONTROL),
  Piece('<b>', 0.0, CONTROL),
  Piece('<pad>', 0.0, CONTROL),
  Piece('\n▁', 0.0, USER_DEFINED),
  *(Piece(f'<0x{i:02X}>', 0.0, BYTE) for i in range(256)),
  Piece('▁é', -1.25),
  Piece('▁', -2.5),
  Piece('é', -3.0),
)


@pytest.mark.parametrize(
  'content', [made.llama_model(), made.plain_model(), made.llama_model(add_dummy_prefix=False)]
)
def test_read_as_sentencepiece_reads(content):
  found, theirs = model_proto.read_proto(content), spm.SentencePieceProcessor(model_proto=content)
  assert len(found.pieces) == theirs.vocab_size() and found.model_type == model_proto.BPE
  for i, piece in enumerate(found.pieces):
    assert (piece.text, piece.score) == (theirs.id_to_piece(i), theirs.get_score(i))
    assert (piece.type == BYTE, piece.type == CONTROL) == (theirs.is_byte(i), theirs.is_control(i))
    assert (piece.type == UNKNOWN) == theirs.is_unknown(i)
  assert found.add_dummy_prefix == (theirs.encode('a', out_type=str)[0] == '▁a')
  assert not found.remove_extra_whitespaces and found.escape_whitespaces and not found.charsmap


def test_written_as_sentencepiece_reads():
  content = model_proto.write_proto(
    ModelProto(PIECES, add_dummy_prefix=False), unk_id=0, bos_id=1, eos_id=2, pad_id=3
  )
  theirs = spm.SentencePieceProcessor(model_proto=content)
  assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()) == (0, 1, 2, 3)
  assert [theirs.id_to_piece(i) for i in range(theirs.vocab_size())] == [piece.text for piece in PIECES]
  assert theirs.encode(' é  \n x', out_type=str) == ['▁é', '▁', '▁', '\n▁', '<0x78>']
  assert model_proto.read_proto(content) == ModelProto(PIECES, add_dummy_prefix=False)


def test_other_rules_are_seen():
  out = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(['hello world'] * 9), model_writer=out, vocab_size=12, hard_vocab_limit=False,
    normalization_rule_name='nmt_nfkc', treat_whitespace_as_suffix=True, minloglevel=2,
  )  # fmt: skip
  found = model_proto.read_proto(out.getvalue())
  assert found.model_type == 1 and found.remove_extra_whitespaces and found.whitespace_as_suffix
  assert len(found.charsmap) > 1000


def test_protobuf_agrees():
  try:
    from sentencepiece import sentencepiece_model_pb2 as pb2
  except Exception as error:  # generated for one release of protobuf
    pytest.skip(str(error))
  ours = model_proto.write_proto(ModelProto(PIECES), unk_id=0, bos_id=1, eos_id=2)
  theirs = pb2.ModelProto.FromString(ours)
  assert [(p.piece, p.score, p.type) for p in theirs.pieces] == [(p.text, p.score, p.type) for p in PIECES]
  about, rules = theirs.trainer_spec, theirs.normalizer_spec
  assert (about.unk_id, about.bos_id, about.eos_id, about.pad_id) == (0, 1, 2, -1)
  assert (about.bos_piece, about.eos_piece, about.vocab_size, about.byte_fallback) == (
    '<a>',
    '<b>',
    len(PIECES),
    True,
  )
  assert (rules.name, rules.add_dummy_prefix, rules.remove_extra_whitespaces) == ('identity', True, False)
  assert len(ours) == len(theirs.SerializeToString())


DAMAGED = {
  'a piece longer than the file': b'\x0a\x05a',
  'no length': b'\x0a',
  'a number without an end': b'\x80' * 20,
  'an unknown kind of field': b'\x0b',
  'a number for a piece': b'\x08\x01',
  'a name longer than its piece': b'\x0a\x02\x0a\x01\xff',
  'a name that is not UTF-8': b'\x0a\x03\x0a\x01\xff',
  'nothing but ones': b'\xff' * 99,
  'a score of three bytes': b'\x0a\x05\x12\x03abc',
  'a score that is a whole number': b'\x0a\x02\x10\x01',
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damage(name):
  with pytest.raises(ValueError):
    model_proto.read_proto(DAMAGED[name])
