"""Where a process finds its place among those of a run, what it refuses."""

import ipaddress
import signal
import socket
import sys
import time

import pytest

from llamax.core.errors import UserError
from llamax.parallel import place
from llamax.parallel.place import Place, check_address, connected, detected, given, hint, waiting

VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


@pytest.fixture(autouse=True)
def bare(monkeypatch):
  for name in (*VARIABLES, *(n for n in place.os.environ if n.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_')))):
    monkeypatch.delenv(name, raising=False)


def test_nothing_told_is_one_process():
  assert given(None, None, None) is None
  assert detected(print) is None


@pytest.mark.parametrize(
  ('address', 'host'), [('10.0.0.1:8476', '10.0.0.1'), ('node-1:8476', 'node-1'), ('[fd00::2]:8476', 'fd00::2')]
)
def test_flags_tell(address, host):
  found = given(address, 4, 3)
  assert found == Place(host, 8476, 4, 3, 'flags')
  assert found.address == address


def test_flags_come_before_the_environment(monkeypatch):
  for name, value in zip(VARIABLES, ('10.0.0.1:1', '4', '2'), strict=True):
    monkeypatch.setenv(name, value)
  assert given(None, None, None) == Place('10.0.0.1', 1, 4, 2, 'flags')
  assert given(None, None, 0).process_id == 0


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('10.0.0.1:1', None, None), '--num_processes.*--process_id.*missing'),
    ((None, 2, 0), '--coordinator.*missing'),
    (('10.0.0.1', 2, 0), 'want HOST:PORT'),
    (('10.0.0.1:http', 2, 0), 'want HOST:PORT'),
    (('10.0.0.1:70000', 2, 0), 'want HOST:PORT'),
    ((':8476', 2, 0), 'want HOST:PORT'),
    (('10.0.0.1:1', 2, 2), 'want 0 to 1'),
    (('10.0.0.1:1', 2, -1), 'want 0 to 1'),
    (('10.0.0.1:1', 0, 0), 'want 0 to 0'),
  ],
  ids=str,
)
def test_flags_that_do_not_fit_are_refused(flags, message):
  with pytest.raises(UserError, match=message):
    given(*flags)


def test_a_word_where_a_number_belongs_is_named(monkeypatch):
  monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES='two'"):
    given('10.0.0.1:1', None, 0)


def slurm(monkeypatch, tasks, step=True):
  variables = {'JOB_ID': '77', 'NTASKS': str(tasks), 'PROCID': '1', 'LOCALID': '0', 'STEP_NUM_NODES': '2'}
  if step:
    variables['STEP_NODELIST'] = 'node[3-4]'
  for name, value in variables.items():
    monkeypatch.setenv(f'SLURM_{name}', value)


def test_slurm_is_found(monkeypatch):
  slurm(monkeypatch, 2)
  found = detected(print)
  assert (found.host, found.num_processes, found.process_id, found.found) == ('node3', 2, 1, 'Slurm')


@pytest.mark.parametrize(
  ('per_node', 'devices'), [('1(x2)', None), ('1', None), ('2', [0]), ('11', [0]), ('1(x2),2', [0]), ('', [0])]
)
def test_a_task_that_has_its_node_takes_all_of_its_devices(monkeypatch, per_node, devices):
  slurm(monkeypatch, 2)
  monkeypatch.setenv('SLURM_STEP_TASKS_PER_NODE', per_node)
  assert detected(print).local_device_ids == devices


def test_one_task_of_slurm_is_one_process(monkeypatch):
  slurm(monkeypatch, 1)
  assert detected(print) is None


def test_a_job_without_srun_is_one_process_that_says_so(monkeypatch):
  slurm(monkeypatch, 8, step=False)
  said = []
  assert detected(said.append) is None
  assert 'not started by srun' in said[0]


def test_a_pod_of_kubernetes_without_a_rank_is_one_process(monkeypatch, recwarn):
  monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
  assert detected(print) is None
  assert not recwarn


