"""The one error for a file that is not what it says it is."""

import os

from llamax.core.errors import UserError


class FormatError(UserError):
  """Something inside a file is wrong. `file`, `field` name the place; the message says what was found there."""

  def __init__(self, file: str | os.PathLike, field: str, problem: str):
    self.file, self.field = os.fspath(file), field
    super().__init__(f'{printable(self.file)}: {printable(field)}: {problem}')


def printable(text: object, limit: int = 120) -> str:
  """What a file says, fit for a terminal: no control characters, no line breaks, not too long."""
  shown = ''.join(c if c.isprintable() else f'\\x{ord(c):02x}' for c in str(text)[: limit + 1])
  return shown if len(shown) <= limit else f'{shown[:limit]}...'
