"""The verbs of tpu-vm against a gcloud that says what a test wants."""

import argparse
import json

import pytest

from llamax.core.errors import UserError
from llamax.launch import tpu_life, tpu_machines, tpu_vm
from llamax.launch.action import Together
from llamax.launch.checkup.finding import Finding
from llamax.launch.code import Code
from llamax.launch.doctor import Report
from llamax.launch.execute import Done
from llamax.launch.job import Job
from llamax.launch.machines import State
from llamax.observe.ledger import Ledger, read_ledger
from tests.launch.recorded.check import check

NOT_FOUND = (1, '', 'ERROR: (gcloud) NOT_FOUND: Resource was not found\n')
NODE = json.dumps([{'name': 'projects/p/locations/z/nodes/eight', 'state': 'READY'}])
NONE, DONE = (0, '[]', ''), (0, '', '')


class Gcloud:
  """Stands for `attempt` of launch/execute.py. says: how a command line begins -> its code, output, errors."""

  def __init__(self, **says):
    self.says, self.calls, self.whys = says, [], []

  def __call__(self, runs, **options):
    return tuple(self._answer(run) for run in runs)

  def _answer(self, run):
    check(run.argv)
    self.whys.append(run.why)
    self.calls.append('_'.join(run.argv[3:5]).replace('-', '_'))
    return Done(run, *self.says[self.calls[-1]])


def options(state, *words):
  parser = argparse.ArgumentParser()
  tpu_vm.add_arguments(parser)
  return parser.parse_args(['--tpu=v5litepod-8', '--zone=us-west4-a', f'--state={state}', *words])


@pytest.fixture
def verb(tmp_path, monkeypatch):
  """(verb, says, *options) -> its exit code, the gcloud that it met."""

  def act(name, says, *words):
    gcloud = Gcloud(**says)
    monkeypatch.setattr(tpu_machines, 'attempt', gcloud)
    args, job = options(tmp_path / 'state', *words), Job('eight', code=Code('1', tmp_path))
    return getattr(tpu_life, name)(tpu_vm.place(args, job), args, job), gcloud

  return act


def recorded(tmp_path, *events):
  (tmp_path / 'state').mkdir(exist_ok=True)
  ledger = Ledger(tmp_path / 'state')
  for event, facts in events:
    ledger.record(event, **facts)
  ledger.close()


def names(tmp_path):
  return [event['event'] for event in read_ledger(tmp_path / 'state')]


GIVEN = [('requested', {}), ('seen', {'state': 'active', 'detail': '', 'chips': 8})]


@pytest.mark.parametrize(
  ('words', 'says', 'calls'),
  [
    ((), {'queued_resources_delete': DONE}, 1),
    # They were made with --no_queue, or without it.
    ((), {'queued_resources_delete': NOT_FOUND, 'tpu_vm_list': (0, NODE, ''), 'tpu_vm_delete': DONE}, 3),
    (('--no_queue',), {'tpu_vm_delete': NOT_FOUND, 'queued_resources_delete': DONE}, 2),
  ],
)
def test_delete_finds_machines_however_they_were_made(tmp_path, verb, capsys, words, says, calls):
  recorded(tmp_path, *GIVEN)
  code, gcloud = verb('delete', says, *words)
  assert code == 0 and len(gcloud.calls) == calls
  assert names(tmp_path)[-1] == 'given_back' and 'and counting' not in capsys.readouterr().out


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    ((), {'queued_resources_delete': NOT_FOUND, 'tpu_vm_list': NONE}),
    (('--no_queue',), {'tpu_vm_delete': NOT_FOUND, 'queued_resources_delete': NOT_FOUND}),
  ],
)
def test_delete_that_finds_nothing_gives_nothing_back(tmp_path, verb, capsys, words, says):
  assert verb('delete', says, *words)[0] == 0  # As far as this machine knows nothing was asked for.
  assert "nothing is named 'eight' in the zone us-west4-a" in capsys.readouterr().out
  recorded(tmp_path, *GIVEN)
  for _ in range(2):
    with pytest.raises(UserError, match=r'MAY STILL BE THERE, AND COST: give the --zone'):
      verb('delete', says, *words)
  assert 'given_back' not in names(tmp_path)


def test_delete_that_cannot_look_gives_nothing_back(tmp_path, verb):
  with pytest.raises(UserError, match='could not be deleted: ERROR: no network'):
    verb('delete', {'queued_resources_delete': NOT_FOUND, 'tpu_vm_list': (1, '', 'ERROR: no network\n')})
  assert names(tmp_path) == ['giving_back', 'failed']


def test_a_delete_that_was_killed_before_its_record_is_completed(tmp_path, verb):
  says = {'queued_resources_delete': NOT_FOUND, 'tpu_vm_list': NONE}
  recorded(tmp_path, *GIVEN, ('giving_back', {'zone': 'us-west4-a', 'project': ''}))
  with pytest.raises(UserError, match='MAY STILL BE THERE'):
    verb('delete', says, '--zone=us-east1-d')
  recorded(tmp_path, ('giving_back', {'zone': 'us-west4-a', 'project': ''}))
  assert verb('delete', says)[0] == 0 and names(tmp_path)[-1] == 'given_back'


