"""Manifests against published schemas, command lines against recorded tools, ends by what kubectl tells."""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.launch import gke
from llamax.launch import gke_manifest as manifest
from llamax.launch.action import Run, Secret
from llamax.launch.execute import formed
from llamax.launch.job import Job
from llamax.launch.tpus import GENERATIONS, parse
from tests.launch.processes import ROOT
from tests.launch.recorded.check import check

TRAIN = ('llamax', 'train', '--config=configs/debug.py', '--workdir=/mnt/runs/eight')
VARIANTS = [
  ('--tpu=v4:4x4x4',),
  ('--tpu=v5e:4x8', '--slices=2', '--spot'),
  ('--tpu=v5e:2x4', '--chips_per_host=8'),
  ('--tpu=v5p:2x2x1', '--queue=tpus', '--namespace=research', '--context=there'),
  ('--tpu=v6e:16x16', '--slices=4', '--reservation=r', '--node_zone=us-east5-b', '--project=mine'),
  ('--tpu=tpu7x:4x4x8', '--slices=2', '--mount=gs://b/f:/mnt/runs', '--service_account=trainer', '--queue=q'),
]


def options(*words):
  parser = argparse.ArgumentParser()
  gke.add_arguments(parser)
  return parser.parse_args(['--image=r/i@sha256:0', '--cluster=c', '--location=us-east5-b', *words])


def job(**facts):
  return Job('eight', TRAIN, **facts)


def runs(verb, words, made):
  return [action for action in gke.plan(verb, options(*words), made) if isinstance(action, Run)]


def objects(words=VARIANTS[1], made=None):
  """All that is applied, as Kubernetes objects."""
  made = made or job(env={'A': "it's $HOME $(HOME) $$"}, secrets=('TOKEN', 'OTHER'))
  found = []
  for verb in ('create', 'submit'):
    for run in runs(verb, words, made):
      if 'apply' in run.argv:
        text = ''.join(
          formed(part, {'TOKEN': 's"e', 'OTHER': ''}) if isinstance(part, Secret) else part
          for part in run.stdin
        )
        found += json.loads(text).get('items', [json.loads(text)])
  return found


def the_jobset(words=VARIANTS[1], made=None):
  return next(one for one in objects(words, made) if one['kind'] == 'JobSet')


def the_pod(jobset):
  return jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']


@pytest.mark.parametrize('words', VARIANTS)
def test_the_recorded_tools_take_every_command_line(words):
  for verb in gke.VERBS:
    for run in runs(verb, words, job(secrets=('TOKEN',))):
      argv = [word for word in run.argv if not word.startswith(('--namespace=', '--context='))]
      check(argv)


def test_the_published_models_of_jobset_keep_every_field(request):
  """kubeflow-trainer-api: made from the OpenAPI of JobSet and Kubernetes; what it does not know it drops."""
  if request.config.getoption('--scale') not in ('ci', 'soak'):
    pytest.skip('seconds to import: --scale=ci')
  model = pytest.importorskip('kubeflow_trainer_api.models.jobset_v1alpha2_job_set').JobsetV1alpha2JobSet
  for words in VARIANTS:
    whole = the_jobset(words)
    assert model.from_dict(whole).to_dict() == whole
    for path in ('failurePolicy', 'network'):
      wrong = json.loads(json.dumps(whole))
      wrong['spec'][path]['odd'] = 3
      assert model.from_dict(wrong).to_dict() != wrong


@pytest.fixture(scope='module')
def schemas():
  """Of the CRDs that JobSet and Kueue publish: recorded/record_crds.py."""
  jsonschema = pytest.importorskip('jsonschema')
  recorded = json.loads(Path(__file__).with_name('recorded').joinpath('crds.json').read_text())['schemas']
  return {name: jsonschema.Draft202012Validator(strict(schema)) for name, schema in recorded.items()}


