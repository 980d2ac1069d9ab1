"""Texts that a run draws from its model on the way."""

from types import SimpleNamespace

from llamax.observe.writer import Writer
from llamax.train import samples


def drawn(monkeypatch, tiny_config, workdir):
  cfg = tiny_config(**{'sample.prompts': ('ab', 'c')})
  tokenizer = SimpleNamespace(encode_prompt=lambda text: [1, 2], vocab_size=512)
  program = SimpleNamespace(cfg=cfg, model=SimpleNamespace(compute=None))
  texts = [SimpleNamespace(text=' then'), SimpleNamespace(text=' so')]
  monkeypatch.setattr(samples, 'generate', lambda *args: texts)
  said = []
  samples.write_samples(workdir, program, None, tokenizer, 7, said.append, Writer(()))
  return said


def test_shown_and_written(monkeypatch, tiny_config, tmp_path):
  said = drawn(monkeypatch, tiny_config, tmp_path)
  text = '--- sample 0 after step 7 ---\nab then\n--- sample 1 after step 7 ---\nc so'
  assert said == [text] and (tmp_path / 'samples/00000007.txt').read_text() == text + '\n'


def test_a_disk_that_takes_no_text_does_not_end_the_run(monkeypatch, tiny_config, tmp_path):
  (tmp_path / 'samples').write_text('in the way')
  said = drawn(monkeypatch, tiny_config, tmp_path)
  assert 'c so' in said[0] and 'were not written' in said[1]
