"""The Kubernetes objects of a job on TPU slices: JobSet, Secret, ConfigMap, the queue of Kueue."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamax.core import exits
from llamax.launch.action import Part, Secret
from llamax.launch.job import Job
from llamax.launch.options import environment
from llamax.launch.shipped import config_files
from llamax.launch.tpu_scripts import parse_mount
from llamax.launch.tpus import Slice
from llamax.train.supervise import FINAL

JOBSET, KUEUE = 'jobset.x-k8s.io/v1alpha2', 'kueue.x-k8s.io/v1beta1'
CHIPS = 'google.com/tpu'
SLICES, CONTAINER = 'slice', 'train'  # names inside the JobSet
_WORK = '/llamax/work'  # of the container: config files lie there as they lay where the launch began


@dataclass(frozen=True)
class Pods:
  """What the workers of a job are.

  Args:
    image: has llamax in it.
    queue: a LocalQueue of Kueue; '' for none.
    service_account: of Kubernetes, for the rights to a bucket; '' for the default one.
    max_restarts: of all slices together, by the JobSet.
    grace: seconds from SIGTERM to SIGKILL.
  """

  slice: Slice
  slices: int
  image: str
  spot: bool
  queue: str
  namespace: str
  service_account: str
  mounts: tuple[str, ...]
  max_restarts: int
  grace: int


def jobset(job: Job, pods: Pods) -> dict[str, Any]:
  """A JobSet of one Job a slice, one pod a machine.

  A pod that ends with 2, 77 or 78 (core/exits.py) ends the whole of it; any other code, or a pod that is gone,
  has all slices start again from the newest checkpoint.
  """
  labels = {'app.kubernetes.io/managed-by': 'llamax'}
  if pods.queue:
    labels['kueue.x-k8s.io/queue-name'] = pods.queue
  final = sorted(set(FINAL) - {exits.DONE})
  return {
    'apiVersion': JOBSET,
    'kind': 'JobSet',
    'metadata': {
      'name': job.name,
      'namespace': pods.namespace,
      'labels': labels,
      # A slice is a node pool: no two Jobs on one, no Job on two.
      'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
    },
    'spec': {
      'network': {'enableDNSHostnames': True, 'publishNotReadyAddresses': True},
      'failurePolicy': {
        'maxRestarts': pods.max_restarts,
        'rules': [{'name': 'final', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
      },
      'replicatedJobs': [
        {
          'name': SLICES,
          'replicas': pods.slices,
          'template': {
            'spec': {
              'parallelism': pods.slice.hosts,
              'completions': pods.slice.hosts,
              'completionMode': 'Indexed',
              # One lost pod ends its Job, upon which the JobSet starts all of them again.
              'backoffLimit': 0,
              'podFailurePolicy': {
                'rules': [
                  {
                    'action': 'FailJob',
                    'onExitCodes': {'containerName': CONTAINER, 'operator': 'In', 'values': final},
                  }
                ]
              },
              'template': _pod(job, pods),
            }
          },
        }
      ],
    },
  }


def labels(slice_: Slice) -> dict[str, str]:
  """Those of the nodes of such a slice."""
  return {
    'cloud.google.com/gke-tpu-accelerator': slice_.table.gke,
    'cloud.google.com/gke-tpu-topology': slice_.topology,
  }


def _pod(job: Job, pods: Pods) -> dict[str, Any]:
  selector = labels(pods.slice)
  tolerations = [{'key': CHIPS, 'operator': 'Exists', 'effect': 'NoSchedule'}]
  if pods.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
    tolerations.append(
      {'key': 'cloud.google.com/gke-spot', 'operator': 'Equal', 'value': 'true', 'effect': 'NoSchedule'}
    )
  volumes, mounts = _volumes(job, pods)
  spec = {
    'restartPolicy': 'Never',
    'nodeSelector': selector,
    'tolerations': tolerations,
    'terminationGracePeriodSeconds': pods.grace,
    'containers': [
      {
        'name': CONTAINER,
        'image': pods.image,
        'workingDir': _WORK,
        'command': [_as_it_is(word) for word in job.command],
        'env': _env(job, pods),
        # libtpu between the machines of a slice, then between slices.
        'ports': [{'containerPort': port, 'protocol': 'TCP'} for port in (8471, 8080)],
        'resources': {'limits': {CHIPS: str(pods.slice.per_host)}},
        **({'volumeMounts': mounts} if mounts else {}),
      }
    ],
    **({'volumes': volumes} if volumes else {}),
    **({'serviceAccountName': pods.service_account} if pods.service_account else {}),
  }
  fuse = {'metadata': {'annotations': {'gke-gcsfuse/volumes': 'true'}}} if pods.mounts else {}
  return {**fuse, 'spec': spec}


def _env(job: Job, pods: Pods) -> list[dict[str, Any]]:
  plain = environment(pods.slice.generation, pods.slices, {'PYTHONUNBUFFERED': '1', **job.env})
  secret = [
    {'name': name, 'valueFrom': {'secretKeyRef': {'name': job.name, 'key': name}}} for name in job.secrets
  ]
  return [{'name': name, 'value': _as_it_is(text)} for name, text in plain.items()] + secret


def _as_it_is(text: str) -> str:
  """Kubernetes puts variables in the place of $(NAME), one $ in the place of two."""
  return text.replace('$', '$$')


def _volumes(job: Job, pods: Pods) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  volumes: list[dict[str, Any]] = []
  mounts: list[dict[str, Any]] = []
  for number, spec in enumerate(pods.mounts):
    bucket, folder, path = parse_mount(spec)
    # What another host has changed is seen at once.
    options = ['implicit-dirs', 'metadata-cache:ttl-secs:0'] + [f'only-dir={folder}'] * bool(folder)
    csi = {
      'driver': 'gcsfuse.csi.storage.gke.io',
      'volumeAttributes': {'bucketName': bucket, 'mountOptions': ','.join(options)},
    }
    volumes.append({'name': f'bucket-{number}', 'csi': csi})
    mounts.append({'name': f'bucket-{number}', 'mountPath': path})
  files = config_files(job.command)
  if files:
    items = [{'key': f'file-{number}', 'path': path} for number, path in enumerate(files)]
    volumes.append({'name': 'configs', 'configMap': {'name': job.name, 'items': items}})
    mounts.append({'name': 'configs', 'mountPath': _WORK, 'readOnly': True})
  return volumes, mounts


def config_map(job: Job, namespace: str) -> dict[str, Any] | None:
  """The config files that are not part of llamax; None where there are none."""
  files = config_files(job.command)
  if not files:
    return None
  return {
    'apiVersion': 'v1',
    'kind': 'ConfigMap',
    'metadata': {'name': job.name, 'namespace': namespace},
    'data': {f'file-{number}': text for number, text in enumerate(files.values())},
  }


def secret(job: Job, namespace: str) -> tuple[Part, ...]:
  """A manifest whose values come from the launcher's environment; () where the job has none."""
  if not job.secrets:
    return ()
  head = {'name': job.name, 'namespace': namespace}
  parts: list[Part] = ['{"apiVersion": "v1", "kind": "Secret", "metadata": ' + json.dumps(head) + ', "data": {']
  for number, name in enumerate(job.secrets):
    parts += [f'{", " if number else ""}"{name}": "', Secret(name, 'base64'), '"']
  return (*parts, '}}\n')


