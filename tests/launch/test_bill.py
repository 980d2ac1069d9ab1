"""Chip-hours by hand against those of the ledger."""

import datetime

import pytest

from llamax.launch.bill import bill

START = datetime.datetime(2026, 11, 22, 8, tzinfo=datetime.UTC)


def at(minutes):
  return START + datetime.timedelta(minutes=minutes)


def event(minutes, name, **facts):
  return {'time': at(minutes).isoformat(), 'event': name, **facts}


def seen(minutes, state, chips=16):
  return event(minutes, 'seen', state=state, detail='', chips=chips)


def test_active_times_are_added_up():
  events = [
    event(0, 'requesting'), event(1, 'requested'), seen(2, 'waiting'),
    seen(60, 'active'), seen(70, 'active'), seen(90, 'lost'), event(90, 'lost'), event(91, 'given_back'),
    event(92, 'requesting'), event(93, 'requested'), seen(94, 'waiting'),
    seen(120, 'active'), seen(150, 'unknown'), seen(160, 'active'),
    event(180, 'ended', code=0), event(183, 'given_back'),
  ]  # fmt: skip
  total = bill(events, at(1000))
  # Half an hour, then 63 minutes, of 16 chips.
  assert total.hours == pytest.approx(16 * (0.5 + 1.05))
  assert (total.doubtful, total.requests, total.losses, total.running) == (0, 2, 1, False)
  assert total.lines() == ['24.8 chip-hours', '2 requests granted, taken away 1 times']
  assert total.lines(price=1.5)[1] == '37.20 at 1.5 a chip-hour'


def test_what_goes_on_counts_until_now():
  total = bill([seen(0, 'active', chips=4)], at(90))
  assert total.hours == 6 and total.running
  assert total.lines()[0] == '6.0 chip-hours; and counting'


def test_a_time_in_which_nobody_looked_is_in_doubt():
  total = bill(
    [seen(0, 'active', chips=8), seen(10, 'active', chips=8), event(200, 'opened'), seen(200, 'lost', chips=8)],
    at(200),
  )
  assert total.hours == pytest.approx(8 / 6) and total.doubtful == pytest.approx(8 * 190 / 60)
  assert 'up to 25.3 more, while nobody looked' in total.lines(2.0)[0]
  assert total.lines(2.0)[1] == '2.67 to 53.33 at 2 a chip-hour'


def test_machines_that_are_there_after_it_were_there_all_the_time():
  total = bill(
    [seen(0, 'active', chips=8), event(200, 'opened'), seen(200, 'active', chips=8), seen(210, 'lost')], at(300)
  )
  assert total.hours == pytest.approx(8 * 3.5) and total.doubtful == 0


def test_nothing_costs_nothing():
  assert bill([], at(0)).lines(3.0) == [
    '0.0 chip-hours',
    '0.00 at 3 a chip-hour',
    '0 requests granted, taken away 0 times',
  ]
