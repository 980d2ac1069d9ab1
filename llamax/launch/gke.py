"""A GKE cluster with TPUs: JobSet starts all slices together, again when one is lost; Kueue queues."""

import argparse
import json
import math
import time
from collections.abc import Sequence
from typing import Any

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.launch import gke_manifest as manifest
from llamax.launch import gke_pools
from llamax.launch.action import Action, Run
from llamax.launch.execute import attempt, execute
from llamax.launch.job import Job, at_least
from llamax.launch.tpus import Slice, parse
from llamax.train.supervise import FINAL, in_words

VERBS = ('run', 'create', 'submit', 'status', 'logs', 'ssh', 'stop', 'delete', 'doctor')
TAKES_CODE = False

_JOBSETS = 'jobsets.jobset.x-k8s.io'
_DEAF = 600.0  # seconds that the cluster may fail to answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--tpu', metavar='SLICE', help='v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4, ...')
  add('--slices', type=int, default=1, metavar='N', help='of them, joined by the data centre network (1)')
  add('--chips_per_host', type=int, metavar='N', help='8 chips of v5e, v6e: on one machine (8) or two (4)')
  add('--image', metavar='IMAGE', help='with llamax in it; best by its digest: name@sha256:...')
  add('--spot', action='store_true', help='on nodes that may be taken back at any time')
  add('--queue', default='', metavar='NAME', help='LocalQueue of Kueue; create makes it')
  add('--namespace', default='default', metavar='NAME')
  add('--context', default='', metavar='NAME', help="of kubectl; default: kubectl's own")
  add('--service_account', default='', metavar='NAME', help='of Kubernetes, with rights to the buckets')
  add(
    '--mount', action='append', default=[], metavar='gs://BUCKET[/FOLDER]:/PATH',
    help='a bucket as a folder, by the Cloud Storage FUSE driver; may be given again',
  )  # fmt: skip
  add('--max_restarts', type=int, default=50, metavar='N', help='of all slices together (50)')
  add('--grace', type=int, default=60, metavar='SECONDS', help='to save, before a pod is killed (60)')
  add('--cluster', default='', metavar='NAME', help='create, delete: of the node pools')
  add('--location', default='', metavar='REGION', help='create, delete: of the cluster, region or zone')
  add('--node_zone', default='', metavar='ZONE', help='create: of the nodes, where --location is a region')
  add('--project', default='', help="create, delete; default: gcloud's own")
  add('--reservation', default='', metavar='NAME', help='create: that the nodes come from')
  add('--slice_number', type=int, default=0, metavar='K', help='ssh: of which slice (0)')
  add('--lines', type=int, default=100, metavar='N', help='logs: the last N of each, then what comes (100)')
  add('--poll', type=float, default=30.0, metavar='SECONDS', help='run: between two looks (30)')
  add('--workdir', metavar='DIR', help='for the verbs without the command')


def pods(args: argparse.Namespace) -> manifest.Pods:
  """UserError for options that do not fit each other."""
  slice_ = _slice(args)
  if not args.image:
    raise UserError(
      'which image? Give --image=REGISTRY/NAME@sha256:..., with llamax in it (docs/launch/gke.md)'
    )
  return manifest.Pods(
    slice=slice_,
    slices=args.slices,
    image=args.image,
    spot=args.spot,
    queue=args.queue,
    namespace=args.namespace,
    service_account=args.service_account,
    mounts=tuple(args.mount),
    max_restarts=args.max_restarts,
    grace=args.grace,
  )


def _check(args: argparse.Namespace) -> None:
  at_least(args, slices=1, max_restarts=0, grace=1, slice_number=0)
  if not 0 < args.poll < math.inf:
    raise UserError(f'--poll={args.poll:g}: want seconds above 0')


def _slice(args: argparse.Namespace) -> Slice:
  if not args.tpu:
    raise UserError('which TPUs? Give --tpu=SLICE, such as v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4')
  slice_ = parse(args.tpu, args.chips_per_host)
  if args.slices > 1 and slice_.hosts == 1:
    raise UserError(f'--slices={args.slices} of {args.tpu}: a slice that joins others has several machines')
  return slice_


