"""The commands of a page of docs/, to be tried as they stand there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(page):
  """[(line number, command)] of the ```sh blocks of a file, joined where a line ends with a backslash."""
  found, inside, begun, text = [], False, 0, ''
  for number, line in enumerate(Path(page).read_text().splitlines(), 1):
    if line.strip().startswith('```'):
      inside = not inside and line.strip() == '```sh'
      continue
    if not inside:
      continue
    begun = begun if text else number
    text += re.sub(r'(^|\s)#\s.*$', '', line.strip())
    if text.endswith('\\'):
      text = text[:-1]
    elif text:
      found.append((begun, text))
      text = ''
  return found
