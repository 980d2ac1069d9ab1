"""Small corpora, one tokenizer, one prepared folder for the tests of this room."""

import random

import pytest


def _story(random_: random.Random, length: int) -> str:
  words = [
    'def',
    'return',
    'self',
    'value',
    'index',
    'näïve',
    '中文',
    'for',
    'while',
    'lambda',
    'tokens',
    'class',
  ]
  words += ['"quoted"', '(x + 1)', '1234', 'import', 'continue', 'assert']
  lines = []
  for _ in range(length):
    indent = ' ' * (2 * random_.randrange(4)) if random_.random() < 0.9 else '\t'
    lines.append(indent + ' '.join(random_.choice(words) for _ in range(1 + random_.randrange(8))))
  return '\n'.join(lines) + '\n'


@pytest.fixture(scope='session')
def stories():
  """40 different texts of 1 to 60 lines."""
  random_ = random.Random(7)
  return [f'# story {i}\n' + _story(random_, 1 + random_.randrange(60)) for i in range(40)]


@pytest.fixture(scope='session')
def model_file(stories, tmp_path_factory):
  """A trained tokenizer of 384 pieces."""
  from llamax.data.vocabulary import train_tokenizer

  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.model'
  path.write_bytes(train_tokenizer(stories, 384))
  return str(path)


@pytest.fixture(scope='session')
def story_folder(stories, tmp_path_factory):
  """The stories as text files, some of them in a folder below."""
  folder = tmp_path_factory.mktemp('stories')
  (folder / 'below').mkdir()
  for i, text in enumerate(stories):
    name = f'below/{i:02d}.py' if i % 3 == 0 else f'{i:02d}.txt'
    (folder / name).write_text(text, encoding='utf-8', newline='')
  return str(folder)


@pytest.fixture(scope='session')
def prepared(story_folder, model_file, tmp_path_factory):
  """The stories as a dataset of three shards, a quarter of them for validation."""
  from llamax.data.prepare import Settings, prepare

  out = str(tmp_path_factory.mktemp('prepared') / 'stories')
  prepare(
    Settings(
      out=out, inputs=(story_folder,), tokenizer=model_file, validation_fraction=0.25, shards=3, workers=1
    ),
    say=lambda line: None,
  )
  return out


@pytest.fixture
def data_config(prepared):
  """(**changes) -> DataConfig over the prepared stories, rows of 16."""
  from llamax.core.config import DataConfig

  def make(**changes):
    values = {
      'sources': (prepared,),
      'weights': (1.0,),
      'text_feature': 'text',
      'tfds_data_dir': None,
      'cache_dir': '/nonexistent',
      'tokenizer': None,
      'seq_len': 16,
      'seed': 3,
      'read_threads': 2,
      'prefetch_rows': 8,
      'verify_digests': True,
    }
    return DataConfig(**(values | changes))

  return make


@pytest.fixture
def write_tfds():
  """(data_dir, name, {split: texts}, feature) -> the folder of a tfds dataset of text."""
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter

  def write(data_dir, name, splits, feature='text'):
    folder = data_dir / name / '1.0.0'
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({feature: tfds.features.Text()})
    for split, texts in splits.items():
      writer = ArrayRecordWriter(str(folder / f'{name}-{split}.array_record-00000-of-00001'), 'group_size:1')
      for text in texts:
        writer.write(features.serialize_example({feature: text}))
      writer.close()
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=name, filetype_suffix='array_record')
    infos = [
      tfds.core.SplitInfo(
        name=split, shard_lengths=[len(texts)], num_bytes=100 * len(texts), filename_template=template
      )
      for split, texts in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
      data_dir=folder, features=features, split_infos=infos, version='1.0.0', check_data=False
    )
    return folder

  return write