def test_the_published_schemas_take_every_object(schemas):
  checked = []
  for words in VARIANTS:
    for one in objects(words):
      if validator := schemas.get(f'{one["apiVersion"]} {one["kind"]}'):
        validator.validate(one)
        assert not validator.is_valid({**one, 'spec': {**one['spec'], 'odd': 1}})
        checked.append(one['kind'])
  assert {kind: checked.count(kind) for kind in checked} == {
    'JobSet': 6, 'ResourceFlavor': 2, 'ClusterQueue': 2, 'LocalQueue': 2
  }  # fmt: skip


@pytest.mark.parametrize(
  ('path', 'wrong'),
  [
    ('spec/failurePolicy/rules/0/action', 'Stop'),
    ('spec/failurePolicy/rule', []),
    ('spec/replicatedJobs', {}),
    ('spec/replicatedJobs/0/template/spec/parallelism', '2'),
    ('spec/replicatedJobs/0/template/spec/podFailurePolicy/rules/0/onExitCodes/values', '2'),
    ('spec/replicatedJobs/0/template/spec/template/spec/containers/0/environment', []),
    ('spec/replicatedJobs/0/template/spec/template/spec/containers/0/env/0', {'value': 'no name'}),
    ('spec/replicatedJobs/0/template/spec/template/spec/containers/0/ports/0/containerPort', '80'),
  ],
)
def test_what_an_api_server_would_refuse_the_recorded_schema_refuses(schemas, path, wrong):
  whole = json.loads(json.dumps(the_jobset()))
  *parents, last = (int(name) if name.isdigit() else name for name in path.split('/'))
  place = whole
  for name in parents:
    place = place[name]
  place[last] = wrong
  assert not schemas['jobset.x-k8s.io/v1alpha2 JobSet'].is_valid(whole)


def strict(schema):
  """A structural schema as the API server takes it with fieldValidation=Strict: no field that it lacks."""
  if not isinstance(schema, dict):
    return schema
  made = {key: strict(value) for key, value in schema.items() if key not in ('properties', 'default')}
  if 'properties' in schema:
    made['properties'] = {name: strict(value) for name, value in schema['properties'].items()}
    if not schema.get('x-kubernetes-preserve-unknown-fields') and 'additionalProperties' not in schema:
      made['additionalProperties'] = False
  if schema.get('x-kubernetes-int-or-string'):
    made.pop('type', None)
  return made


@pytest.mark.parametrize(
  ('words', 'pool', 'hosts', 'chips', 'machine'),
  [
    (VARIANTS[0], 'tpu-v4-podslice', 16, '4', 'ct4p-hightpu-4t'),
    (VARIANTS[1], 'tpu-v5-lite-podslice', 8, '4', 'ct5lp-hightpu-4t'),
    (VARIANTS[2], 'tpu-v5-lite-podslice', 1, '8', 'ct5lp-hightpu-8t'),
    (VARIANTS[3], 'tpu-v5p-slice', 1, '4', 'ct5p-hightpu-4t'),
    (VARIANTS[4], 'tpu-v6e-slice', 64, '4', 'ct6e-standard-4t'),
    (VARIANTS[5], 'tpu7x', 32, '4', 'tpu7x-standard-4t'),
  ],
)
def test_a_slice_has_a_pod_on_each_machine(words, pool, hosts, chips, machine):
  jobset = the_jobset(words)
  slices = jobset['spec']['replicatedJobs'][0]
  assert slices['replicas'] == options(*words).slices
  assert slices['template']['spec']['parallelism'] == slices['template']['spec']['completions'] == hosts
  pod = the_pod(jobset)
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-accelerator'] == pool
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == parse(words[0][6:]).topology
  assert pod['containers'][0]['resources']['limits'] == {'google.com/tpu': chips}
  pools = [run.argv for run in runs('create', words, job()) if 'node-pools' in run.argv]
  assert len(pools) == options(*words).slices
  assert {f'--machine-type={machine}', f'--num-nodes={hosts}', '--location=us-east5-b'} < {*pools[0]}
  assert any(word.startswith('--tpu-topology') for word in pools[0]) == (hosts > 1)


