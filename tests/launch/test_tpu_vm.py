"""The command lines for Cloud TPU virtual machines; what their answers mean."""

import argparse
import json
import shutil
import subprocess

import pytest

from llamax.core.errors import UserError
from llamax.launch import tpu_vm
from llamax.launch.action import Run, Secret, Together, show
from llamax.launch.code import Code
from llamax.launch.job import Job
from llamax.launch.machines import State
from llamax.launch.tpu_commands import answers
from llamax.launch.tpu_machines import nodes_state, request_state
from llamax.launch.tpu_scripts import mount, parse_mount
from tests.launch.recorded import record
from tests.launch.recorded.check import check

TRAIN = ('llamax', 'train', '--config=configs/debug.py', '--workdir=/mnt/runs/eight')


def options(*words):
  parser = argparse.ArgumentParser()
  tpu_vm.add_arguments(parser)
  return parser.parse_args(['--tpu=v5litepod-16', '--zone=us-west4-a', *words])


def job(tmp_path, **facts):
  return Job('eight', TRAIN, code=Code('0.1.0+gabc', tmp_path), **facts)


def runs(actions):
  for action in actions:
    yield from action.runs if isinstance(action, Together) else [action] if isinstance(action, Run) else []


VARIANTS = [
  (),
  ('--spot',),
  ('--reserved', '--slices=2', '--project=mine'),
  ('--no_queue', '--spot'),
  ('--no_queue', '--reserved', '--tpu=v4-8'),
  (
    '--spot',
    '--slices=3',
    '--tpu=v6e-256',
    '--network=n',
    '--subnetwork=s',
    '--service_account=a@b',
    '--internal_ip',
  ),
  ('--tpu=v5p:4x4x4', '--mount=gs://b/f:/mnt/runs', '--runtime_version=v2-alpha-tpuv5'),
]


def lines(tmp_path):
  """Every gcloud command line that there is."""
  for words in VARIANTS:
    for verb in tpu_vm.VERBS:
      for secrets in ((), ('TOKEN',)):
        for run in runs(tpu_vm.plan(verb, options(*words), job(tmp_path, secrets=secrets))):
          if run.argv[0] == 'gcloud':
            yield run.argv


def test_the_recorded_gcloud_takes_every_command_line(tmp_path):
  names = {check(argv) for argv in lines(tmp_path)}
  assert names == {
    *(f'compute tpus queued-resources {verb}' for verb in ('create', 'describe', 'delete')),
    *(f'compute tpus tpu-vm {verb}' for verb in ('create', 'list', 'delete', 'ssh', 'scp')),
  }


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    ('tpu-vm ssh eight --comand=ls', '--comand: not known'),
    ('tpu-vm ssh', 'tpu-vm ssh'),
    ('tpu-vm ssh eight --worker', 'lacks its value'),
    ('tpu-vm delete eight --quiet=yes', 'takes no value'),
    ('tpu-vm list eight', 'eight'),
    ('queued-resources create eight --node-id=eight --accelerator-type=v4-8', 'lacks --runtime-version'),
    ('queued-resources create eight --runtime-version=x --accelerator-type=v4-8', 'lacks one of'),
    (
      'queued-resources create eight --node-id=a --node-count=2 --runtime-version=x --accelerator-type=v4-8',
      'exclude each other',
    ),
    ('tpu-vm reboot eight', 'not recorded'),
  ],
)
def test_the_recorded_gcloud_refuses(words, says):
  with pytest.raises(AssertionError, match=says):
    check(['gcloud', 'compute', 'tpus', *words.split()])


