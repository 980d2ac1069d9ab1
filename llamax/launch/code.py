"""The code that travels to the machines: one tar of a wheel with constraints, known by a digest."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Code:
  """Where the code lies on the launcher's machine, once `code.actions` are done.

  Args:
    version: of llamax with its commit, '0.1.0+g1a2b3c4', or '0.1.0+g1a2b3c4.d5e6f7a8' of a changed checkout.
    folder: holds `bundle`, a tar of the wheel, py311.txt, ... and SHA256SUMS; beside it `digest`, the bundle's
      own SHA-256 as sha256sum writes it.
  """

  version: str
  folder: Path

  @property
  def bundle(self) -> Path:
    return self.folder / 'bundle.tar'

  @property
  def digest(self) -> Path:
    return self.folder / 'bundle.tar.sha256'


def find(wheel: str | None, dirty: bool) -> Code:
  """The code that would travel: of `wheel`, else of the checkout that this llamax runs from. Writes nothing."""
  raise NotImplementedError
