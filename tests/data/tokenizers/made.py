"""Small tokenizers of each kind, trained here."""

import io
import json

import sentencepiece as spm
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from llamax.data.tokenizers import byte_level, ranks

CHAT = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')


def text():
  """Some 20 kB: code, words, other alphabets."""
  with open(json.__file__) as f:
    code = f.read()
  words = 'Once upon a time there was a café, naïve 中文 words; привет 1234 times. 😀 \u2581 '
  return code + (words * 3 + '\n\t    ') * 30


def llama_model(vocab_size=420, **changes):
  """A SentencePiece model as LLaMA's own: a space before every text."""
  out = io.BytesIO()
  options = {
    'model_type': 'bpe',
    'byte_fallback': True,
    'normalization_rule_name': 'identity',
    'remove_extra_whitespaces': False,
    'split_digits': True,
    'minloglevel': 2,
  } | changes
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(text().splitlines()), model_writer=out, vocab_size=vocab_size, **options
  )
  return out.getvalue()


def plain_model(vocab_size=390):
  """As `llamax prepare` trains it."""
  from llamax.data.vocabulary import train_tokenizer

  return train_tokenizer([text()], vocab_size)


def byte_bpe(cut, added=(), vocab_size=350):
  """The parsed tokenizer.json of a byte-level BPE; added: (content, special)."""
  document = byte_level.make_document({}, [], [], cut, None)
  library = Library.from_str(
    json.dumps(document | {'model': json.loads(Library(models.BPE()).to_str())['model']})
  )
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
  library.train_from_iterator([text()], trainer)
  trained = json.loads(library.to_str())['model']
  merges = [tuple(pair) for pair in trained['merges']]
  tokens = [(len(trained['vocab']) + i, *token) for i, token in enumerate(added)]
  return byte_level.make_document(trained['vocab'], merges, tokens, cut, None)


def qwen_folder(folder, **config):
  """tokenizer.json with tokenizer_config.json, as Qwen has them."""
  folder.mkdir(exist_ok=True)
  document = byte_bpe('qwen2', [*((name, True) for name in CHAT), ('<tool_call>', False)])
  (folder / 'tokenizer.json').write_text(json.dumps(document))
  values = {'bos_token': None, 'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'} | config
  (folder / 'tokenizer_config.json').write_text(json.dumps(values))
  return folder


def llama3_ranks(vocab_size=350):
  """The lines of Llama 3's tokenizer.model."""
  vocabulary = byte_bpe('llama-bpe', vocab_size=vocab_size)['model']['vocab']
  return ranks.write_ranks(byte_level.bytes_of(piece) for piece in sorted(vocabulary, key=vocabulary.get))


def llama3_json():
  """As the tokenizer.json of Llama 3: one that is not made from ranks."""
  names = ranks.special_tokens()
  document = byte_bpe('llama-bpe', [(name, True) for name in names])
  size = len(document['model']['vocab'])
  document['post_processor'] = {
    'type': 'Sequence',
    'processors': [byte_level.byte_level(True), byte_level.template((size, names[0]))],
  }
  return document
