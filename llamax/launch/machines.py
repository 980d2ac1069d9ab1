"""What a life (launch/life.py) needs to know of machines that a cloud gives, takes away."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class State(enum.Enum):
  """Of the machines, in the cloud's own record."""

  ABSENT = 'absent'  # neither machines nor a request for them
  WAITING = 'waiting'  # asked for, not given yet
  ACTIVE = 'active'
  LOST = 'lost'  # taken away; what is left of them has to be deleted before others can be asked for
  REFUSED = 'refused'  # the request has failed
  LEAVING = 'leaving'  # being deleted
  UNKNOWN = 'unknown'  # the cloud cannot be asked now


@dataclass(frozen=True)
class Seen:
  """detail: the cloud's own words."""

  state: State
  detail: str = ''


@dataclass(frozen=True)
class Worker:
  """What the job does on one machine. state: as in launch/worker.py; asked: to stop, by a person."""

  name: str
  state: str
  code: int | None = None
  asked: bool = False
  version: str = ''


class Machines(Protocol):
  """What a life needs to know of a target. Each of these may be killed halfway, then done again.

  chips: of all of them. count: how many there are. trouble: why not all workers answered last.
  """

  chips: int
  count: int
  trouble: str

  def look(self) -> Seen: ...
  def request(self) -> str | None:
    """Asks for them; None, or what the cloud has against it."""

  def give_back(self) -> str | None:
    """Deletes them, waits until they are gone; None, or why that failed."""

  def workers(self) -> Sequence[Worker] | None:
    """All of them; None where not all answer."""

  def ready(self, workers: Sequence[Worker]) -> bool:
    """Whether the code is on all of them."""

  def prepare(self) -> None:
    """Puts it there. UserError where that fails."""

  def start(self) -> None:
    """Starts the job where it does not run. UserError where that fails."""

  def follow(self, on: bool) -> None:
    """Shows the job's output, or ends that."""
