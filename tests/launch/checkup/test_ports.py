"""Ports on the loopback address: bound, held by another, refused, silent."""

import os
import socket
import threading

import pytest

from llamax.core.errors import UserError
from llamax.launch.checkup import ports
from llamax.launch.checkup.finding import FAIL, OK, WARN
from llamax.launch.checkup.tree import Tree


@pytest.fixture
def free():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{probe.getsockname()[1]}'


def test_peers_meet(free):
  found = []
  other = threading.Thread(target=lambda: found.append(ports.reach(free, 20)))
  other.start()  # before anything listens
  with ports.listening(Tree(), free, 1, 20) as port:
    pass
  other.join()
  assert port[0].verdict == OK and '1 others came' in port[0].text
  assert found[0].verdict == OK and 'from 127.0.0.1 here' in found[0].text


def test_peers_that_do_not_come(free):
  with ports.listening(Tree(), free, 2, 0.1) as port:
    pass
  assert port[0].verdict == FAIL and '0 of 2 others came' in port[0].text


def test_a_port_that_is_taken_names_its_holder(free):
  with socket.socket() as holder:
    holder.bind(('127.0.0.1', int(free.rpartition(':')[2])))
    holder.listen()
    with ports.listening(Tree(), free, 0, 0.1) as port:
      pass
  assert port[0].verdict == FAIL and f'process {os.getpid()} of ' in port[0].text


def test_an_address_of_another_machine():
  with ports.listening(Tree(), '192.0.2.1:8476', 0, 0.1) as port:
    pass
  assert port[0].verdict == FAIL and 'cannot listen on 192.0.2.1:8476' in port[0].text


def test_nobody_listens(free):
  finding = ports.reach(free, 0)
  assert finding.verdict == WARN and f'--listen={free}' in finding.todo


def test_a_firewall(monkeypatch):
  def drop(*_, **__):
    raise TimeoutError

  monkeypatch.setattr(socket, 'create_connection', drop)
  assert ports.reach('10.0.0.1:8476', 0).verdict == FAIL


def test_a_name_that_is_loopback_only_here(monkeypatch):
  assert ports._only_here('node-1', '127.0.1.1')
  assert not ports._only_here('127.0.0.1', '127.0.0.1') and not ports._only_here('localhost', '127.0.0.1')
  assert not ports._only_here('node-1', '10.0.0.7')
  monkeypatch.setattr(socket, 'gethostname', lambda: 'no.such.name.invalid')
  monkeypatch.setattr(
    socket, 'getaddrinfo', lambda *a, **k: (_ for _ in ()).throw(socket.gaierror(-2, 'unknown'))
  )
  assert ports.own_name().verdict == WARN
  assert ports.reach('no.such.name.invalid:1', 0).verdict == FAIL


@pytest.mark.parametrize('address', ['8476', 'host', 'host:', ':8476', 'host:0', 'host:99999', '0.0.0.0:8476'])
def test_no_address(address):
  with (
    pytest.raises(UserError, match=r'want HOST:PORT|name the one address'),
    ports.listening(Tree(), address, 0, 1),
  ):
    pass


def test_ipv6():
  assert ports.split('[fe80::1]:8476', '--peer') == ('fe80::1', 8476)