def test_newer_chips_have_a_policy_that_joins_them():
  first, second, *_ = runs('create', VARIANTS[5], job())
  assert first.argv[:5] == ('gcloud', 'compute', 'resource-policies', 'create', 'workload-policy')
  assert {'--accelerator-topology=4x4x8', '--region=us-east5'} < {*first.argv}
  assert '--placement-policy=eight' in second.argv


def test_every_generation_has_a_node_pool():
  assert {parse(words[0][6:]).generation for words in VARIANTS} == set(GENERATIONS)


def test_exit_codes_decide_who_starts_again():
  spec = the_jobset()['spec']
  rule = spec['replicatedJobs'][0]['template']['spec']['podFailurePolicy']['rules'][0]
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [exits.MISTAKE, exits.NUMBERS, exits.FENCED]
  assert rule['onExitCodes']['containerName'] == the_pod(the_jobset())['containers'][0]['name']
  assert spec['failurePolicy']['rules'] == [
    {'name': 'final', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}
  ]
  assert spec['replicatedJobs'][0]['template']['spec']['backoffLimit'] == 0
  assert the_pod(the_jobset())['restartPolicy'] == 'Never'


def expand(text, variables):
  """As kubelet does it (third_party/forked/golang/expansion)."""
  out, rest = io.StringIO(), text
  while rest:
    if rest.startswith('$$'):
      out.write('$')
      rest = rest[2:]
    elif rest.startswith('$(') and ')' in rest:
      name, _, rest = rest[2:].partition(')')
      out.write(variables.get(name, f'$({name})'))
    else:
      out.write(rest[0])
      rest = rest[1:]
  return out.getvalue()


@pytest.mark.parametrize('text', ["it's $HOME", '$(HOME)', '$$(HOME)', '$$$', '${HOME} "\n\\', 'ünï'])
def test_hostile_words_arrive_as_they_are(text):
  made = Job('eight', (*TRAIN, f'--config.sample.prompts={text}'), env={'A': text})
  container = the_pod(the_jobset(made=made))['containers'][0]
  variables = {'HOME': 'wrong'}
  assert expand(container['command'][-1], variables) == f'--config.sample.prompts={text}'
  assert {expand(one['value'], variables) for one in container['env'] if one['name'] == 'A'} == {text}


def test_secrets_are_in_no_argument_and_in_one_object_alone():
  made = job(secrets=('TOKEN', 'OTHER'))
  for run in runs('submit', VARIANTS[0], made):
    assert not any('s"e' in word for word in run.argv)
  one = next(one for one in objects(made=made) if one['kind'] == 'Secret')
  assert {name: base64.b64decode(value).decode() for name, value in one['data'].items()} == {
    'TOKEN': 's"e',
    'OTHER': '',
  }
  env = the_pod(the_jobset(made=made))['containers'][0]['env']
  assert {'name': 'TOKEN', 'valueFrom': {'secretKeyRef': {'name': 'eight', 'key': 'TOKEN'}}} in env


