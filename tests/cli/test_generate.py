"""What `llamax generate` prints, refuses."""

import json

import pytest

from llamax import api
from llamax.cli.main import main
from llamax.generate.sampling import Sampling
from llamax.generate.text import Completion


class FakeModel:
  """Says the options back; the prompt's length in tokens."""

  step = 12

  def __init__(self, config):
    self.config = config

  def generate(self, prompts, **options):
    self.options = Sampling.from_config(self.config.sample, options)
    return [Completion(f' {len(p)}', (4, 2), (-0.5, float('-inf')), 'eos') for p in prompts]

  def stream(self, prompt, **options):
    (done,) = self.generate([prompt], **options)
    yield ' '
    yield done.text.strip()
    return done


@pytest.fixture
def model(tiny_config, monkeypatch):
  fake = FakeModel(tiny_config(**{'sample.prompts': ('from config',), 'sample.top_p': 0.7}))
  monkeypatch.setattr(api, 'load', lambda workdir, step: fake)
  return fake


def run(*words):
  return main(['generate', '--workdir=w', *words])


def test_one_prompt_is_streamed(model, capsys):
  assert run('--prompt', 'abc', '--seed=5', '--stop=x', '--stop=y') == 0
  out, err = capsys.readouterr()
  assert out == 'abc 3\n'
  assert err.startswith('step 12: 2 tokens in ') and err.endswith('ended: 1 by eos\n')
  assert (model.options.seed, model.options.stop, model.options.top_p) == (5, ('x', 'y'), 0.7)


def test_several_prompts_are_numbered(model, capsys):
  assert run('--prompt=abc', '--prompt=de', '--num_samples=2', '--greedy') == 0
  assert capsys.readouterr().out == (
    '--- 1 of 4 ---\nabc 3\n--- 2 of 4 ---\nabc 3\n--- 3 of 4 ---\nde 2\n--- 4 of 4 ---\nde 2\n'
  )
  assert model.options.temperature == 0


def test_json_is_a_line_per_text(model, capsys):
  assert run('--prompt=é\n', '--json') == 0
  (line,) = capsys.readouterr().out.splitlines()
  assert json.loads(line) == {
    'prompt': 'é\n',
    'text': ' 2',
    'finish': 'eos',
    'step': 12,
    'ids': [4, 2],
    'logprobs': [-0.5, None],
  }


def test_prompts_come_from_files_else_from_the_config(model, capsys, tmp_path):
  (tmp_path / 'a.txt').write_text('one\ntwo')
  (tmp_path / 'b.jsonl').write_text('"x\u2028y"\n\n{"prompt": "zz"}\n', encoding='utf-8')
  assert run(f'--prompt_file={tmp_path}/a.txt', f'--prompt_file={tmp_path}/b.jsonl', '--json') == 0
  prompts = [json.loads(line)['prompt'] for line in capsys.readouterr().out.split('\n')[:-1]]
  assert prompts == ['one\ntwo', 'x\u2028y', 'zz']
  assert run() == 0
  assert capsys.readouterr().out == 'from config 11\n'


@pytest.mark.parametrize(
  'words, message',
  [
    (['--greedy', '--temperature=0.5'], '--greedy is --temperature=0; got --temperature=0.5'),
    (['--num_samples=0'], '--num_samples=0: want at least 1'),
    (['--top_p=2'], 'top_p=2.0: want a number from 0 to 1'),
    (['--prompt_file=nowhere'], '--prompt_file=nowhere cannot be read: No such file'),
    (['--prompt_file=latin.txt'], '--prompt_file=latin.txt is not UTF-8 text'),
    (['--prompt_file=bad.jsonl'], 'bad.jsonl:2: want a string or {"prompt": string}, got [3]'),
  ],
)
def test_mistakes_exit_with_2(model, capsys, tmp_path, monkeypatch, words, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'latin.txt').write_bytes(b'caf\xe9')
  (tmp_path / 'bad.jsonl').write_text('"ok"\n[3]\n')
  assert run(*words) == 2
  assert message in capsys.readouterr().err