def plan(verb: str, args: argparse.Namespace, job: Job) -> Sequence[Action]:
  _check(args)
  if verb == 'create':
    return _create(args, job)
  if verb == 'submit':
    return _submit(args, job)
  if verb == 'status':
    wide = ('-o', 'wide')
    return [
      _kubectl(args, 'what the JobSet does', 'get', _JOBSETS, job.name, *wide),
      _kubectl(args, 'its pods', 'get', 'pods', '-l', _label(job), *wide),
    ]
  if verb == 'logs':
    return [_logs(args, job, args.lines)]
  if verb == 'ssh':
    at = f'job/{job.name}-{manifest.SLICES}-{args.slice_number}'
    words = ('exec', '-i', '-t', at, '-c', manifest.CONTAINER, '--', 'bash')
    return [_kubectl(args, f'a shell on a worker of slice {args.slice_number}', *words, interactive=True)]
  if verb == 'stop':
    end = ('delete', _JOBSETS, job.name, '--ignore-not-found', '--cascade=foreground')
    return [_kubectl(args, f'asks the JobSet {job.name} to save, to end', *end)]
  if verb == 'delete':
    return [*plan('stop', args, job), *_delete(args, job)]
  if verb == 'doctor':
    return _doctor(args, job)
  return [*_submit(args, job), _logs(args, job, -1), *plan('status', args, job)]


def _submit(args: argparse.Namespace, job: Job) -> list[Action]:
  if job.command[0] != 'llamax':
    raise UserError(f'{job.command[0]!r}: a command for other machines begins with llamax, which the image has')
  if job.workdir is None or not job.workdir.startswith('/'):
    raise UserError(
      f'--workdir={job.workdir}: want the whole path of a folder that all workers share, such as one of '
      '--mount=gs://BUCKET:/mnt/runs'
    )
  actions: list[Action] = []
  objects = [manifest.jobset(job, pods(args))]
  if secret := manifest.secret(job, args.namespace):
    actions.append(_kubectl(args, 'the secrets of the job', 'apply', '-f', '-', stdin=secret))
  if files := manifest.config_map(job, args.namespace):
    objects.insert(0, files)
  why = f'starts {args.slices} x {args.tpu}: {job.name}'
  return [*actions, _kubectl(args, why, 'apply', '-f', '-', stdin=(manifest.text(objects),))]


def _create(args: argparse.Namespace, job: Job) -> list[Action]:
  slice_ = _slice(args)
  actions: list[Action] = []
  if args.cluster:
    actions += gke_pools.create(args, job.name, slice_)
  if args.queue:
    objects = manifest.queue(args.queue, args.namespace, slice_, args.slices, args.spot)
    actions.append(_kubectl(args, 'a queue', 'apply', '-f', '-', stdin=(manifest.text(objects),)))
  if not actions:
    raise UserError(
      'nothing to create: give --cluster with --location for node pools (an Autopilot cluster makes its own), '
      '--queue for a queue'
    )
  return actions


def _delete(args: argparse.Namespace, job: Job) -> list[Action]:
  actions: list[Action] = [
    _kubectl(args, 'its secrets, config files', 'delete', 'secret,configmap', job.name, '--ignore-not-found')
  ]
  if args.queue:
    for kind in ('localqueues', 'clusterqueues', 'resourceflavors'):
      gone = ('delete', f'{kind}.kueue.x-k8s.io', args.queue, '--ignore-not-found')
      actions.append(_kubectl(args, f'its queue: {kind}', *gone))
  if args.cluster:
    actions += gke_pools.delete(args, job.name, _slice(args) if args.tpu else None)
  return actions


def _doctor(args: argparse.Namespace, job: Job) -> list[Action]:
  slice_ = _slice(args)
  nodes = ','.join(f'{label}={value}' for label, value in manifest.labels(slice_).items())
  first = f'job/{job.name}-{manifest.SLICES}-0'
  inside = ('exec', first, '-c', manifest.CONTAINER, '--', 'llamax', 'doctor')
  return [
    _kubectl(args, 'is JobSet installed', 'get', 'crd', _JOBSETS),
    *[_kubectl(args, 'is the queue there', 'get', 'localqueues.kueue.x-k8s.io', args.queue)] * bool(args.queue),
    _kubectl(
      args, f'nodes for {args.tpu}: {slice_.hosts} a slice (Autopilot: none yet)', 'get', 'nodes', '-l', nodes
    ),
    _kubectl(args, 'a worker of the job, if it runs', *inside, may_fail=True),
  ]