@pytest.mark.skipif(shutil.which('gcloud') is None, reason='no gcloud here')
def test_gclouds_own_parser_takes_every_command_line(tmp_path):
  root = record.gcloud_root()
  every = {json.dumps(argv) for argv in lines(tmp_path)}
  bad = json.dumps(['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'eight', '--comand=ls'])
  ended = subprocess.run(
    [record.gcloud_python(root), record.__file__, '--parse', str(root)],
    input='\n'.join([*every, bad]), capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  *ours, last = ended.stdout.splitlines()
  assert len(ours) == len(every) and set(ours) == {'ok'}, ended.stdout[-2000:] + ended.stderr[-2000:]
  assert 'exit 2' in last


def test_a_request_says_what_was_asked_for(tmp_path):
  create = next(runs(tpu_vm.plan('create', options('--spot', '--slices=2'), job(tmp_path))))
  assert create.argv[3:6] == ('queued-resources', 'create', 'eight')
  assert {'--accelerator-type=v5litepod-16', '--runtime-version=v2-alpha-tpuv5-lite', '--spot'} < {*create.argv}
  assert {'--node-count=2', '--node-prefix=eight'} < {*create.argv}


def test_all_workers_of_each_slice_are_told(tmp_path):
  *_, begin = tpu_vm.plan('submit', options('--slices=2'), job(tmp_path))
  assert [run.argv[5] for run in begin.runs] == ['eight-0', 'eight-1']
  for run in begin.runs:
    assert '--worker=all' in run.argv
    script = next(word for word in run.argv if word.startswith('--command='))
    assert 'llamax supervise --max_failures=5 -- llamax train' in script and 'LIBTPU_INIT_ARGS' in script


def test_secrets_travel_to_one_worker_each_over_its_standard_input(tmp_path):
  *_, begin = tpu_vm.plan('submit', options(), job(tmp_path, secrets=('TOKEN',), env={'A': "it's"}))
  assert [run.argv[7] for run in begin.runs] == [f'--worker={number}' for number in range(4)]
  for run in begin.runs:
    assert Secret('TOKEN', 'sh') in run.stdin and not any('TOKEN' in word for word in run.argv)
  assert '"$TOKEN"' in show([begin])


def test_long_files_beside_the_config_travel_over_standard_inputs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/x.py').touch()
  (tmp_path / 'mine/long.py').write_text('é' * 100_000)
  command = ('llamax', 'train', '--config=mine/x.py', '--workdir=/mnt/runs/eight')
  *_, begin = tpu_vm.plan('submit', options(), Job('eight', command, code=Code('1', tmp_path)))
  assert max(len(word.encode()) for run in begin.runs for word in run.argv) < 1 << 17
  assert [run.argv[7] for run in begin.runs] == [f'--worker={number}' for number in range(4)]
  assert all('é' * 100_000 in ''.join(run.stdin) for run in begin.runs)


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    (('--tpu=',), 'which TPUs'),
    (('--tpu=tpu7x:4x4x4',), 'served by GKE'),
    (('--slices=0',), 'want 1 or more'),
    (('--no_queue', '--slices=2'), 'from the queue alone'),
    (('--slices=2', '--tpu=v5litepod-8'), 'has several machines'),
    (('--python=3.9',), r'tested with 3\.11'),
    (('--mount=b:/mnt',), 'want gs://BUCKET'),
    (('--poll=-1',), 'want seconds, more than 0'),
    (('--poll=nan',), 'want seconds, more than 0'),
    (('--grace=-1',), 'want 0 or more'),
    (('--max_failures=0',), 'want 1 or more'),
    (('--lines=-1',), 'want 0 or more'),
  ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, words, says):
  with pytest.raises(UserError, match=says):
    tpu_vm.plan('submit', options(*words), job(tmp_path))


def test_a_workdir_that_the_workers_do_not_share_is_refused(tmp_path):
  for workdir in ('runs/eight', 'gs://b/eight'):
    command = (*TRAIN[:3], f'--workdir={workdir}')
    with pytest.raises(UserError, match='a folder that all workers share'):
      tpu_vm.plan('submit', options(), Job('eight', command, code=Code('1', tmp_path)))


def test_a_worker_that_is_not_there_is_refused(tmp_path):
  assert next(runs(tpu_vm.plan('ssh', options('--worker=3'), job(tmp_path)))).interactive
  with pytest.raises(UserError, match='1 slices of 4 workers'):
    tpu_vm.plan('ssh', options('--worker=4'), job(tmp_path))


def request_json(state, **data):
  return {'name': 'projects/p/locations/z/queuedResources/eight', 'state': {'state': state, **data}}


@pytest.mark.parametrize(
  ('name', 'state'),
  [
    ('ACCEPTED', State.WAITING),
    ('WAITING_FOR_RESOURCES', State.WAITING),
    ('PROVISIONING', State.WAITING),
    ('ACTIVE', State.ACTIVE),
    ('SUSPENDING', State.LEAVING),
    ('SUSPENDED', State.LOST),
    ('DELETING', State.LEAVING),
    ('STATE_UNSPECIFIED', State.UNKNOWN),
    ('SOMETHING_NEW', State.UNKNOWN),
  ],
)
def test_states_of_a_request(name, state):
  assert request_state(request_json(name)).state is state


def test_why_a_request_failed_is_said():
  error = {'error': {'code': 8, 'message': 'There is no more capacity in the zone'}}
  seen = request_state(request_json('FAILED', failedData=error))
  assert (seen.state, seen.detail) == (State.REFUSED, 'FAILED: There is no more capacity in the zone')


@pytest.mark.parametrize(
  ('states', 'state', 'says'),
  [
    (('READY', 'READY'), State.ACTIVE, ''),
    (('READY', 'PREEMPTED'), State.LOST, 'eight-1 PREEMPTED'),
    (('READY', None), State.LOST, 'eight-1 gone'),
    (('READY', 'REPAIRING'), State.ACTIVE, ''),
    (('CREATING', 'READY'), State.WAITING, 'eight-0 CREATING'),
    (('DELETING', 'READY'), State.LEAVING, 'eight-0 DELETING'),
    (('READY', 'ODD'), State.UNKNOWN, 'eight-1 ODD'),
    ((None, None), State.ABSENT, 'no machines'),
  ],
)
def test_several_nodes_are_what_the_worst_of_them_is(states, state, says):
  nodes = [
    {'name': f'projects/p/locations/z/nodes/eight-{number}', 'state': name}
    for number, name in enumerate(states)
    if name
  ]
  seen = nodes_state(('eight-0', 'eight-1'), nodes, State.ABSENT)
  assert (seen.state, seen.detail) == (state, says)


def test_answers_are_found_among_other_lines():
  out = 'SSH: Attempting\nllamax-worker 3 {"a": 1}\nllamax-worker 2 {"a": \nllamax-worker 1 {"a": 2}\n'
  assert answers(out) == {'3': {'a': 1}, '1': {'a': 2}}


def test_a_mount():
  assert parse_mount('gs://my-runs/a/b/:/mnt/runs') == ('my-runs', 'a/b', '/mnt/runs')
  assert parse_mount('gs://my-runs:/mnt/runs') == ('my-runs', '', '/mnt/runs')
  assert "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --only-dir='a b' my /m" in mount('gs://my/a b:/m')
  for bad in ('my-runs:/mnt', 'gs://:/mnt', 'gs://b:mnt', 'gs://b;rm:/mnt', 'gs://b'):
    with pytest.raises(UserError, match='want gs://BUCKET'):
      parse_mount(bad)


@pytest.mark.parametrize('verb', tpu_vm.VERBS)
def test_scripts_are_good_for_bash(tmp_path, verb):
  words = options('--mount=gs://b/f:/mnt/runs')
  for run in runs(tpu_vm.plan(verb, words, job(tmp_path, env={'A': "it's $HOME"}))):
    for word in run.argv:
      if word.startswith('--command='):
        subprocess.run(['bash', '-n', '-c', word.removeprefix('--command=')], check=True, timeout=20)
