"""The newcomer's path of docs/convert.md, line by line, with a model that is small enough."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llamax.cli.main import main
from tests.convert.conftest import write_folder
from tests.data.tokenizers import made

DOCS = Path(__file__).parents[2] / 'docs/convert.md'
ELSEWHERE = ('vllm', 'llama-cli')  # programs that are not ours
# The model of the page, then one that is smaller.
DOWNLOADED, SMALL = '~/models/Llama-3.2-1B', 'downloaded'
TINY = [
  '--config.train.num_steps=2',
  '--config.train.batch_size=8',
  '--config.data.seq_len=32',
  '--config.eval.every=1000',
  '--config.sample.every=1000',
  '--config.optim.warmup_steps=1',
  '--config.compute.compilation_cache=none',
]


def commands():
  """The lines of the page's first path, with those that go on joined."""
  text = DOCS.read_text().split('## From a download')[1]
  block = re.search(r'```\n(.*?)```', text, re.DOTALL).group(1).replace('\\\n', ' ')
  words = [shlex.split(line, comments=True) for line in block.splitlines()]
  return [line for line in words if line]


def download(folder):
  """A directory as Hugging Face gives it."""
  names = [('<|begin_of_text|>', True), ('<|end_of_text|>', True)]
  document = made.byte_bpe('llama-bpe', names)
  vocab = len(document['model']['vocab']) + len(names)
  rope = {'rope_type': 'default', 'rope_theta': 5e5}
  write_folder(
    folder,
    'bfloat16',
    vocab_size=vocab,
    tie_word_embeddings=True,
    rope_parameters=rope,
    bos_token_id=vocab - 2,
    eos_token_id=vocab - 1,
  )
  (folder / 'tokenizer.json').write_text(json.dumps(document))
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'bos_token': names[0][0], 'eos_token': names[1][0]})
  )


def test_from_a_download_to_a_model_of_your_own(tmp_path, monkeypatch, capfd):
  transformers = pytest.importorskip('transformers')
  del transformers
  monkeypatch.chdir(tmp_path)
  download(tmp_path / SMALL)
  (tmp_path / 'my_texts').mkdir()
  for part in range(4):
    (tmp_path / f'my_texts/{part}.txt').write_text(f'Chapter {part}. {made.text()}')
  ran = []
  for program, *words in commands():
    words = [word.replace(DOWNLOADED, SMALL) for word in words]
    if program in ELSEWHERE:
      continue
    ran.append(' '.join([program, *words[:1]]))
    if program == 'python':
      subprocess.run([sys.executable, *words], check=True, timeout=200)
      continue
    assert program == 'llamax'
    if words[0] == 'train':
      # The model of the config is that of the page: the error has the flags of the one that is here.
      assert main([*words, *TINY]) == 2
      error = capfd.readouterr().err
      flags = re.findall(r'--config\.model\.\S+', error)
      assert flags, error
      words += [*TINY, *flags]
    assert main(words) == 0, words
  assert len(ran) == 8 and (tmp_path / 'exports/mine.gguf').exists()