def test_a_config_file_of_ones_own_travels_in_a_config_map(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path('mine').mkdir()
  Path('mine/big.py').write_text('import base\n')
  Path('mine/base.py').write_text('x = 1\n')
  made = Job('eight', ('llamax', 'train', '--config=mine/big.py:64', '--workdir=/mnt/runs/eight'))
  found = {one['kind']: one for one in objects(made=made)}
  pod = the_pod(found['JobSet'])
  volume = next(volume for volume in pod['volumes'] if volume['name'] == 'configs')
  content = {item['path']: found['ConfigMap']['data'][item['key']] for item in volume['configMap']['items']}
  assert content == {'mine/big.py': 'import base\n', 'mine/base.py': 'x = 1\n'}
  assert pod['containers'][0]['volumeMounts'][-1]['mountPath'] == pod['containers'][0]['workingDir']


def test_a_bucket_is_mounted_by_the_driver():
  template = the_jobset(VARIANTS[5])['spec']['replicatedJobs'][0]['template']['spec']['template']
  assert template['metadata']['annotations'] == {'gke-gcsfuse/volumes': 'true'}
  csi = template['spec']['volumes'][0]['csi']
  assert csi['volumeAttributes'] == {
    'bucketName': 'b', 'mountOptions': 'implicit-dirs,metadata-cache:ttl-secs:0,only-dir=f'
  }  # fmt: skip
  assert template['spec']['serviceAccountName'] == 'trainer'


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    (('--tpu=',), 'which TPUs'),
    (('--tpu=v5e:4x4', '--image='), 'which image'),
    (('--tpu=v5e:4x4', '--slices=0'), 'want 1 or more'),
    (('--tpu=v5e:2x2', '--slices=2'), 'has several machines'),
    (('--tpu=v5e:4x4', '--chips_per_host=8'), 'have 4'),
  ],
)
def test_options_that_do_not_fit_are_refused(words, says):
  with pytest.raises(UserError, match=says):
    gke.plan('submit', options(*words), job())


@pytest.mark.parametrize(
  ('word', 'says'),
  [
    ('--max_restarts=-1', 'want 0 or more'),
    ('--slices=0', 'want 1 or more'),
    ('--grace=-5', 'want 1 or more'),
    ('--slice_number=-1', 'want 0 or more'),
    ('--poll=0', 'want seconds above 0'),
    ('--poll=-1', 'want seconds above 0'),
    ('--poll=nan', 'want seconds above 0'),
    ('--poll=inf', 'want seconds above 0'),
  ],
)
def test_a_number_that_means_nothing_is_refused_before_anything_is_sent(word, says, cluster):
  for verb in ('run', 'delete'):
    with pytest.raises(UserError, match=f'{word}: {says}'):
      gke.act(verb, options('--tpu=v5e:4x4', word), job())
  assert not (cluster / 'calls').exists()


def test_the_script_creates_one_slice_in_one_zone(cluster):
  (cluster / 'llamax').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  (cluster / 'llamax').chmod(0o755)
  said = subprocess.run([ROOT / 'launch/gke.sh', 'create'], capture_output=True, text=True, check=True)
  words = said.stdout.splitlines()
  (run,) = runs('create', words[4 : words.index('--')], job())
  assert run.argv[-1].startswith('--node-locations=')


def test_create_says_what_it_lacks():
  with pytest.raises(UserError, match='give --cluster'):
    gke.plan('create', options('--tpu=v5e:4x4', '--cluster='), job())
  with pytest.raises(UserError, match='--location=REGION'):
    gke.plan('create', options('--tpu=v5e:4x4', '--location='), job())


def test_the_nodes_of_a_slice_are_in_one_zone():
  # --num-nodes counts for each zone of the pool; without --node-locations it has those of the cluster.
  def zones(*words):
    return [word for run in runs('create', ('--tpu=v5e:4x4', *words), job()) for word in run.argv[-1:]]

  assert zones('--location=us-east5', '--node_zone=us-east5-a') == ['--node-locations=us-east5-a']
  assert zones('--location=us-east5-b') == ['--node-locations=us-east5-b']
  assert zones('--location=us-central1-ai1a') == ['--node-locations=us-central1-ai1a']
  with pytest.raises(UserError, match=r'--location=us-east5 is a region.*--node_zone=us-east5-b'):
    zones('--location=us-east5')
  assert runs('delete', ('--location=us-east5',), job())  # What is there is found without.


def pod(code=None, name='train'):
  state = {'running': {}} if code is None else {'terminated': {'exitCode': code}}
  return {'status': {'containerStatuses': [{'name': name, 'state': state}]}}


