"""Texts that the model writes while it learns."""

from collections.abc import Callable
from pathlib import Path

from llamax.core.config import Config
from llamax.core.types import PyTree
from llamax.data.tokenizer import Tokenizer
from llamax.generate.decode import check_prompts, generate
from llamax.generate.sampling import Sampling
from llamax.observe.writer import Writer
from llamax.train.program import Program


def prompt_ids(cfg: Config, tokenizer: Tokenizer) -> list[list[int]]:
  """The config's prompts as ids; UserError for one that cannot be continued, found at the start."""
  ids = [tokenizer.encode_prompt(prompt) for prompt in cfg.sample.prompts]
  check_prompts(cfg.model, ids, Sampling.from_config(cfg.sample).max_new_tokens, tokenizer)
  return ids


def write_samples(
  workdir: Path,
  program: Program,
  params: PyTree,
  tokenizer: Tokenizer,
  step: int,
  say: Callable[[str], None],
  writer: Writer,
) -> None:
  """Continues the prompts of the config: to `say`, `samples/<step>.txt`, the writer."""
  cfg = program.cfg
  prompts = cfg.sample.prompts
  if not prompts:
    return
  ids = prompt_ids(cfg, tokenizer)
  sampling = Sampling.from_config(cfg.sample)
  done = generate(cfg.model, program.model.compute, params, ids, sampling, tokenizer)
  texts = [prompt + completion.text for prompt, completion in zip(prompts, done, strict=True)]
  for index, text in enumerate(texts):
    writer.write_text(step, f'sample/{index}', text)
  shown = '\n'.join(f'--- sample {index} after step {step} ---\n{text}' for index, text in enumerate(texts))
  say(shown)
  folder = workdir / 'samples'
  try:
    folder.mkdir(exist_ok=True)
    (folder / f'{step:08d}.txt').write_text(shown + '\n', encoding='utf-8')
  except OSError as error:  # A full disk costs a text, not the run.
    say(f'warning: the samples of step {step} were not written to {folder} ({error.strerror})')