def act(verb: str, args: argparse.Namespace, job: Job) -> int:
  actions = plan(verb, args, job)
  if verb == 'submit':
    _clear(args, job)
  if verb == 'delete':
    _do_all(actions)
    return exits.DONE
  if verb != 'run':
    execute(actions)
    return exits.DONE
  _clear(args, job)
  execute(_submit(args, job))
  code = _follow(args, job)
  tell(f'launch: {job.name}: {in_words(code)}; llamax launch gke delete gives back what create made')
  return code


def _follow(args: argparse.Namespace, job: Job) -> int:
  """Shows the output of a JobSet that is there, until it has ended or is there no more: its exit code."""
  deaf: float | None = None  # Since when. Not since the last answer: the logs may take hours.
  while True:
    try:
      state = _state(args, job)
    except UserError as error:
      if deaf is None:
        deaf = time.monotonic()
        tell(f'launch: {error}; the job may go on: asking again')
      elif time.monotonic() - deaf > _DEAF:
        raise
    else:
      deaf = None
      if state['jobset'] is None:
        tell(f'launch: {job.name}: the JobSet was deleted (llamax launch gke stop, kubectl delete)')
        return exits.RESUME
      if (code := ended(state)) is not None:
        return code
      # Ends when the pods do; at once, while there are none.
      attempt((_logs(args, job, 100),))
    time.sleep(args.poll)


def _do_all(actions: Sequence[Action]) -> None:
  """Each, whatever became of those before; UserError with all that failed."""
  failed = []
  for action in actions:
    try:
      execute((action,))
    except UserError as error:
      failed.append(str(error))
  if failed:
    raise UserError('\n  '.join(['not all is given back; this may still be there, and cost:', *failed]))


def _clear(args: argparse.Namespace, job: Job) -> None:
  """Takes a JobSet away that has ended: one of the same name cannot begin beside it. One that runs stays."""
  if ended(_state(args, job)) is not None:
    execute(plan('stop', args, job))


def _state(args: argparse.Namespace, job: Job) -> dict[str, Any]:
  """{'jobset': ..., 'pods': [...]} as kubectl has them; UserError where it cannot ask."""
  # A JobSet that is not there is no error in a list.
  runs = (
    _kubectl(args, 'the JobSets', 'get', _JOBSETS, '-o', 'json'),
    _kubectl(args, 'the pods', 'get', 'pods', '-l', _label(job), '-o', 'json'),
  )
  sets, found = (json.loads(done.check().out)['items'] for done in attempt(runs, show=False))
  own = [one for one in sets if one['metadata']['name'] == job.name]
  return {'jobset': own[0] if own else None, 'pods': found}


def ended(state: dict[str, Any]) -> int | None:
  """The exit code of a job by what kubectl tells of it; None while it goes on, or is not there.

  Of several pods' codes a final one (2, 77, 78); 76 where the restarts were used up.
  """
  conditions = (state['jobset'] or {}).get('status', {}).get('conditions', [])
  true = {one['type'] for one in conditions if one['status'] == 'True'}
  if 'Completed' in true:
    return exits.DONE
  if 'Failed' not in true:
    return None
  codes = [
    status['state']['terminated']['exitCode']
    for pod in state['pods']
    for status in pod.get('status', {}).get('containerStatuses', [])
    if status['name'] == manifest.CONTAINER and 'terminated' in status.get('state', {})
  ]
  return next((code for code in codes if code in FINAL and code != exits.DONE), exits.LOST)


def _logs(args: argparse.Namespace, job: Job, lines: int) -> Run:
  count = args.slices * _slice(args).hosts if args.tpu else 1000
  words = ('--follow', '--prefix', f'--tail={lines}', f'--max-log-requests={count}', '--ignore-errors')
  why = 'the output of all workers'
  return _kubectl(args, why, 'logs', '-l', _label(job), '-c', manifest.CONTAINER, *words, may_fail=True)


def _label(job: Job) -> str:
  return f'jobset.sigs.k8s.io/jobset-name={job.name}'


def _kubectl(args: argparse.Namespace, why: str, *words: str, **facts: Any) -> Run:
  context = (f'--context={args.context}',) if args.context else ()
  return Run(('kubectl', *context, f'--namespace={args.namespace}', *words), why, **facts)