@pytest.mark.parametrize(
  ('condition', 'pods', 'code'),
  [
    (None, [], None),
    ('Completed', [pod(0)], 0),
    ('Suspended', [], None),
    ('Failed', [pod(76), pod(77), pod(None)], 77),
    ('Failed', [pod(76), pod(75), pod(0)], 76),
    ('Failed', [pod(2, name='gke-gcsfuse-sidecar'), pod(1)], 76),
  ],
)
def test_how_a_jobset_has_ended(condition, pods, code):
  conditions = [{'type': 'StartupPolicyCompleted', 'status': 'False'}]
  conditions += [{'type': condition, 'status': 'True'}] if condition else []
  assert gke.ended({'jobset': {'status': {'conditions': conditions}}, 'pods': pods}) == code
  assert gke.ended({'jobset': None, 'pods': []}) is None


KUBECTL = (
  f'#!{sys.executable} -S'
  + """
import json, os, sys
from pathlib import Path
folder = Path(os.environ['FAKE_CLUSTER'])
words = sys.argv[1:]
with open(folder / 'calls', 'a') as file:
  file.write(json.dumps(words) + chr(10))
file = folder / 'jobset.json'
down = folder / 'down'
if down.exists() and 'get' in words and 'pods' not in words and file.exists():
  left = int(down.read_text())
  down.write_text(str(left - 1)) if left > 1 else down.unlink()
  sys.exit('Unable to connect to the server: net/http: TLS handshake timeout')
elif 'delete' in words and (folder / 'lost').exists():
  sys.exit('error: You must be logged in to the server')
elif 'apply' in words:
  for one in json.load(sys.stdin).get('items', []) or []:
    pass
  file.write_text('0')
elif 'delete' in words:
  file.unlink(missing_ok=True)
elif 'get' in words and 'pods' in words:
  ended = {'exitCode': int((folder / 'code').read_text())}
  statuses = [{'name': 'train', 'state': {'terminated': ended}}]
  print(json.dumps({'items': [{'status': {'containerStatuses': statuses}}]}))
elif 'get' in words:
  looks = int(file.read_text()) + 1 if file.exists() else 0
  if looks:
    file.write_text(str(looks))
  kind = ('Completed' if (folder / 'code').read_text() == '0' else 'Failed') if looks > 2 else 'Suspended'
  one = {'metadata': {'name': 'eight'}, 'status': {'conditions': [{'type': kind, 'status': 'True'}]}}
  print(json.dumps({'items': [one] if looks else []}))
elif 'logs' in words:
  print('[pod/eight-slice-0-0-abcde/train] step 1')
  if (folder / 'stopped').exists():
    file.unlink()
"""
)
GCLOUD = """#!/bin/sh
echo "$*" >> "$FAKE_CLUSTER/gclouds"
case "$*" in *eight-0*|*policies*) cat "$FAKE_CLUSTER/says" >&2; test ! -s "$FAKE_CLUSTER/says";; esac
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """The folder of a kubectl, a gcloud, what they have done."""
  for name, text in (('kubectl', KUBECTL), ('gcloud', GCLOUD)):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'code').write_text('0')
  (tmp_path / 'says').write_text('')
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  monkeypatch.setenv('FAKE_CLUSTER', str(tmp_path))
  looks = iter(range(20))  # A loop without end is a failure.
  monkeypatch.setattr(gke.time, 'sleep', lambda seconds: next(looks))
  return tmp_path


def test_a_run_is_followed_to_its_end_and_takes_the_place_of_the_one_before(cluster, capfd):
  args = options('--tpu=v5e:4x4')
  for code in (0, exits.NUMBERS):
    (cluster / 'code').write_text(str(code))
    (cluster / 'calls').unlink(missing_ok=True)
    assert gke.act('run', args, job()) == code
    calls = [json.loads(line) for line in (cluster / 'calls').read_text().splitlines()]
    verbs = [next(word for word in call if word in ('get', 'apply', 'logs', 'delete')) for call in calls]
    # The second finds the first, which has ended.
    assert verbs.count('apply') == 1 and verbs.count('delete') == (code != 0)
    assert 'step 1' in capfd.readouterr().out


def test_a_run_that_is_deleted_from_elsewhere_ends_as_one_asked_to_stop(cluster, capfd):
  (cluster / 'stopped').touch()
  assert gke.act('run', options('--tpu=v5e:4x4'), job()) == exits.RESUME
  assert 'the JobSet was deleted' in capfd.readouterr().err


def test_a_run_outlives_a_cluster_that_does_not_answer_for_a_while(cluster, capfd, monkeypatch):
  monkeypatch.setattr(gke, '_DEAF', 0.0)
  (cluster / 'down').write_text('1')  # However long the logs took before.
  assert gke.act('run', options('--tpu=v5e:4x4'), job()) == 0
  assert capfd.readouterr().err.count('TLS handshake timeout') == 1
  (cluster / 'down').write_text('2')
  (cluster / 'jobset.json').unlink()
  with pytest.raises(UserError, match='TLS handshake timeout'):
    gke.act('run', options('--tpu=v5e:4x4'), job())


SLICES = ('--tpu=tpu7x:4x4x8', '--slices=2', '--queue=q', '--project=p')
POOL = 'ERROR: (gcloud) ResponseError: code={}: projects/p/zones/us-east5-b/clusters/c/nodePools/eight-0.'
POLICY = "\n - The resource 'projects/p/regions/us-east5/resourcePolicies/eight' {}\n"


def called(cluster):
  return [line.partition(' --')[0].split(' ', 2)[2] for line in (cluster / 'gclouds').read_text().splitlines()]


def test_a_second_create_makes_what_the_first_did_not(cluster):
  (cluster / 'says').write_text(POOL.format('409, message=Already exists') + POLICY.format('already exists'))
  assert gke.act('create', options(*SLICES), job()) == 0
  assert called(cluster) == ['create workload-policy eight', 'create eight-0', 'create eight-1']
  assert '"apply"' in (cluster / 'calls').read_text()


def test_a_create_that_is_refused_fails(cluster):
  (cluster / 'says').write_text('code=403, message=permission denied')
  with pytest.raises(UserError, match='permission denied'):
    gke.act('create', options(*SLICES), job())


def test_delete_takes_what_is_not_there_for_deleted(cluster):
  (cluster / 'says').write_text(POOL.format('404, message=Not found') + POLICY.format('was not found'))
  assert gke.act('delete', options(*SLICES), job()) == 0
  assert len(called(cluster)) == 3


@pytest.mark.parametrize(
  'says',
  [
    'code=403, message=permission denied',
    # Not the pool: in another place it may go on.
    '(gcloud.container.node-pools.delete) code=404, message=Not found: projects/p/zones/z/clusters/c.',
  ],
)
def test_delete_tries_all_then_names_what_may_be_left(cluster, says):
  (cluster / 'says').write_text(says)
  with pytest.raises(UserError) as error:
    gke.act('delete', options(*SLICES), job())
  assert len(called(cluster)) == 3
  message = str(error.value)
  assert 'may still be there' in message and 'node pool eight-0' in message and says in message
  assert 'node pool eight-1' not in message and 'JobSet' not in message


def test_delete_reaches_the_nodes_where_kubectl_fails(cluster):
  (cluster / 'lost').touch()
  with pytest.raises(UserError, match=r'(?s)may still be there.*JobSet.*queue') as error:
    gke.act('delete', options(*SLICES), job())
  assert len(called(cluster)) == 3 and 'node pool' not in str(error.value)


def test_kubectl_reads_what_it_is_given(tmp_path):
  import shutil

  if shutil.which('kubectl') is None:
    pytest.skip('no kubectl here')
  # Without a cluster it knows no kinds; `kustomize` reads objects of any kind.
  (tmp_path / 'all.yaml').write_text(manifest.text(objects(VARIANTS[5])))
  (tmp_path / 'kustomization.yaml').write_text('resources: [all.yaml]\n')
  read = subprocess.run(['kubectl', 'kustomize', str(tmp_path)], capture_output=True, text=True, timeout=60)
  assert read.returncode == 0, read.stderr
  assert read.stdout.count('kind: ') >= 5 and 'kind: JobSet' in read.stdout
