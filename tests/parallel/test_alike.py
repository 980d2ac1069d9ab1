"""All processes of a run were started alike, or all of them refuse."""

import json
import threading
from types import SimpleNamespace

import jax
import pytest

from llamax.core.errors import UserError
from llamax.parallel import alike, decide
from tests.parallel.test_decide import Store

FACTS = {'optim.learning_rate': 0.003, 'data.sources': ('a', 'b'), 'train.seed': 0, 'log.name': None}


@pytest.fixture
def together(monkeypatch):
  """(an act for each process) -> what each one raised, None where it raised nothing."""
  own = threading.local()
  store = Store()
  monkeypatch.setattr(decide.distributed, 'global_state', SimpleNamespace(client=store))
  monkeypatch.setattr(jax, 'process_index', lambda: own.index)
  monkeypatch.setattr(decide, '_numbers', Own(own))

  def call(*acts):
    monkeypatch.setattr(jax, 'process_count', lambda: len(acts))
    raised = [None] * len(acts)

    def process(index):
      own.index, own.number = index, call.begun
      try:
        acts[index]()
      except UserError as error:
        raised[index] = str(error)

    threads = [threading.Thread(target=process, args=(index,)) for index in range(len(acts))]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    call.begun += 100
    return raised

  call.begun, call.store = 0, store
  return call


class Own:
  """Counts for each thread by itself."""

  def __init__(self, own):
    self.own = own

  def __next__(self):
    self.own.number += 1
    return self.own.number


def started(**changes):
  return lambda: alike.require_alike({**FACTS, **changes})


def test_all_alike_pass_without_the_facts_being_read(together):
  assert together(started(), started(), started()) == [None] * 3
  reads = [key for key in together.store.read if key == alike.FIRST]
  assert reads == []
  assert together(started(), started()) == [None] * 2, 'again, in the same store'


def test_who_differs_is_named_on_all(together):
  raised = together(started(), started(**{'optim.learning_rate': 0.5}), started())
  assert len(set(raised)) == 1
  assert 'process 1' in raised[0]
  assert 'has optim.learning_rate=0.5, process 0 has 0.003: start the same command on every host' in raised[0]
  assert 'data.sources' not in raised[0]


def test_a_key_that_one_lacks_is_named(together):
  raised = together(started(), started(**{'train.new': 1}))
  assert 'train.new=1, process 0 has nothing' in raised[0]


def test_many_differences_on_many_processes_stay_a_short_message(together):
  many = {f'train.{i}': 'x' * 1000 for i in range(50)}
  raised = together(started(), *[started(**many)] * 20)
  assert len(set(raised)) == 1
  assert 'and 16 more processes' in raised[0] and 'and 46 more keys' in raised[0]
  assert len(raised[0]) < 4000


def test_what_is_of_one_host_may_differ(together):
  here = {'compute.compilation_cache': '/a', 'data.cache_dir': '/b', 'data.read_threads': 1}
  assert together(started(), started(**here)) == [None] * 2


def test_a_complaint_of_one_ends_all(together):
  def complains(text):
    return lambda: decide.none_complains(text)

  assert together(complains(None), complains(None)) == [None] * 2
  raised = together(complains(None), complains('no disk'), complains(None), complains('no light'))
  assert raised == ['no disk; no light'] * 4
  assert together(complains('first'), complains(None)) == ['first'] * 2
  left = [key for key in together.store.values if 'answer' in key]
  assert left == [], 'answers do not pile up'


def test_alone(monkeypatch):
  monkeypatch.setattr(json, 'dumps', lambda *args, **kwargs: pytest.fail('worked for nothing'))
  alike.require_alike(FACTS)
  decide.none_complains(None)
  with pytest.raises(UserError, match='no disk'):
    decide.none_complains('no disk')
