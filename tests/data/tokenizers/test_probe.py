"""What tells two tokenizers apart is named."""

import dataclasses

import pytest

from llamax.data.tokenizers import model_proto, probe
from llamax.data.tokenizers.sentencepiece_file import SentencePieceTokenizer


def changed(tokenizer, change, **fields):
  model = model_proto.read_proto(tokenizer.model)
  model = dataclasses.replace(model, pieces=tuple(change(i, p) for i, p in enumerate(model.pieces)), **fields)
  return SentencePieceTokenizer('x', model_proto.write_proto(model, unk_id=0, bos_id=1, eos_id=2))


def test_the_same(opened):
  for tokenizer in opened.values():
    assert probe.difference(tokenizer, tokenizer) is None


@pytest.mark.parametrize(
  ('change', 'fields', 'message'),
  [
    (lambda i, p: p, {'add_dummy_prefix': False}, "' ': token 1 is '▁', the end|' ': token 0 is '▁▁', '▁'"),
    (lambda i, p: dataclasses.replace(p, score=-p.score), {}, 'token '),
    (lambda i, p: dataclasses.replace(p, text='⁂') if i == 419 else p, {}, 'id 419 is|token'),
  ],
)
def test_different(opened, change, fields, message):
  found = probe.difference(opened['llama'], changed(opened['llama'], change, **fields))
  assert found is not None and any(part in found for part in message.split('|')), found


def test_another_size(opened):
  assert probe.difference(opened['llama'], opened['plain']) == '420 ids, 390 ids'