def test_machines_that_were_made_with_no_queue_are_seen_without_it(tmp_path, monkeypatch):
  says = {'queued_resources_describe': NOT_FOUND, 'tpu_vm_list': (0, NODE, '')}
  monkeypatch.setattr(tpu_machines, 'attempt', Gcloud(**says))
  args, job = options(tmp_path), Job('eight')
  machines = tpu_machines.TpuMachines(tpu_vm.place(args, job), args, job)
  assert machines.look().state is State.ACTIVE
  says['tpu_vm_list'] = NONE
  monkeypatch.setattr(tpu_machines, 'attempt', Gcloud(**says))
  assert machines.look().state is State.ABSENT


# As gcloud 528 does with two workers: ten tries each, then a traceback of each thread.
FAILS = r"""#!/bin/bash
case "$*" in
  *queued-resources*) echo '{"state": {"state": "ACTIVE"}}'; exit ;;
  *list*) echo '[{"name": "n/eight", "state": "READY"}]'; exit ;;
esac
echo 'Using ssh batch size of 4. Attempting to SSH into 1 nodes with a total of 4 workers.' >&2
try() {
  echo "SSH: Attempting to connect to worker $1..."
  printf 'me@10.0.0.1: Permission denied (publickey).\r\n'
}
for worker in 0 1; do
  for again in {1..9}; do
    try $worker
    echo 'Failed to execute command on multiple workers. This may have happened if you have not added your SSH'
    echo 'Retrying: SSH command error: [/usr/bin/ssh] exited with return code [255].'
  done >&2
  try $worker >&2
done
for worker in 0 1; do
  echo "Exception in thread Thread-$worker (AttemptRunWithRetries):"
  echo 'Traceback (most recent call last):'
  for frame in {1..7}; do
    echo '  File "/usr/lib/google-cloud-sdk/lib/googlecloudsdk/ssh.py", line 539, in AttemptRunWithRetries'
    echo '    raise e'
  done
  echo 'googlecloudsdk.command_lib.util.ssh.ssh.CommandError: [/usr/bin/ssh] exited with return code [255].'
done >&2
exit 255
"""


def test_status_says_why_workers_do_not_answer(tmp_path, monkeypatch, capsys):
  (tmp_path / 'gcloud').write_text(FAILS)
  (tmp_path / 'gcloud').chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
  args, job = options(tmp_path / 'state'), Job('eight')
  assert tpu_life.status(tpu_vm.place(args, job), args, job) == 0
  assert '0 of 1 workers answer: me@10.0.0.1: Permission denied (publickey).\n' in capsys.readouterr().out


def test_an_error_of_gcloud_itself_says_more_than_what_is_around_it():
  place = tpu_vm.place(options('/s'), Job('eight'))
  for errors, says in [
    ('ERROR: (gcloud) SSH key is not in the ssh-agent\nplease add\n', 'SSH key is not in the ssh-agent'),
    ('ERROR: (gcloud) [/usr/bin/ssh] exited with return code [255].\n', 'gcloud ended with 1'),
  ]:
    assert says in tpu_machines._last(Done(place.list_nodes(), 1, '', errors))


def doctors(*reports):
  lines = [f'llamax-worker {number} {report.to_json()}' for number, report in enumerate(reports)]
  return {'tpu_vm_ssh': (0, '\n'.join([*lines, '']), '')}


def report(time=0.0, **values):
  return Report('host', time, [Finding(item, 'ok', str(value), value=value) for item, value in values.items()])


def test_doctor_compares_clocks_and_memory_too(verb, capsys):
  alike = [report(jax='0.10.2', memory='16 GB')] * 4
  assert verb('doctor', doctors(*alike), '--tpu=v5litepod-16')[0] == 0
  assert '4 workers, all alike; all is well' in capsys.readouterr().out
  alike[2] = report(7200.0, jax='0.10.2', memory='8 GB')
  assert verb('doctor', doctors(*alike), '--tpu=v5litepod-16')[0] == 0
  out = capsys.readouterr().out
  assert 'worker 2: its clock is 7,200 s ahead' in out and 'worker 2: memory is 8 GB' in out
  alike[1] = report(jax='0.9.0', memory='16 GB')
  assert verb('doctor', doctors(*alike), '--tpu=v5litepod-16')[0] == 2
  assert verb('doctor', doctors(*alike[:3]), '--tpu=v5litepod-16')[0] == 2
  assert 'worker 3: gave no report' in capsys.readouterr().out


def test_buckets_are_mounted_before_the_workdir_is_looked_at(tmp_path, monkeypatch):
  gcloud = Gcloud(**doctors(report(workdir='gcsfuse')))
  done = gcloud.whys
  monkeypatch.setattr(tpu_machines, 'attempt', gcloud)
  monkeypatch.setattr(tpu_machines, 'execute', lambda actions: done.extend(action.why for action in actions))
  args, job = options(tmp_path, '--mount=gs://b:/mnt/runs'), Job('eight', code=Code('1', tmp_path))
  tpu_machines.TpuMachines(tpu_vm.place(args, job), args, job).prepare()
  assert done[-2:] == ['mounts gs://b:/mnt/runs', 'llamax doctor on all workers, which must be alike']
  whys = [action.why for action in tpu_vm.plan('create', args, job) if isinstance(action, Together)]
  assert whys[-2:] == done[-2:]