def queue(name: str, namespace: str, slice_: Slice, slices: int, spot: bool) -> list[dict[str, Any]]:
  """A queue of Kueue that lets jobs with so many chips in all run at a time."""
  nodes = {**labels(slice_), **({'cloud.google.com/gke-spot': 'true'} if spot else {})}
  quota = {'name': CHIPS, 'nominalQuota': str(slices * slice_.chips)}
  group = {'coveredResources': [CHIPS], 'flavors': [{'name': name, 'resources': [quota]}]}
  return [
    _kueue('ResourceFlavor', {'name': name}, {'nodeLabels': nodes}),
    _kueue('ClusterQueue', {'name': name}, {'namespaceSelector': {}, 'resourceGroups': [group]}),
    _kueue('LocalQueue', {'name': name, 'namespace': namespace}, {'clusterQueue': name}),
  ]


def _kueue(kind: str, metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
  return {'apiVersion': KUEUE, 'kind': kind, 'metadata': metadata, 'spec': spec}


def text(objects: Sequence[Mapping[str, Any]]) -> str:
  """For kubectl: JSON, which is YAML too."""
  whole = objects[0] if len(objects) == 1 else {'apiVersion': 'v1', 'kind': 'List', 'items': list(objects)}
  return json.dumps(whole, indent=2) + '\n'
