"""Which format holds which family, asked of the code: `python -m llamax.convert.table` for docs/convert.md."""

from llamax.convert import formats
from llamax.convert.target import Model
from llamax.core.config import ModelConfig
from llamax.core.errors import UserError
from llamax.model.presets import PRESETS

# name, one of its models, the family that Hugging Face counts it to
FAMILIES = (
  ('LLaMA 1', 'llama_7b', 'llama'),
  ('Llama 2', 'llama2_7b', 'llama'),
  ('Code Llama', 'codellama_34b', 'llama'),
  ('TinyLlama', 'tinyllama_1b', 'llama'),
  ('Llama 3', 'llama3_8b', 'llama'),
  ('Llama 3.1', 'llama31_8b', 'llama'),
  ('Llama 3.2', 'llama32_1b', 'llama'),
  ('Mistral 0.1', 'mistral_7b', 'mistral'),
  ('Mistral 0.3', 'mistral_7b_v03', 'mistral'),
  ('Qwen 2.5', 'qwen25_7b', 'qwen2'),
  ('Qwen 3', 'qwen3_8b', 'qwen3'),
)


def why_not(format_name: str, preset: str, family: str) -> str | None:
  """What keeps a model of this family out of a format; None where it fits, in both directions."""
  cfg = ModelConfig(preset='none', **PRESETS[preset])
  try:
    target = formats.open_target(format_name, Model(cfg, family, None, {}))
    assert target.places
  except UserError as error:
    return str(error)
  return None


def table() -> str:
  """A row per family, a column per format: read, written, or not."""
  names = list(formats.FORMATS)
  lines = [f'| | {" | ".join(names)} |', f'|{"---|" * (len(names) + 1)}']
  for title, preset, family in FAMILIES:
    cells = ['-' if why_not(name, preset, family) else 'read, write' for name in names]
    lines.append(f'| {title} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def reasons() -> str:
  """Why each `-` of the table is one."""
  found = []
  for name in formats.FORMATS:
    for title, preset, family in FAMILIES:
      if why := why_not(name, preset, family):
        found.append(f'* {name}, {title}: {why}')
  return '\n'.join(found)


if __name__ == '__main__':
  print(table(), reasons(), sep='\n\n')
