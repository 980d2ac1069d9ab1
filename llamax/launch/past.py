"""What the ledger of a run on machines of a cloud says of the lives (launch/life.py) before this one."""

from collections.abc import Mapping, Sequence
from typing import Any


def told(events: Sequence[Mapping[str, Any]]) -> bool:
  """Whether a life told of the job's end, then ended: who gives the same command now wants the job to go on."""
  names = _those(events, 'started', 'ended', 'closed')
  while names[-2:] == ['closed', 'closed']:  # Lives that came after it without a start.
    names.pop()
  return names[-2:] == ['ended', 'closed']


def end_of(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """The job's end that is in the ledger, if nothing was started after it."""
  last = [event for event in events if event.get('event') in ('started', 'ended')]
  return last[-1] if last and last[-1]['event'] == 'ended' else None


def unheard(events: Sequence[Mapping[str, Any]]) -> bool:
  """Whether machines were asked for whose workers have never answered: the others come after an answer."""
  return _those(events, 'requested', 'preparing', 'prepared', 'starting')[-1:] == ['requested']


def there(events: Sequence[Mapping[str, Any]]) -> bool:
  """Whether a request, or machines, should be there."""
  found = False
  for event in events:
    kind, state = event.get('event'), event.get('state', 'unknown')
    if kind == 'requested' or (kind == 'seen' and state not in ('absent', 'unknown')):
      found = True
    elif kind == 'given_back' or (kind == 'seen' and state == 'absent'):
      found = False
  return found


def _those(events: Sequence[Mapping[str, Any]], *names: str) -> list[str]:
  return [event['event'] for event in events if event.get('event') in names]
