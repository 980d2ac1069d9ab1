"""llamax prepare: text in, a tokenised dataset out."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  # What is not given is not set: llamax.data.prepare.Settings holds the defaults.
  parser.argument_default = argparse.SUPPRESS
  add = parser.add_argument
  add(
    'inputs',
    nargs='*',
    metavar='INPUT',
    default=None,
    help='folder of text files, text file, .jsonl (.gz, .zst), .parquet, tfds:NAME; none, or the word stdlib: '
    "this Python's own library sources",
  )
  add('--out', required=True, metavar='DIR', help='the folder to make')
  add('--vocab_size', type=int, metavar='N', help='of the tokenizer to train (4096)')
  add('--tokenizer', metavar='PATH', help='use this tokenizer (.model, tokenizer.json, ...), train none')
  add('--validation_fraction', type=float, metavar='X', help='of the documents, by hash (0.02)')
  add('--text_key', metavar='KEY', help='JSON key, parquet column or tfds feature of the text (text)')
  add('--tfds_data_dir', metavar='DIR', help='where tfds datasets are (as tfds has it)')
  add('--max_documents', type=int, metavar='N', help='keep the first N different documents (all)')
  add('--shards', type=int, metavar='N', help='at most N files for the train split (by size)')
  add('--workers', type=int, metavar='N', help='processes (one per core)')
  add('--overwrite', action='store_true', help='replace a dataset made from something else')


def main(args: argparse.Namespace) -> int:
  import dataclasses

  from llamax.data.prepare import Settings, prepare

  known = {field.name for field in dataclasses.fields(Settings)}
  given = {key: value for key, value in vars(args).items() if key in known and key != 'inputs'}
  if args.inputs:
    given['inputs'] = tuple(args.inputs)
  print(prepare(Settings(**given)))
  return 0