@pytest.mark.parametrize(('hosts', 'count'), [('a', None), ('a,b', 2)])
def test_a_single_tpu_host_is_no_pod(monkeypatch, hosts, count):
  monkeypatch.setattr('jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm', True)
  monkeypatch.setattr('socket.gethostbyname', lambda name: '10.0.0.1')
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', hosts)
  monkeypatch.setenv('TPU_WORKER_ID', '0')
  monkeypatch.setenv('MEGASCALE_NUM_SLICES', '1')
  monkeypatch.setenv('MEGASCALE_SLICE_ID', '0')
  monkeypatch.setenv('MEGASCALE_COORDINATOR_ADDRESS', 'a')
  found = detected(print)
  assert (found and found.num_processes) == count


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '::ffff:0.0.0.0', '::ffff:0:0', '0'])
def test_all_interfaces_are_no_address(host):
  with pytest.raises(UserError, match='the one address'):
    check_address(Place(host, 8476, 2, 0, 'flags'), public=True)


def test_an_address_of_the_internet_is_only_taken_when_asked_for():
  public = Place('8.8.8.8', 8476, 2, 1, 'flags')
  assert ipaddress.ip_address(public.host).is_global
  with pytest.raises(UserError, match='--public_coordinator'):
    check_address(public, public=False)
  assert check_address(public, public=True) == '8.8.8.8'


def test_an_ipv4_address_in_ipv6_spelling_is_judged_as_what_it_is():
  public = Place('::ffff:8.8.8.8', 8476, 2, 1, 'flags')
  with pytest.raises(UserError, match='--public_coordinator'):
    check_address(public, public=False)
  assert check_address(public, public=True) == '8.8.8.8'
  assert check_address(Place('::ffff:127.0.0.1', 8476, 2, 1, 'flags'), public=False) == '127.0.0.1'


def test_a_port_in_use_is_refused_before_anything_starts():
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match='cannot listen on'):
      check_address(Place('127.0.0.1', port, 2, 0, 'flags'), public=False)
    assert check_address(Place('127.0.0.1', port, 2, 1, 'flags'), public=False) == '127.0.0.1'


def test_process_0_runs_where_its_address_is():
  with pytest.raises(UserError, match='it runs on the host that has this address'):
    check_address(Place('10.255.255.1', 8476, 2, 0, 'flags'), public=False)


def test_an_unknown_host_is_named(monkeypatch):
  def fail(*args, **kwargs):
    raise socket.gaierror('no such name')

  monkeypatch.setattr(socket, 'getaddrinfo', fail)
  with pytest.raises(UserError, match='node-x'):
    check_address(Place('node-x', 8476, 2, 0, 'flags'), public=False)


def test_who_waits_says_what_to_run_where(monkeypatch):
  monkeypatch.setattr(place, '_HINT_SECONDS', 0.05)
  monkeypatch.setattr(sys, 'argv', ['llamax', 'train', '--workdir=my run'])
  said = []
  with waiting(Place('10.0.0.1', 8476, 4, 2, 'flags'), said.append):
    time.sleep(0.3)
  assert len(said) == 1
  assert 'process 2 is still waiting for process 0 at 10.0.0.1:8476' in said[0]
  assert "llamax train '--workdir=my run'" in said[0]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  with waiting(Place('10.0.0.1', 8476, 4, 2, 'flags'), said.append):
    pass
  time.sleep(0.1)
  assert len(said) == 1


def test_process_0_says_how_many_are_missing():
  with socket.socket() as coordinator:
    coordinator.bind(('127.0.0.1', 0))
    coordinator.listen()
    port = coordinator.getsockname()[1]
    assert connected(port) == 0
    # Process 0 is connected to itself as well.
    with socket.create_connection(('127.0.0.1', port)), socket.create_connection(('127.0.0.1', port)):
      time.sleep(0.1)
      assert connected(port) == 2
      assert 'waiting for 2 of 4 processes' in hint(Place('127.0.0.1', port, 4, 0, 'flags'))
  assert 'srun' in hint(Place('node1', 1, 4, 1, 'Slurm'))
  assert '--worker=all' in hint(Place('10.0.0.1', 1, 4, 1, 'GceTpu'))
