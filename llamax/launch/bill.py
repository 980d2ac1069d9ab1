"""What the machines of a run have cost so far, in chip-hours, from its ledger."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Between two looks while a life goes on; a longer silence in the ledger says that nobody looked.
_SILENCE = 1800.0  # seconds


@dataclass(frozen=True)
class Bill:
  """
  Args:
    hours: chips times the hours for which they were seen.
    doubtful: more of them, at most: they were there before a time in which nobody looked, and not after it.
    requests: how many were granted a place in the queue, or machines.
    losses: how often the machines were taken away.
    running: whether it still goes on.
  """

  hours: float
  doubtful: float
  requests: int
  losses: int
  running: bool

  def lines(self, price: float | None = None) -> list[str]:
    """For a person. price: of a chip's hour, in any currency; llamax knows none."""
    more = f' and up to {self.doubtful:,.1f} more, while nobody looked' if self.doubtful >= 0.05 else ''
    lines = [f'{self.hours:,.1f} chip-hours{more}' + ('; and counting' if self.running else '')]
    if price is not None:
      most = f' to {price * (self.hours + self.doubtful):,.2f}' if more else ''
      lines.append(f'{price * self.hours:,.2f}{most} at {price:g} a chip-hour')
    return [*lines, f'{self.requests} requests granted, taken away {self.losses} times']


def bill(events: Sequence[Mapping[str, Any]], now: datetime.datetime) -> Bill:
  """Adds up a ledger of launch/life.py, oldest event first.

  The machines count from the first look that finds them active to the first that does not, or to when they were
  given back. That is a poll too few at the start, a poll too many at the end.
  """
  hours = doubtful = 0.0
  chips = 0
  since: datetime.datetime | None = None
  last = now
  for event in events:
    kind, time = event.get('event'), datetime.datetime.fromisoformat(event['time'])
    active = kind == 'seen' and event['state'] == 'active'
    gone = kind == 'given_back' or (kind == 'seen' and event['state'] not in ('active', 'unknown'))
    if active:
      since, last, chips = since or time, time, event['chips']
    elif gone and since is not None:
      silent = (time - last).total_seconds() > _SILENCE
      hours += chips * _hours(since, last if silent else time)
      doubtful += chips * _hours(last, time) if silent else 0.0
      since = None
    elif since is not None and kind not in ('opened', 'requesting'):
      last = time  # Whoever wrote this was at work.
  if since is not None:
    hours += chips * _hours(since, now)
  counts = [event.get('event') for event in events]
  return Bill(hours, doubtful, counts.count('requested'), counts.count('lost'), since is not None)


def _hours(start: datetime.datetime, end: datetime.datetime) -> float:
  return max(0.0, (end - start).total_seconds() / 3600)
